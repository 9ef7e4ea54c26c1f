"""Onsets of spikes and divergences: noticed, kept near by a checkpoint, and recorded in full."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from test_run import experiment

import ici
from ici.analysis.digest import digest
from ici.cli import main
from ici.engine.checkpoint import FOLDER
from ici.engine.flight_recorder import MAX_ONSETS, RULE, FlightRecorder
from ici.measure.spikes import find_spikes
from ici.report.page.content import content
from ici.store.manifest import GroupEntry, Manifest
from ici.store.replays import recorded_replays, replay_command, replay_of, window_around


class Kept:
    """Checkpoints of the steps 0, 20, 40, …, of which some are marked."""

    def __init__(self):
        self.steps = list(range(0, 1000, 20))
        self.policy = self
        self.marked = set()

    def mark(self, step):
        self.marked.add(step)


def losses(spikes, n_steps=600, seed=0):
    series = 1 + 0.01 * np.random.default_rng(seed).normal(size=n_steps)
    for step in spikes:
        series[step] = 3
    return series


@pytest.mark.parametrize("chunk", [1, 7, 100, 600])
def test_in_chunks_it_finds_what_the_rule_finds_in_the_whole(chunk):
    quiet, once, twice = losses([]), losses([300], seed=1), losses([200, 450], seed=2)
    loss = np.stack([quiet, once, twice])
    entry, kept = GroupEntry("none", 1, {}), Kept()
    recorder = FlightRecorder(3, entry, kept)  # pyright: ignore[reportArgumentType]
    nowhere = np.full(3, np.nan)
    for first in range(0, 600, chunk):
        recorder.see(first, loss[:, first : first + chunk], nowhere)
    found = sorted((lane, step) for lane, step, *_ in entry.onsets)
    assert found == [(1, 300), (2, 200), (2, 450)]
    wanted = [(n, e.onset) for n, row in enumerate(loss) for e in find_spikes(row, "olmo_core")]
    assert found == wanted
    assert kept.marked == {300, 200, 440}
    recorder.forget(300)
    assert [step for _, step, *_ in entry.onsets] == [200]


def test_divergences_are_onsets_and_few_are_kept():
    entry, kept = GroupEntry("none", 1, {}), Kept()
    recorder = FlightRecorder(20, entry, kept)  # pyright: ignore[reportArgumentType]
    diverged_at = np.full(20, np.nan)
    diverged_at[:12] = np.arange(12) + 30
    loss = np.stack([losses([]) for _ in range(20)])[:, :100]
    loss[0, 30:] = np.inf
    recorder.see(0, loss, diverged_at)
    assert len(entry.onsets) == MAX_ONSETS
    assert entry.onsets[0] == [0, 30, "divergence", 20]
    recorder.see(100, loss, diverged_at)
    assert len(entry.onsets) == MAX_ONSETS
    again = FlightRecorder(20, entry, Kept())  # pyright: ignore[reportArgumentType]
    assert again.checkpoints.policy.marked == {20}  # pyright: ignore[reportOptionalMemberAccess]
    assert RULE.window == 128


@pytest.fixture(scope="module")
def spiky(tmp_path_factory):
    """Two runs, one of which diverges; its steps before that are recorded in full."""
    from ici.engine import flight_windows

    out = tmp_path_factory.mktemp("spiky") / "a run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(flight_windows, "SHARE", float("inf"))
        results = ici.run(
            experiment(norm=("none",), lr=(1e-2, 3.0), seed=(0,)),
            out,
            checkpoint_every_s=0,
            keep_checkpoints=1,
            flight_recorder=1,
        )
    return results


def test_the_checkpoint_before_an_onset_outlives_the_newer_ones(spiky):
    entry = spiky.manifest.groups["norm=none,depth=2"]
    ((lane, step, kind, kept),) = entry.onsets
    assert (lane, kind) == (1, "divergence")
    assert step == spiky.runs["diverged_at"].sel(lr=3.0).item()
    saved = {int(p.name) for p in (spiky.path / FOLDER / "norm=none,depth=2").iterdir()}
    assert saved == {50} | ({kept} if kept else set())
    assert Manifest.read(spiky.path).groups["norm=none,depth=2"].onsets == entry.onsets


def test_every_step_before_an_onset_is_recorded(spiky):
    ((path, about),) = recorded_replays(spiky.path)
    step = int(spiky.runs["diverged_at"].sel(lr=3.0).item())
    assert about["n_deviating"] == 0
    assert replay_of([(path, about)], {"norm": "none", "lr": 3.0}, step) == path
    assert replay_of([(path, about)], {"norm": "none", "lr": 1e-2}, step) is None
    made = ici.open(path)
    first = window_around(step, 50)[0]
    np.testing.assert_array_equal(made.probe["step"].values, np.arange(first, step + 1))


def test_it_changes_nothing_of_the_runs(spiky, tmp_path):
    plain = ici.run(
        experiment(norm=("none",), lr=(1e-2, 3.0), seed=(0,)), tmp_path / "out", flight_recorder=0
    )
    name = "norm=none,depth=2"
    assert plain.manifest.groups[name].state_digest == spiky.manifest.groups[name].state_digest
    assert not plain.manifest.groups[name].onsets and not recorded_replays(plain.path)
    assert spiky.train.identical(plain.train)


@pytest.mark.slow
def test_the_command_of_a_spike_in_the_page_runs_from_anywhere(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_run import experiment as tiny\n"
        "experiment = tiny(norm=('none',), lr=(1e-2, 0.1), seed=(0,), steps=200,"
        " reference_every=100, eval_every=100, optimizer='sgd', batch_size=4)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["run", "mine.py", "--out", "a record", "--no-figures"]) == 0
    record = tmp_path / "a record"
    run = {"norm": "none", "depth": 2, "lr": 0.1, "seed": 0}
    words = shlex.split(replay_command(Path("a record"), run, 40, 44))
    assert words[2] == str(record)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(words[1:-2]) == 0  # without the heavy measurements
    assert "bit for bit" in " ".join(capsys.readouterr().out.split())
    shown = content(digest(ici.open(record)))["spikes"]["rows"]
    for row in shown:
        assert row["replay"].startswith(f"ici replay '{record}' --norm none --depth 2 --lr ")
