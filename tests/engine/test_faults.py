"""What disks, clocks, data and memory may do to a run, and what the user is told."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import CheckpointManager
from test_checkpoint import flip
from test_run import arrays, experiment

import ici
from ici.cli import main
from ici.data.loader import Loader
from ici.data.reader import Reader, read
from ici.engine.checkpoint import FOLDER
from ici.engine.memory import is_out_of_memory
from ici.store.manifest import Manifest
from ici.store.unwritable import UnwritableError
from ici.store.writer import GroupWriter

NORM = "norm=none,depth=2"


def one_group(**changes):
    return experiment(**({"norm": ("none",), "lr": (1e-2,), "steps": 30} | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return ici.run(one_group(), tmp_path_factory.mktemp("whole") / "out")


def digest(results):
    return results.manifest.groups[NORM].state_digest


FULL = "RESOURCE_EXHAUSTED: Error writing local file: [OS error 28: ENOSPC No space left on device]"


@pytest.mark.parametrize("when", ["at the save", "behind it", "in the record"])
def test_a_full_disk_is_told_by_path_and_room(whole, tmp_path, monkeypatch, when, capfd):
    out, calls = tmp_path / "out", []
    real = {
        "at the save": (CheckpointManager, "save"),
        "behind it": (CheckpointManager, "wait_until_finished"),
        "in the record": (GroupWriter, "commit"),
    }
    owner, name = real[when]
    honest = getattr(owner, name)

    def full(self, *args, **kwargs):
        calls.append(name)
        if len(calls) >= 3 or when == "behind it":
            half = out / FOLDER / NORM / "20.orbax-checkpoint-tmp"
            half.mkdir(exist_ok=True)
            raise OSError(errno.ENOSPC, "No space left") if len(calls) % 2 else ValueError(FULL)
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UnwritableError, match=r"out cannot be written .*MiB free.*: make room"):
        ici.run(one_group(), out, checkpoint_every_s=0)
    monkeypatch.undo()
    assert Manifest.read(out).status == "failed"
    assert not [path for path in (out / FOLDER / NORM).iterdir() if "tmp" in path.name]
    assert "Traceback" not in capfd.readouterr().err
    assert digest(ici.run(one_group(), out)) == digest(whole)


@pytest.mark.slow
def test_a_disk_that_really_fills_up(whole, tmp_path):
    """A file system of its own, too small for the checkpoints."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        ballast = small / "ballast"
        ballast.write_bytes(bytes(150_000))
        with pytest.raises(ici.InputError, match="cannot be written|free: wanted more space"):
            ici.run(one_group(), small / "out", checkpoint_every_s=0, keep_checkpoints=9)
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        assert digest(ici.run(one_group(), small / "out")) == digest(whole)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_full_disk_is_not_memory_that_ran_out():
    assert not is_out_of_memory(ValueError(FULL))
    assert is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))


@pytest.mark.parametrize("leap_s", [10**5, -(10**5)])
def test_a_clock_that_jumps_in_a_save_changes_nothing(whole, tmp_path, monkeypatch, leap_s):
    honest, begun = time.time, time.monotonic()

    def jumping():
        return honest() + leap_s * ((time.monotonic() - begun) * 20 // 1 % 2)

    monkeypatch.setattr(time, "time", jumping)
    assert digest(ici.run(one_group(), tmp_path / "out", checkpoint_every_s=0)) == digest(whole)


def test_a_clock_that_leaps_at_every_look_changes_nothing(whole, tmp_path, monkeypatch):
    """Whatever Orbax waits for, by its clock it has waited for longer than five minutes."""
    honest, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: honest() + 1000 * next(looks))
    assert digest(ici.run(one_group(), tmp_path / "out", checkpoint_every_s=0)) == digest(whole)


@pytest.mark.parametrize("name", ["a[1]", "what?", "all*", "back\\slash"])
def test_a_path_that_orbax_would_not_find_again_is_refused(tmp_path, name):
    with pytest.raises(ici.InputError, match=r"could not be found again there"):
        ici.run(one_group(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_path_with_spaces_and_letters_of_the_world(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    out = tmp_path / "mes expériences (été) 実験 #1 'x' %20"

    def stop(progress):
        if progress.step == 20:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ici.run(one_group(), out, on_progress=stop)
    assert digest(ici.run(one_group(), out)) == digest(whole)


def test_a_damaged_chunk_of_a_record_is_named(whole, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(whole.path, out)
    chunks = sorted((out / "records" / NORM / "train" / "loss" / "c").rglob("*"))
    flip(out / "records" / NORM / "train" / "loss", max(chunks, key=lambda p: p.is_file()).name)
    with pytest.raises(ici.InputError, match=r"train/loss is damaged .*--restart"):
        ici.open(out).train["loss"].values  # noqa: B018
    assert main(["report", str(out)]) == 2
    err = capfd.readouterr().err
    assert "train/loss is damaged" in err and "Traceback" not in err
    (out / "records" / NORM / "train" / "zarr.json").write_text("{")
    with pytest.raises(ici.InputError, match="train is damaged"):
        ici.open(out).train  # noqa: B018
    (out / "records" / f"{NORM}.json").write_text("{")
    with pytest.raises(ici.InputError, match=r"none,depth=2.json is damaged"):
        ici.open(out)


class Sticky:
    """Training data that answer for a while."""

    n_bytes = 10**6

    def __init__(self, good: int, then):
        self.good, self.then = good, then

    def __len__(self):
        return 96

    def take(self, ids):
        self.good -= 1
        if self.good < 0:
            self.then()
        return np.zeros((*ids.shape, 6), np.float32), np.zeros(ids.shape, np.int32)


def test_a_source_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setenv("ICI_DATA_TIMEOUT_S", "0.3")
    monkeypatch.setattr("ici.data.loader.CLOSE_S", 0.2)
    stuck = threading.Event()
    loader = Loader(Sticky(1, stuck.wait), 16, (0,), prefetch=1)  # pyright: ignore[reportArgumentType]
    loader.chunk(0, 5)
    with pytest.raises(ici.InputError, match=r"source of the training data \(Sticky\) gave no exa"):
        loader.chunk(5, 5)
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 1  # nobody waits for ever
    stuck.set()


def test_a_source_that_dies_says_so():
    def die():
        raise SystemExit("a worker went down")

    loader = Loader(Sticky(0, die), 16, (0,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SystemExit, match="a worker went down"):
        loader.chunk(0, 5)
    loader.close()


def test_the_source_s_own_timeout_is_the_source_s():
    reader = Reader("test")

    def slow():
        raise TimeoutError("the server's")

    with pytest.raises(TimeoutError, match="the server's"):
        read(reader.submit(slow), 5, "it")
    reader.close(1)


def test_memory_that_ends_while_data_load_is_told(tmp_path, monkeypatch):
    def load(self):
        raise MemoryError("cannot allocate 9 TiB")

    data = arrays()
    monkeypatch.setattr(type(data), "load", load)
    with pytest.raises(ici.InputError, match=r"memory ran out while Arrays loaded .*9 TiB"):
        ici.run(one_group(data=data), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("when", ["compiled", "run"])
def test_memory_that_runs_out_names_what_to_turn(tmp_path, monkeypatch, when):
    from ici.engine.fleet import Fleet

    def out(self, *args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")

    monkeypatch.setattr(Fleet, "_compile" if when == "compiled" else "train", out)
    with pytest.raises(ici.InputError, match=r"memory ran out .*lane_width.*batch.*remat"):
        ici.run(one_group(), tmp_path / "out")
    assert Manifest.read(tmp_path / "out").status == "failed"


def test_one_lane_without_numbers_leaves_the_others_alone(whole, tmp_path):
    """The lane beside it is bit for bit what it is alone."""
    mixed = ici.run(one_group(lr=(1e-2, 1e30), steps=30), tmp_path / "out")
    at = mixed.runs["diverged_at"].sel(lr=1e30).values
    assert np.isfinite(at).all() and at.max() <= 2 and mixed.manifest.status == "done"
    for node in ("train", "probe", "reference", "evaluation"):
        of_mixed, alone = getattr(mixed, node), getattr(whole, node)
        for name in alone.data_vars:
            beside = of_mixed[name].sel(lr=1e-2).values
            np.testing.assert_array_equal(beside, alone[name].sel(lr=1e-2).values)


def test_every_test_that_the_page_of_faults_names_is_there():
    root = Path(__file__).resolve().parents[2]
    rows = [r for r in (root / "docs" / "faults.md").read_text().splitlines() if r[:2] == "| "][2:]
    assert len(rows) > 30
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (root / file).read_text(), test


def test_a_damaged_manifest_is_refused_and_left_alone(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole.path, out)
    half = (out / "manifest.json").read_text()[:100]
    (out / "manifest.json").write_text(half)
    for opened in (lambda: ici.run(one_group(), out), lambda: ici.open(out)):
        with pytest.raises(ici.InputError, match=r"manifest\.json is damaged .*: restore it"):
            opened()
    assert (out / "manifest.json").read_text() == half
    assert (out / "records" / f"{NORM}.json").exists()
