"""`ici watch` follows a record through whatever may happen to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from written import CHUNK, STEPS, Written, run_names

import ici
from ici.analysis.watched import ASK_AFTER_S, SILENT_AFTER_S, Watched
from ici.cli import main
from ici.cli.watch_view import headline
from ici.store.following import Following
from ici.store.lock import is_held, sole_writer


def aged(folder, seconds):
    then = time.time() - seconds
    for file in (folder / "manifest.json", *(folder / "records").glob("*.json")):
        os.utime(file, (then, then))


def by_norm(state):
    return {group.norm: group for group in state.groups}


def test_a_record_is_followed_from_before_it_exists_to_its_end(tmp_path):
    folder = tmp_path / "runs" / "x"
    watched = Watched(folder)
    state = watched.update()
    assert state.phase == "absent" and "waiting" in headline(state)
    folder.mkdir(parents=True)
    assert watched.update().phase == "absent"
    with sole_writer(folder):
        record = Written(folder)
        assert watched.update().phase == "starting"
        record.begin("none")
        state = watched.update()
        assert state.phase == "starting" and "no step committed" in headline(state)
        for _ in range(4):
            record.chunk("none")
        state = watched.update()
        group = by_norm(state)["none"]
        assert state.phase == "running" and group.step == 4 * CHUNK and group.n_running == 6
        assert by_norm(state)["batch"].step == 0 and by_norm(state)["batch"].n_runs == 6
        assert state.left_s == pytest.approx(0.5 * 6 * (STEPS - 4 * CHUNK + STEPS))
        record.diverged_at[2] = 4 * CHUNK + 3
        record.chunk("none")
        state = watched.update()
        assert [(d.step, d.run) for d in state.divergences] == [(83, run_names("none")[2])]
        assert by_norm(state)["none"].n_running == 5
        for _ in range(5, STEPS // CHUNK):
            record.chunk("none")
        record.finish("none")
        record.diverged_at[:] = np.nan
        record.begin("batch")
        for _ in range(STEPS // CHUNK):
            record.chunk("batch")
        record.finish("batch")
        record.end()
    state = watched.update()
    assert state.phase == "done" and state.ended and state.replaced == 0
    # What was put together piece by piece is what one look at the whole gives.
    at_once = Watched(folder).update()
    for mine, whole in zip(state.groups, at_once.groups, strict=True):
        assert (mine.n_diverged, mine.n_met, mine.step) == (
            whole.n_diverged,
            whole.n_met,
            whole.step,
        )
        for a, b in zip(mine.settings, whole.settings, strict=True):
            np.testing.assert_array_equal(a.losses, b.losses)
            np.testing.assert_array_equal(
                [a.loss, a.score, a.shift, a.n_spikes], [b.loss, b.score, b.shift, b.n_spikes]
            )


def test_the_end_says_what_the_analysis_says(tmp_path):
    from ici.analysis.convergence import run_steps_to_target
    from ici.analysis.records import last_recorded, training_loss, validation
    from ici.analysis.shifts import reference_shift

    record = Written(tmp_path, measure=[])
    record.diverged_at[4] = 77
    record.loss[1, 300] = 30.0
    record.all()
    state, results = Watched(tmp_path).update(), ici.open(tmp_path)
    loss = last_recorded(training_loss(results))
    score = last_recorded(validation(results, "accuracy"))
    shift = reference_shift(results)["mean_shift"].sel(site="head").isel(step=-1)
    met = np.isfinite(run_steps_to_target(results))
    for group in state.groups:
        for setting in group.settings:
            here = dict(norm=group.norm, depth=2, lr=setting.lr)
            assert setting.score == pytest.approx(float(score.sel(here).median()))
            assert setting.shift == pytest.approx(float(shift.sel(here).median()), rel=1e-5)
            assert setting.n_met == int(met.sel(here).sum())
            if setting.n_diverged == 0:
                assert setting.loss == pytest.approx(float(loss.sel(here).median()))
        assert [s.n_diverged for s in group.settings] == [0, 1]
        assert [s.n_spikes for s in group.settings] == [1, 0]


def test_only_new_rows_are_read(tmp_path, monkeypatch):
    record = Written(tmp_path)
    record.begin("none")
    for _ in range(5):
        record.chunk("none")
    watched, asked = Watched(tmp_path), []
    read = Following.rows

    def counted(self, group, node, variables, first, last, **how):
        asked.append((node, first, last))
        return read(self, group, node, variables, first, last, **how)

    monkeypatch.setattr(Following, "rows", counted)
    watched.update()
    assert ("train", 0, 5 * CHUNK) in asked
    asked.clear()
    watched.update()
    assert asked == []  # the manifest is as it was
    record.chunk("none")
    watched.update()
    assert ("train", 5 * CHUNK, 6 * CHUNK) in asked and ("evaluation", 5, 6) in asked
    assert [span for node, *span in asked if node == "reference"] == [[5, 6]]


@pytest.mark.parametrize("how", ["overwrite", "retrain"])
def test_a_record_that_starts_over_is_read_anew(tmp_path, how):
    record = Written(tmp_path)
    record.begin("none")
    for _ in range(3):
        record.chunk("none")
    watched = Watched(tmp_path)
    assert by_norm(watched.update())["none"].step == 3 * CHUNK
    if how == "overwrite":
        (tmp_path / "manifest.json").unlink()
        shutil.rmtree(tmp_path / "records")
        record = Written(tmp_path)
    record.loss += 100.0
    record.begin("none")
    # As far as before or further: the number of rows does not give it away.
    for _ in range(4):
        record.chunk("none")
    state = watched.update()
    group = by_norm(state)["none"]
    assert group.step == 4 * CHUNK and state.replaced == 1
    assert np.nanmin(group.settings[0].losses) > 90


def test_a_record_taken_away_is_waited_for(tmp_path):
    record = Written(tmp_path / "x")
    record.begin("none")
    record.chunk("none")
    watched = Watched(tmp_path / "x")
    assert watched.update().phase == "running"
    shutil.rmtree(tmp_path / "x")
    assert watched.update().phase == "absent"


def test_a_group_that_vanishes_while_it_is_read_comes_later(tmp_path):
    record = Written(tmp_path)
    record.begin("none")
    record.chunk("none")
    group = tmp_path / "records" / "norm=none,depth=2"
    group.rename(tmp_path / "away")
    watched = Watched(tmp_path)
    assert by_norm(watched.update())["none"].settings == ()
    (tmp_path / "away").rename(group)
    assert by_norm(watched.update())["none"].step == CHUNK


def test_a_dead_writer_is_told_from_a_slow_one(tmp_path):
    record = Written(tmp_path)
    record.begin("none")
    record.chunk("none")
    assert Watched(tmp_path).update().phase == "running"
    aged(tmp_path, 2 * ASK_AFTER_S)
    state = Watched(tmp_path).update()
    assert state.phase == "dead" and "the same `ici run` goes on" in headline(state)
    with sole_writer(tmp_path):
        assert is_held(tmp_path) is True
        assert Watched(tmp_path).update().phase == "running"
        aged(tmp_path, 2 * SILENT_AFTER_S)
        state = Watched(tmp_path).update()
        assert state.phase == "silent" and "10 min" in headline(state)
    assert is_held(tmp_path) is False
    # Asking has left the lock free.
    with sole_writer(tmp_path):
        pass


def test_a_failed_run_ends_the_watch(tmp_path, capsys):
    record = Written(tmp_path)
    record.begin("none")
    record.chunk("none")
    record.end("failed")
    assert main(["watch", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "failed" in out and "goes on" in out and f"{CHUNK}/{STEPS}" in out


@pytest.mark.parametrize("content", ["{", json.dumps({"schema": 1, "groups": {}})])
def test_what_is_no_record_of_this_version_is_refused(tmp_path, capsys, content):
    (tmp_path / "manifest.json").write_text(content)
    assert main(["watch", str(tmp_path), "--once"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [[], ["a", "b"], ["a", "--onec"], ["a", "--every", "0"], ["a", "--every", "x"]]
)
def test_wrong_words_are_one_line(words, capsys):
    assert main(["watch", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_is_no_record(tmp_path, capsys):
    (tmp_path / "x").write_text("")
    assert main(["watch", str(tmp_path / "x"), "--once"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_once_into_a_pipe_is_plain_and_whole(tmp_path, capsys):
    record = Written(tmp_path)
    record.diverged_at[0] = 5
    record.all()
    assert main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "done" in out and "mean shift at head" in out
    rows = [line.split() for line in out.splitlines()]
    assert sum(row[:1] == ["none"] for row in rows) == 3  # the group and two learning rates
    assert run_names("none")[0] in out


def test_once_without_a_record_says_so(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "later"), "--once"]) == 0
    assert "no record there yet" in capsys.readouterr().out


EXPERIMENT = """
import ici

experiment = ici.Experiment(
    name="tiny",
    data="synthetic",
    model=ici.MLPConfig(width=4),
    norm=("none",),
    depth=(1,),
    lr=(1e-2,),
    seed=(0, 1),
    steps=20,
    batch_size=8,
    probe=ici.Probe(every=5),
    reference_every=10,
    eval_every=10,
)
"""


@pytest.mark.slow
def test_a_fresh_run_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    assert main(["run", "tiny.py", "--no-figures"]) == 0
    capsys.readouterr()
    assert main(["watch", "runs/tiny", "--once"]) == 0
    out = capsys.readouterr().out
    assert "runs/tiny (tiny): done" in out and "20/20" in out
    assert main(["watch", "runs/tiny"]) == 0  # and ends by itself
    assert "done" in capsys.readouterr().out


def test_ctrl_c_ends_it_quietly(tmp_path):
    record = Written(tmp_path)
    record.begin("none")
    record.chunk("none")
    command = [sys.executable, "-m", "ici.cli", "watch", str(tmp_path), "--every", "0.1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and "running" in process.stdout.readline()
        said = None
        for _ in range(10):
            # Python loses an interrupt that comes while it collects garbage: people press again.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                _, said = process.communicate(timeout=5)
                break
        process.kill()
    assert process.returncode == 0 and said == ""
