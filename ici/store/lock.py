"""One writer per record."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ici.errors import InputError
from ici.store.places import Place, RemotePath
from ici.store.remote_lock import beating, is_beating

LOCK = ".ici.lock"


@contextlib.contextmanager
def sole_writer(folder: Place) -> Iterator[None]:
    """Holds `folder` for this process; the lock ends with the process, however it ends.

    Raises:
      InputError: another process holds it.
    """
    if isinstance(folder, RemotePath):
        with beating(folder / LOCK):
            yield
        return
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+") as file:
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
