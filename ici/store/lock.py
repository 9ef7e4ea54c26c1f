"""One writer per record."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from ici.errors import InputError
from ici.store.places import Place, RemotePath
from ici.store.remote_lock import beating, is_beating

LOCK = ".ici.lock"


@contextlib.contextmanager
def sole_writer(folder: Place, lock: str = LOCK) -> Iterator[None]:
    """Holds `folder` for this process; the lock ends with the process, however it ends.

    Raises:
      InputError: another process holds it.
    """
    if isinstance(folder, RemotePath):
        with beating(folder / lock):
            yield
        return
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / lock, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            writer = file.read().strip() or "unknown"
            raise InputError(
                f"{folder} is being written by another run (process {writer}): wait for it, or "
                "choose another --out."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def sole_writer_of_group(folder: Place, group: str, sent: bool, wait_s: float) -> Iterator[bool]:
    """Holds one group of the record in `folder`, whose own lock this process or its driver holds.

    Gives whether there was a lock to take: then the group may have gone on until now.

    Tasks of a cluster may outlive the driver that sent them by some seconds: what they still write
    must not meet what goes on instead.

    Args:
      folder: of the record.
      group: its name.
      sent: whether this process is such a task; others look only where one has been.
      wait_s: how long to wait for the one before to end.

    Raises:
      InputError: it is still there after `wait_s`.
    """
    lock = f".ici.{group}.lock"
    if not sent and not (folder / lock).exists():
        yield False
        return
    end_s = time.monotonic() + wait_s
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(sole_writer(folder, lock))
                break
            except InputError:
                if time.monotonic() > end_s:
                    raise
            time.sleep(0.2)
        yield True


def is_held(folder: Place) -> bool | None:
    """Whether a process is writing the record in `folder`; None where that cannot be told.

    Takes the lock for an instant to find out: ask only of a record that seems left alone.
    """
    if isinstance(folder, RemotePath):
        return is_beating(folder / LOCK)
    try:
        import fcntl

        with open(folder / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return None
