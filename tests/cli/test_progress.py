"""What the progress display counts, and how often it says so."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import ici
from ici.cli import progress as module
from ici.cli.progress import LiveProgress
from ici.engine.loop import Progress

EXPERIMENT = ici.Experiment(data="synthetic", norm=("none", "batch"), lr=(1e-3, 1e-2), seed=(0, 1))


def report(step, n_running, elapsed_s, norm="none", loss=0.5):
    return Progress(
        norm=norm, depth=10, step=step, steps=100, n_running=n_running, n_diverged=4 - n_running,
        n_lanes=4, loss=loss, elapsed_s=elapsed_s,
    )  # fmt: skip


def shown(*reports):
    file = io.StringIO()
    console = Console(file=file, width=200)
    with LiveProgress(EXPERIMENT, console) as progress:
        for each in reports:
            progress.update(each)
    return file.getvalue().splitlines()


def test_waiting_for_data_is_told_where_it_costs(every_report):
    from dataclasses import replace

    free, costly = report(50, 4, 1.0), replace(report(90, 4, 2.0), loader_wait_s=0.5)
    lines = shown(free, costly)
    assert "waiting" not in lines[0] and lines[1].endswith("25% of the time waiting for data")


@pytest.fixture
def every_report(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_LINE_EVERY_S", -1.0)


def test_rate_counts_the_steps_of_running_lanes(every_report):
    lines = shown(report(50, 4, 1.0), report(90, 1, 2.0), report(100, 1, 2.4))
    # 50 steps of 4 lanes, then 40 and 10 of one
    rates = [line.split(" run-steps/s")[0].split()[-1] for line in lines]
    assert rates == ["200", "120", f"{250 / 2.4:.0f}"]


def test_rate_of_a_group_is_its_own(every_report):
    lines = shown(report(100, 4, 1.0), report(50, 2, 1.0, norm="batch"))
    assert " 400 run-steps/s" in lines[0] and " 100 run-steps/s" in lines[1]


@pytest.mark.parametrize("every_s", [-1.0, 10.0])
def test_end_of_a_group_is_told_once(monkeypatch, every_s):
    monkeypatch.setattr(module, "PLAIN_LINE_EVERY_S", every_s)
    # as the loop reports it: the last chunk, then the measurements after it
    last = (report(100, 4, 1.0), report(100, 4, 1.5, loss=float("nan")))
    lines = shown(*last, *(report(60, 0, e, norm="batch") for e in (1.0, 1.2)))
    assert [line.split()[0] for line in lines] == ["none", "batch"]
