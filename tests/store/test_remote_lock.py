"""One writer per remote record, told without comparing clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from ici.errors import InputError
from ici.store.lock import LOCK, is_held, sole_writer
from ici.store.places import place
from ici.store.remote_lock import MISSED, beating, is_beating

BEAT_S = 0.05


@pytest.fixture(params=["memory", "s3"])
def lock(request):
    return place(request.getfixturevalue({"s3": "bucket"}.get(request.param, request.param))) / LOCK


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("ici.store.lock.beating", lambda lock: beating(lock, BEAT_S))


def left(lock, host="elsewhere", pid=1, **more):
    lock.write_text(json.dumps({"token": "t", "host": host, "pid": pid, "count": 3} | more))


def gone_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_it_beats_while_held_and_is_gone_after(lock):
    with beating(lock, BEAT_S):
        first = json.loads(lock.read_text())
        assert first["pid"] == os.getpid() and is_beating(lock) is True
        time.sleep(10 * BEAT_S)
        assert json.loads(lock.read_text())["count"] > first["count"]
    assert not lock.exists() and is_beating(lock) is False


def test_a_second_writer_is_refused_and_told_of_the_first(lock):
    with beating(lock, BEAT_S):
        before = time.monotonic()
        with pytest.raises(InputError, match=f"process {os.getpid()} on "), beating(lock, BEAT_S):
            pass
        assert time.monotonic() - before < MISSED * BEAT_S + 5
        assert lock.exists()


def test_an_exception_frees_it(lock):
    with pytest.raises(RuntimeError), beating(lock, BEAT_S):
        raise RuntimeError
    with beating(lock, BEAT_S):
        pass


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_at_once(memory):
    import socket

    lock = place(memory) / LOCK
    left(lock, socket.gethostname(), gone_pid(), beat_s=1000.0, beat=time.time())
    assert is_beating(lock) is False
    before = time.monotonic()
    with beating(lock, BEAT_S):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("beat", [0.0, 1e12], ids=["old", "from the future"])
def test_a_lock_without_beats_is_taken_whatever_its_clock_says(memory, beat):
    lock = place(memory) / LOCK
    left(lock, beat_s=BEAT_S, beat=beat)
    before = time.monotonic()
    with beating(lock, BEAT_S):
        assert time.monotonic() - before >= MISSED * BEAT_S


def test_a_lock_with_beats_is_kept_whatever_its_clock_says(memory):
    lock, ended = place(memory) / LOCK, threading.Event()

    def other():
        count = 0
        while not ended.wait(BEAT_S):
            left(lock, beat_s=BEAT_S, beat=0.0, count=(count := count + 1))

    left(lock, beat_s=BEAT_S, beat=0.0)
    holder = threading.Thread(target=other)
    holder.start()
    try:
        with pytest.raises(InputError, match="process 1 on elsewhere"), beating(lock, BEAT_S):
            pass
    finally:
        ended.set()
        holder.join()


def test_a_damaged_lock_is_taken_over(memory):
    lock = place(memory) / LOCK
    lock.write_text("{half")
    with beating(lock, BEAT_S):
        pass


def test_of_two_that_start_at_once_one_holds(memory):
    lock, ends, held = place(memory) / LOCK, [], []
    together = threading.Barrier(2)

    def start():
        together.wait()
        try:
            with beating(lock, 0.5):
                held.append(1)
                time.sleep(2)
            ends.append("held")
        except InputError:
            ends.append("refused")

    both = [threading.Thread(target=start) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert sorted(ends) == ["held", "refused"] and len(held) == 1


def test_one_whose_lock_was_replaced_at_once_does_not_start(memory, monkeypatch):
    lock = place(memory) / LOCK
    monkeypatch.setattr("ici.store.remote_lock.time.sleep", lambda seconds: left(lock))
    with pytest.raises(InputError, match="process 1 on elsewhere"), beating(lock, BEAT_S):
        pass


def test_a_holder_that_was_taken_for_gone_says_so(memory):
    lock = place(memory) / LOCK
    with pytest.warns(RuntimeWarning, match="took .* over"), beating(lock, BEAT_S):
        left(lock)
        time.sleep(3 * BEAT_S)
    assert json.loads(lock.read_text())["token"] == "t"  # not ours to remove


def test_records_use_it(memory, quick):
    folder = place(memory)
    assert is_held(folder) is False
    with sole_writer(folder):
        assert is_held(folder) is True
        with pytest.raises(InputError, match="being written by another run"), sole_writer(folder):
            pass
    assert is_held(folder) is False
