"""Real processes that train together over the loopback: their record, their ends, their return."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import many
import pytest
from test_resume import assert_same

import ici
from ici.errors import PREEMPTED
from ici.store.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The record of one process that nothing befalls."""
    return ici.run(replace(many.experiment, devices=1), tmp_path_factory.mktemp("whole") / "out")


def saved_step(out):
    """The newest step that is known to be on disk."""
    groups = Manifest.read(out).groups if (out / "manifest.json").exists() else {}
    return max((entry.saved_step or 0 for entry in groups.values()), default=0)


def running(out, n):
    """`n` processes that have gone on with the record in `out`, and saved since."""
    behind = saved_step(out)
    processes = many.started(out, n, "--checkpoint-every-s", "0")
    end = time.monotonic() + 120
    while saved_step(out) <= behind:
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            raise AssertionError(many.ended(processes, 1))
        time.sleep(0.02)
    return processes


def test_whatever_befalls_one_all_end_and_others_go_on_bit_for_bit(whole, tmp_path):
    out = tmp_path / "out"

    # A notice to one is one to all.
    processes = running(out, 2)
    processes[1].send_signal(signal.SIGTERM)
    for status, err in many.ended(processes):
        assert status == PREEMPTED, err
    assert Manifest.read(out).status == "preempted"

    # One of four is killed: the others notice, say who, and show where they were.
    processes = running(out, 4)
    processes[3].kill()
    told = many.ended(processes)
    assert [status for status, _ in told] == [PREEMPTED] * 3 + [-signal.SIGKILL], told
    assert "process 3 not heard of for 3 s: leaving; the same command on all" in told[0][1], told
    for _, err in told[:3]:
        assert "leaving; the same command on all goes on" in err, err
        assert "loop.py" in err, err  # where it was
    assert Manifest.read(out).status == "preempted"

    # The first of two is killed.
    processes = running(out, 2)
    processes[0].kill()
    told = many.ended(processes)
    assert [status for status, _ in told] == [-signal.SIGKILL, PREEMPTED], told
    assert "leaving; the same command on all" in told[1][1]

    # One of two hangs.
    processes = running(out, 2)
    processes[1].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert many.ended(processes[:1])[0][0] == PREEMPTED
    assert time.monotonic() - stopped < 10 * many.WATCHDOG_S
    many.ended([process for process in processes if process.kill() is None])

    # One process alone ends it.
    assert 0 < saved_step(out) < many.experiment.steps
    assert_same(ici.run(many.experiment, out), whole)


def test_a_batch_spread_over_processes_is_a_batch_on_devices(tmp_path):
    settings = ("--data-parallel", "2", "--stream", "True", "--steps", "40", "--lr", "1e-2")
    told = many.ended(many.started(tmp_path / "out", 2, *settings))
    assert [status for status, _ in told] == [0, 0], told
    alone = replace(many.experiment, data_parallel=2, devices=2, stream=True, steps=40, lr=(1e-2,))
    here = ici.run(alone, tmp_path / "here")
    # A sum over two devices is the same on either side of a wire.
    assert_same(ici.open(tmp_path / "out"), here)
    assert_same(ici.run(replace(alone, stream=False), tmp_path / "resident"), here)


def test_what_one_process_cannot_do_all_are_told(tmp_path):
    # The same port twice: another run, or a process 0 too many.
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    told = many.ended(many.started(tmp_path / "file" / "out", 2))
    assert [status for status, _ in told] == [2, 2], told
    assert all("is a file: wanted a folder" in err for _, err in told), told
    assert not out.exists()
