"""Notices to stop, where Python itself is busy elsewhere."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from ici.engine.signals import noticed
from ici.errors import PREEMPTED

# Sleeping in C, as a compiler would work: Python's own handlers wait for its end.
BUSY = """
import ctypes, sys
from ici.engine.signals import noticed
with noticed(float(sys.argv[1]), lambda: print("told", flush=True)):
    print("in", flush=True)
    left = 60
    while left:
        left = ctypes.CDLL(None).sleep(left)
"""


def ended(grace_s, *signals):
    """Seconds until a busy process ends after the signals, its status, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(grace_s)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        began = time.monotonic()
        for each in signals:
            process.send_signal(each)
            time.sleep(0.2)
        said = process.communicate(timeout=30)[0]
    finally:
        process.kill()
    return time.monotonic() - began, process.returncode, said


def test_the_grace_ends_what_does_not_end_itself():
    took_s, status, said = ended(1.0, signal.SIGTERM)
    assert 1.0 <= took_s < 20 and status == PREEMPTED and said == "told\n"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_one_ends_it_at_once(second):
    took_s, status, said = ended(50.0, signal.SIGTERM, second)
    assert took_s < 20 and status == PREEMPTED and said == "told\n"


def test_handlers_are_given_back():
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with noticed() as notice:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(500):
            if notice.requested:
                break
            time.sleep(0.01)
        assert notice.requested
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert not [t for t in threading.enumerate() if t.name == "ici-signals"]


def test_another_thread_takes_none():
    found = []

    def enter():
        with noticed() as notice:
            found.append(notice.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]
