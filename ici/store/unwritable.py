"""Writes that failed: a disk that is full, or takes no more."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ici.errors import InputError
from ici.store.places import Place, free_bytes

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# What TensorStore makes of the same: its errors carry no number.
_SIGNS = ("ENOSPC", "EDQUOT", "EROFS", "No space left", "Disk quota exceeded", "Read-only file")


class UnwritableError(InputError):
    """The folder of a record takes no more writes."""


def is_unwritable(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is that of a write."""
    return any(
        (isinstance(each, OSError) and each.errno in _NUMBERS)
        or any(sign in str(each) for sign in _SIGNS)
        for each in _origins(error)
    )


def unwritable(folder: Place, error: BaseException) -> UnwritableError:
    """What was being written where, and how much room is left."""
    free = free_bytes(folder)
    room = "" if free is None else f", {free / 2**20:.0f} MiB free"
    seen = str(error).strip().splitlines()
    return UnwritableError(
        f"{folder} cannot be written ({seen[0][:200] if seen else type(error).__name__}{room}): "
        "make room or make it writable; the same command goes on from the newest checkpoint."
    )


def _origins(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
