"""Processes that are killed, stopped and interrupted: what they leave goes on bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import killable
import pytest
from test_resume import assert_same

import ici
from ici.engine.checkpoint import FOLDER
from ici.errors import PREEMPTED
from ici.store.manifest import Manifest

CHILD = Path(killable.__file__)
# A start takes seconds. `ICI_TEST_KILLS=25` kills as often as one likes.
KILLS = int(os.environ.get("ICI_TEST_KILLS", "3"))
WITHIN_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def started(out: Path, kind: str = "resident", **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(CHILD), str(out), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, err = process.communicate(timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, err


def wait_for_chunks(process: subprocess.Popen[str], n: int) -> bool:
    """Until `n` chunks are reported; False where the process ended before."""
    assert process.stdout is not None
    return all(process.stdout.readline() for _ in range(n))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    done = {}

    def of(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp("whole") / kind
            done[kind] = ici.run(killable.experiment(kind), folder)
        return done[kind]

    return of


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_killed_at_random_times_it_ends_the_same(whole, tmp_path, kind):
    out, dice = tmp_path / "out", random.Random(0)
    kills = 0
    while kills < KILLS:
        process = started(out, kind)
        # Some are killed while they start and compile, some right behind a save, some between.
        alive = wait_for_chunks(process, dice.choice((0, 1, 1, 2, 3)))
        time.sleep(dice.random() * (3.0 if not kills % 3 else 0.1))
        if not alive or process.poll() is not None:
            code, err = ended(process)
            assert code == 0, err
            break
        process.kill()
        code, _ = ended(process)
        assert code == -signal.SIGKILL
        kills += 1
    code, err = ended(started(out, kind))
    assert code == 0, err
    assert kills >= min(KILLS, 3)
    assert_same(ici.open(out), whole(kind))
    litter = [p for p in (out / FOLDER).rglob("*") if "tmp" in p.name]
    assert not litter


@pytest.mark.parametrize(
    ("number", "when"), [(signal.SIGTERM, "compiling"), (signal.SIGINT, "training")]
)
def test_a_notice_ends_it_in_time_with_a_status_of_its_own(whole, tmp_path, when, number):
    out = tmp_path / "out"
    # A program that is found in the cache is not compiled.
    process = started(out, JAX_ENABLE_COMPILATION_CACHE=str(when == "training").lower())
    if when == "training":
        assert wait_for_chunks(process, 2)
    else:
        while not (out / "manifest.json").exists():
            time.sleep(0.01)
    asked = time.monotonic()
    process.send_signal(number)
    _, err = ended(process)
    assert time.monotonic() - asked < 30
    assert "Preempted" in err or process.returncode == PREEMPTED, err
    assert Manifest.read(out).status == "preempted"
    code, err = ended(started(out))
    assert code == 0, err
    assert_same(ici.open(out), whole("resident"))


def test_a_second_notice_ends_it_at_once(tmp_path):
    process = started(tmp_path / "out")
    assert wait_for_chunks(process, 1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    ended(process)
    assert time.monotonic() - asked < 5
    assert Manifest.read(tmp_path / "out").status == "preempted"


def test_the_second_of_two_writers_is_refused(whole, tmp_path):
    out = tmp_path / "out"
    process = started(out)
    try:
        assert wait_for_chunks(process, 1)
        with pytest.raises(ici.InputError, match=f"written by another run.*{process.pid}"):
            ici.run(killable.experiment("resident"), out)
    finally:
        process.kill()
        ended(process)
    # Its lock went with it.
    assert_same(ici.run(killable.experiment("resident"), out), whole("resident"))
