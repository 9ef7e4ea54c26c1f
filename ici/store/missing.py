"""Chunks that a record says were written and that are not there: Zarr reads them as NaN."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ici.store.places import Place, names_below


class MissingChunkError(Exception):
    """A committed chunk is gone."""


class Committed:
    """Which chunks of one array must be there.

    Args:
      folder: of the array.
      chunks: shape of a chunk.
      axis: of the steps.
      n_rows: how many rows along it were written, all of each.
      n_rows_now: the same as the record says it at this moment. Whoever goes on with a record cuts
        it first, and a reader may have opened it before.
    """

    def __init__(
        self,
        folder: Place,
        chunks: Sequence[int],
        axis: int,
        n_rows: int,
        n_rows_now: Callable[[], int],
    ):
        self.folder = folder
        self.chunks = tuple(chunks)
        self.axis = axis
        self.n_rows = n_rows
        self.n_rows_now = n_rows_now
        self._seen: set[str] = set()

    def check(self, key: Sequence[Any], shape: Sequence[int]) -> None:
        """Raises `MissingChunkError` where a chunk of what `key` takes of the array is gone."""
        numbers = [
            np.unique(np.atleast_1d(np.arange(size)[at]) // chunk)
            for at, size, chunk in zip(key, shape, self.chunks, strict=True)
        ]
        gone = self._gone(numbers, self.n_rows)
        if gone:
            gone = self._gone(numbers, min(self.n_rows, self.n_rows_now()))
        if gone:
            are = "is" if len(gone) == 1 else "are"
            raise MissingChunkError(f"{len(gone)} of its chunks {are} gone, {gone[0]}")

    def _gone(self, numbers: list[np.ndarray], n_rows: int) -> list[str]:
        along = list(numbers)
        along[self.axis] = along[self.axis][along[self.axis] * self.chunks[self.axis] < n_rows]
        wanted = ["/".join(["c", *map(str, at)]) for at in itertools.product(*along)]
        unseen = [name for name in wanted if name not in self._seen]
        there = names_below(self.folder, unseen)
        self._seen |= there
        return [name for name in unseen if name not in there]
