"""A run that was stopped, however, and gone on with is the run that was never stopped."""

from __future__ import annotations

import errno
import os
import signal

import numpy as np
import pytest
from test_checkpoint import flip
from test_run import arrays, experiment

import ici
from ici.engine.checkpoint import FOLDER
from ici.errors import Preempted
from ici.store.manifest import Manifest

NODES = ("train", "probe", "reference", "evaluation", "runs")
SETTINGS = {
    "resident": {},
    "streamed": {"stream": True},
    # One run diverges at once, others meet their target on the way: lanes are repacked.
    "repacked": {"lr": (1e-3, 3e-1, 1e6), "target_loss": 0.3, "stop_at_target": True},
    "measured": {"measure": ("sharpness@20",), "ema_decay": 0.9},
}
NORM, BATCH = "norm=none,depth=2", "norm=batch,depth=2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by setting."""
    done = {}

    def of(name):
        if name not in done:
            done[name] = ici.run(
                experiment(**SETTINGS[name]), tmp_path_factory.mktemp("whole") / name
            )
        return done[name]

    return of


def final_digests(results):
    return {name: entry.state_digest for name, entry in results.manifest.groups.items()}


def assert_same(results, other):
    assert final_digests(results) == final_digests(other)
    assert all(final_digests(results).values())
    for node in NODES:
        assert getattr(results, node).identical(getattr(other, node)), node


def stopping(norm, step, how):
    """An `on_progress` that stops a run, once."""
    seen = []

    def at(progress):
        seen.append((progress.norm, progress.step))
        if (progress.norm, progress.step) == (norm, step):
            how()

    return at, seen


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    import time

    time.sleep(0.2)  # until the watching thread has seen it


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_notice_saves_and_the_same_call_goes_on(whole, tmp_path, name):
    out = tmp_path / "out"
    at, seen = stopping("batch", 20, terminate)
    with pytest.raises(Preempted, match="step 30"):
        ici.run(experiment(**SETTINGS[name]), out, on_progress=at)
    assert Manifest.read(out).status == "preempted" and seen[-1] == ("batch", 30)
    at, seen = stopping("", 0, terminate)
    resumed = ici.run(experiment(**SETTINGS[name]), out, on_progress=at)
    assert seen[0] == ("batch", 40)
    assert_same(resumed, whole(name))


@pytest.mark.parametrize("every", [0, pytest.param(None, marks=pytest.mark.slow)])
def test_an_error_of_the_caller_is_raised_behind_a_save(whole, tmp_path, every):
    out = tmp_path / "out"

    def fail():
        raise RuntimeError("the hook fails")

    at, seen = stopping("none", 20, fail)
    with pytest.raises(RuntimeError, match="the hook fails"):
        ici.run(experiment(), out, on_progress=at, checkpoint_every_s=every)
    manifest = Manifest.read(out)
    assert manifest.status == "failed" and manifest.error == "RuntimeError: the hook fails"
    assert (out / FOLDER / NORM / "30").exists()
    assert_same(ici.run(experiment(), out), whole("resident"))


@pytest.mark.slow
def test_on_other_devices_it_goes_on_the_same(whole, tmp_path):
    out = tmp_path / "out"
    at, _ = stopping("none", 20, terminate)
    with pytest.raises(Preempted):
        ici.run(experiment(devices=2), out, on_progress=at)
    assert_same(ici.run(experiment(devices=3), out), whole("resident"))


@pytest.mark.slow
def test_fewer_devices_keep_the_lanes_that_ended(whole, tmp_path):
    # Those that still run would fit into half of the slots.
    out, many_ended = tmp_path / "out", {**SETTINGS["repacked"], "devices": 4}
    at, _ = stopping("none", 30, terminate)
    with pytest.raises(Preempted):
        ici.run(experiment(**many_ended), out, on_progress=at)
    resumed = ici.run(experiment(**(many_ended | {"devices": 2})), out)
    assert_same(resumed, whole("repacked"))


@pytest.mark.slow
def test_rows_behind_the_checkpoint_are_cut(whole, tmp_path):
    out = tmp_path / "out"
    at, _ = stopping("none", 20, terminate)
    with pytest.raises(Preempted):
        ici.run(experiment(), out, on_progress=at, checkpoint_every_s=0, keep_checkpoints=9)
    assert ici.open(out).manifest.groups[NORM].rows["train"] == 30
    flip(out / FOLDER / NORM / "30" / "about", "metadata")
    at, seen = stopping("none", 30, lambda: lost.append(ici.open(out).train["loss"].size))
    lost = []
    with pytest.warns(RuntimeWarning, match="step 30: .*step 20"):
        resumed = ici.run(experiment(), out, on_progress=at)
    assert seen[0] == ("none", 30) and lost
    assert_same(resumed, whole("resident"))


@pytest.mark.slow
def test_no_valid_checkpoint_stops_and_restart_starts_again(whole, tmp_path):
    out = tmp_path / "out"
    at, _ = stopping("none", 20, terminate)
    with pytest.raises(Preempted):
        ici.run(experiment(), out, on_progress=at)
    for step in (out / FOLDER / NORM).iterdir():
        flip(step / "about", "metadata")
    with pytest.raises(ici.InputError, match="every checkpoint.*--restart"):
        ici.run(experiment(), out)
    with pytest.raises(ici.InputError, match="another experiment.*--fork"):
        ici.run(experiment(lr=(0.1,)), out, restart=True)
    assert_same(ici.run(experiment(), out, restart=True), whole("resident"))


@pytest.mark.slow
def test_a_full_disk_at_a_save_is_told_and_what_was_saved_serves(whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    from orbax.checkpoint import CheckpointManager

    real, calls = CheckpointManager.save, []

    def full(self, step, *args, **kwargs):
        calls.append(step)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.directory))
        return real(self, step, *args, **kwargs)

    monkeypatch.setattr(CheckpointManager, "save", full)
    with pytest.raises(ici.InputError, match="No space left.*free"):
        ici.run(experiment(), out, checkpoint_every_s=0)
    assert Manifest.read(out).status == "failed"
    monkeypatch.undo()
    assert_same(ici.run(experiment(), out), whole("resident"))


def test_a_finished_record_is_left_alone(whole):
    results = whole("resident")
    times = {p: p.stat().st_mtime_ns for p in results.path.rglob("*") if p.is_file()}
    ici.run(experiment(), results.path)
    assert times == {p: p.stat().st_mtime_ns for p in results.path.rglob("*") if p.is_file()}
    last = {path.name for path in (results.path / FOLDER / BATCH).iterdir()}
    assert last == {"50"}


def test_resume_wants_a_record(tmp_path):
    with pytest.raises(ici.InputError, match="no record to go on with"):
        ici.run(experiment(), tmp_path / "new", resume=True)


def test_all_diverged_is_a_status_of_its_own(tmp_path):
    results = ici.run(experiment(lr=(1e9,), norm=("none",), optimizer="sgd"), tmp_path / "out")
    assert results.manifest.status == "diverged" and results.complete
    assert np.isfinite(results.runs["diverged_at"]).all()


def test_memory_that_ran_out_names_what_to_turn(tmp_path, monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr("ici.engine.fleet.Fleet.train", out_of_memory)
    with pytest.raises(ici.InputError, match=r"RESOURCE_EXH.*lane_width.*accumulat.*remat"):
        ici.run(experiment(data=arrays()), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_every_s": -1}, "checkpoint_every_s is -1: wanted 0 or more"),
        ({"checkpoint_every_s": float("nan")}, "checkpoint_every_s is nan"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0: wanted 1 or more"),
        ({"grace_s": -3}, "grace_s is -3"),
    ],
)
def test_cadences_that_cannot_be(tmp_path, settings, message):
    with pytest.raises(ici.InputError, match=message):
        ici.run(experiment(), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_kill_before_the_first_save_is_on_disk_begins_again(whole, tmp_path, monkeypatch):
    """The record says nothing of a save that may never come."""
    from orbax.checkpoint import CheckpointManager

    out = tmp_path / "out"
    monkeypatch.setattr(CheckpointManager, "save", lambda *args, **kwargs: True)  # never arrives

    def killed(progress):
        if progress.step == 20:  # behind the first save, before the second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ici.run(experiment(norm=("none",)), out, on_progress=killed, checkpoint_every_s=0)
    assert ici.open(out).manifest.groups[NORM].rows["train"]
    monkeypatch.undo()
    again = ici.run(experiment(norm=("none",)), out)
    expected = whole("resident").manifest.groups[NORM].state_digest
    assert again.manifest.groups[NORM].state_digest == expected


@pytest.mark.slow
def test_checkpoints_that_are_gone_are_not_passed_over(tmp_path):
    import shutil

    out = tmp_path / "out"
    at, _ = stopping("none", 20, terminate)
    with pytest.raises(Preempted):
        ici.run(experiment(), out, on_progress=at)
    shutil.rmtree(out / FOLDER)
    with pytest.raises(ici.InputError, match=r"no checkpoint, and step 30 was saved.*--restart"):
        ici.run(experiment(), out)
