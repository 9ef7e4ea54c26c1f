"""One writer per record where there are no file locks: an object that its holder keeps rewriting.

Whether a holder lives is told by watching whether its beats go on, never by comparing clocks: those
of two machines differ, and either may jump.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

from ici.errors import InputError
from ici.store.places import RemotePath

BEAT_S = 5.0
# A holder that misses this many beats is taken for gone.
MISSED = 6


@contextlib.contextmanager
def beating(lock: RemotePath, beat_s: float = BEAT_S) -> Iterator[None]:
    """Holds `lock` for this process, and removes it at the end.

    A lock that was left behind is taken over: at once if its process ran on this machine and is
    gone, else after `MISSED` beats without any. Two that start within the same instant are told
    apart by reading back what was written.

    Raises:
      InputError: another process holds it.
    """
    _wait_for_stale(lock, beat_s)
    mine = {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time(),
    }
    beat = _Beat(lock, mine, beat_s)
    if not beat.take():
        raise _held(lock, _read(lock) or {})
    time.sleep(min(1.0, beat_s / 5))  # for one who looked before this was written
    found = _read(lock)
    if found is None or found.get("token") != mine["token"]:
        raise _held(lock, found or {})
    beat.start()
    try:
        yield
    finally:
        beat.end()


def is_beating(lock: RemotePath) -> bool | None:
    """Whether a writer holds `lock`, as far as the time in it tells; None where it cannot be read.

    For display: clocks may differ. Nothing is taken over on account of it.
    """
    try:
        found = _read(lock)
    except Exception:  # of the store
        return None
    if found is None or _is_gone(found):
        return False
    beat_s = float(found.get("beat_s", BEAT_S))
    return abs(time.time() - float(found.get("beat", 0.0))) < 4 * MISSED * beat_s


class _Beat(threading.Thread):
    def __init__(self, lock: RemotePath, mine: dict[str, Any], beat_s: float):
        super().__init__(name="lock", daemon=True)
        self.lock, self.mine, self.beat_s = lock, mine, beat_s
        self.count, self.ended = 0, threading.Event()

    def take(self) -> bool:
        self.lock.unlink(missing_ok=True)  # of one that is gone
        return self.lock.create(self.about())

    def about(self) -> str:
        self.count += 1
        about = self.mine | {"count": self.count, "beat": time.time(), "beat_s": self.beat_s}
        return json.dumps(about)

    def is_mine(self) -> bool:
        found = _read(self.lock)
        return found is None or found.get("token") == self.mine["token"]

    def run(self) -> None:
        while not self.ended.wait(self.beat_s):
            # A store that is away for a moment is no reason to stop: the next beat tries again.
            with contextlib.suppress(Exception):
                if not self.is_mine():
                    return
                self.lock.write_text(self.about())

    def end(self) -> None:
        self.ended.set()
        self.join()
        if self.is_mine():
            self.lock.unlink(missing_ok=True)
        else:
            warnings.warn(
                f"another process took {self.lock} over while this one was writing: its beats "
                "did not reach the store; check the record.",
                RuntimeWarning,
                stacklevel=3,
            )


def _read(lock: RemotePath) -> dict[str, Any] | None:
    try:
        found = json.loads(lock.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _wait_for_stale(lock: RemotePath, beat_s: float) -> None:
    found = _read(lock)
    if found is None or _is_gone(found):
        return
    theirs_s = float(found.get("beat_s", beat_s))
    until = time.monotonic() + MISSED * theirs_s
    while time.monotonic() < until:
        time.sleep(theirs_s / 2)
        now = _read(lock)
        if now is None:
            return
        if now != found:
            raise _held(lock, now)


def _is_gone(found: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and does no longer."""
    if found.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(found["pid"]), 0)
    except ProcessLookupError:
        return True
    except (KeyError, ValueError, OSError):
        return False
    return False


def _held(lock: RemotePath, found: dict[str, Any]) -> InputError:
    holder = f"process {found.get('pid', 'unknown')} on {found.get('host', 'an unknown machine')}"
    return InputError(
        f"{lock.parent} is being written by another run ({holder}): wait for it, or choose "
        "another --out."
    )
