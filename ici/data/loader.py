"""Batches of examples read on the host, ahead of the steps that want them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from ici.data.dataset import Split, StreamedSplit
from ici.data.reader import Reader, read
from ici.data.sampler import batch_indices
from ici.errors import InputError

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]
# How long a source may take to give a chunk of steps: ICI_DATA_TIMEOUT_S, seconds.
PATIENCE_S = 600.0
CLOSE_S = 5.0


class Loader:
    """The training batches of several seeds: a function of (seed, step), with no iterator state.

    While a chunk of steps is in use, a thread reads the next ones, on the guess that they follow
    on; a wrong guess costs time, never correctness. At most `prefetch` + 2 chunks are in memory:
    `chunk_bytes` says how large one is.

    Attributes:
      waited_s: time that callers of `chunk` spent in it.
      busy_s: time that was spent reading, ahead or not.
    """

    def __init__(
        self,
        split: Split | StreamedSplit,
        batch_size: int,
        seeds: Sequence[int],
        n_train: int | None = None,
        process: tuple[int, int] = (0, 1),
        prefetch: int = 2,
        end_step: int | None = None,
    ):
        """`process` (index, count) is whose contiguous part of every batch is read; `n_train`
        restricts training to the first examples; nothing from `end_step` on is read ahead.

        Raises `InputError` for settings that make no batches.
        """
        index, count = process
        if not 0 <= index < count:
            raise InputError(f"process is {process}: wanted (index, count) with 0 <= index < count")
        if batch_size % count:
            raise InputError(
                f"batch_size is {batch_size} for {count} processes: wanted a multiple of {count}"
            )
        if not seeds:
            raise InputError("seeds is empty: wanted at least one")
        if prefetch < 0:
            raise InputError(f"prefetch is {prefetch}: wanted 0 or more chunks")
        self._n_train = len(split) if n_train is None else n_train
        if not 1 <= self._n_train <= len(split):
            raise InputError(f"n_train is {n_train}: wanted 1 to {len(split)}, the examples there")
        batch_indices(self._n_train, batch_size, min(seeds), 0, 0)
        self._split, self._batch_size, self._seeds = split, batch_size, tuple(seeds)
        self._prefetch, self._end_step = prefetch, end_step
        self._shard = slice(index * batch_size // count, (index + 1) * batch_size // count)
        self._ahead: dict[tuple[int, int], Future[Chunk]] = {}
        self._reader = Reader("ici-loader")
        self._patience_s = float(os.environ.get("ICI_DATA_TIMEOUT_S", PATIENCE_S))
        self._closed = False
        self._busy_lock = threading.Lock()
        self.waited_s = 0.0
        self.busy_s = 0.0

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chunk(self, first_step: int, n_steps: int) -> Chunk:
        """Examples of the steps from `first_step` on, K of them, for all S seeds.

        Returns inputs ``[S, K, B, ...]``, labels ``[S, K, B, ...]`` and the examples' numbers in
        the split, int32 ``[S, K, B]``, with B the part of this process. To be called from one
        thread. Raises `InputError` for a damaged file, also where it was met while reading ahead,
        and where nothing comes for ten minutes (ICI_DATA_TIMEOUT_S).
        """
        if self._closed:
            raise RuntimeError("the loader is closed")
        start_s = time.perf_counter()
        try:
            future = self._found(first_step, n_steps)
            guesses = self._guesses(first_step + n_steps, n_steps)
            self._drop_all_but(guesses)
            future = future or self._reader.submit(self._read, first_step, n_steps)
            what = f"the source of the training data ({type(self._split).__name__})"
            result = read(future, self._patience_s, what)
            for guess in guesses:
                if guess not in self._ahead:
                    self._ahead[guess] = self._reader.submit(self._read, *guess)
        finally:
            self.waited_s += time.perf_counter() - start_s
        inputs, labels, ids = result
        return inputs[:, :n_steps], labels[:, :n_steps], ids[:, :n_steps]

    def chunk_bytes(self, n_steps: int) -> int:
        """Bytes of a chunk of that many steps."""
        n = len(self._seeds) * n_steps * (self._shard.stop - self._shard.start)
        per_example = self._split.n_bytes / max(1, len(self._split))
        return round(n * (per_example + np.dtype(np.int32).itemsize))

    def close(self) -> None:
        """Ends the thread; what it had read is dropped."""
        self._closed = True
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()
        self._reader.close(CLOSE_S)

    def _found(self, first_step: int, n_steps: int) -> Future[Chunk] | None:
        """What was read ahead from that step on, if it is long enough."""
        for first, n in self._ahead:
            if first == first_step and n >= n_steps:
                return self._ahead.pop((first, n))
        return None

    def _guesses(self, first_step: int, n_steps: int) -> list[tuple[int, int]]:
        """The chunks that are likely to be asked for next: first step and number of steps."""
        firsts = [first_step + i * n_steps for i in range(self._prefetch if n_steps else 0)]
        end = self._end_step
        sizes = [n_steps if end is None else min(n_steps, end - first) for first in firsts]
        return [guess for guess in zip(firsts, sizes, strict=True) if guess[1] > 0]

    def _drop_all_but(self, guesses: list[tuple[int, int]]) -> None:
        """Forgets wrong guesses; raises what went wrong in any of them, or in one that is done."""
        for key, future in list(self._ahead.items()):
            is_wrong = key not in guesses
            has_result = not future.cancel() if is_wrong else future.done()
            if has_result and (error := future.exception()) is not None:
                del self._ahead[key]
                raise error
            if is_wrong:
                del self._ahead[key]

    def _read(self, first_step: int, n_steps: int) -> Chunk:
        start_s = time.perf_counter()
        each = (
            batch_indices(self._n_train, self._batch_size, seed, first_step, n_steps)
            for seed in self._seeds
        )
        ids = np.ascontiguousarray(np.stack(list(each))[:, :, self._shard])
        if isinstance(self._split, StreamedSplit):
            # What several seeds show in these steps is read and decoded once.
            once, where = np.unique(ids, return_inverse=True)
            inputs, labels = self._split.take(once)
            if len(once) < ids.size or not np.array_equal(once, ids.ravel()):
                inputs, labels = inputs[where.ravel()], labels[where.ravel()]
            inputs = inputs.reshape(*ids.shape, *inputs.shape[1:])
            labels = labels.reshape(*ids.shape, *labels.shape[1:])
        else:
            inputs, labels = self._split.take(ids)
        with self._busy_lock:
            self.busy_s += time.perf_counter() - start_s
        return inputs, labels, ids
