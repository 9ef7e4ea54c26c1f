"""A stream of tokens on disk whose rows are read as they are needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ici.data.dataset import SEPARATOR, StreamedSplit
from ici.data.packing import Packing, row_starts, rows
from ici.errors import InputError

TOKENS = "train_tokens.npy"
STARTS = "train_starts.npy"

_CHUNK_TOKENS = 1 << 22


class TokenRows(StreamedSplit):
    """Rows [T] of a stream of tokens [L], which files in `directory` hold as memory-mapped arrays.

    `train_tokens.npy` is the stream; `train_starts.npy`, int64 [N + 1], is where each row begins,
    and is absent where every row begins right after `sequence_length` tokens. `take` gives what
    the same rows in memory would. The files must not shrink while they are open.

    Attributes:
      checksums: SHA-256 (hex) of each file by name; whoever opens the files has looked at them.
    """

    def __init__(self, directory: Path, sequence_length: int, checksums: dict[str, str]):
        """Raises `InputError` naming a file that cannot be read."""
        self.directory = directory
        self.sequence_length = sequence_length
        self.checksums = checksums
        self.example_shape = (sequence_length,)
        self.dtype = np.dtype(np.int32)
        facts = json.dumps([sequence_length, checksums], sort_keys=True)
        self.digest = hashlib.sha256(facts.encode()).hexdigest()
        self._stream = _mapped(directory / TOKENS)
        self._starts = _mapped(directory / STARTS) if STARTS in checksums else None
        n_rows = -(-len(self._stream) // sequence_length)
        self._n_rows = n_rows if self._starts is None else len(self._starts) - 1
        self.n_bytes = 2 * self._n_rows * sequence_length * self.dtype.itemsize

    def __len__(self) -> int:
        return self._n_rows

    def __repr__(self) -> str:
        return f"TokenRows({self.n_tokens} tokens, {len(self)} rows of {self.sequence_length})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself.
        return TokenRows, (self.directory, self.sequence_length, self.checksums)

    @property
    def n_tokens(self) -> int:
        """Tokens of the stream, separators included."""
        return len(self._stream)

    @functools.cached_property
    def n_documents(self) -> int:
        """Documents of the stream; counting them reads all of it."""
        cuts = range(0, self.n_tokens, _CHUNK_TOKENS)
        return sum(int((self._stream[i : i + _CHUNK_TOKENS] == SEPARATOR).sum()) for i in cuts)

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels int32 [..., T]; raises `IndexError` as an array does."""
        indices = np.asarray(indices)
        outside = (indices < -len(self)) | (indices >= len(self))
        if outside.any():
            raise IndexError(f"row {indices[outside][0]} of {len(self)}")
        indices = np.where(indices < 0, indices + len(self), indices).astype(np.int64)
        if self._starts is None:
            starts = indices * self.sequence_length
            ends = np.minimum(starts + self.sequence_length, self.n_tokens)
        else:
            starts, ends = self._starts[indices], self._starts[indices + 1]
        return rows(self._stream, starts, ends, self.sequence_length)


class TokenWriter:
    """Collects the stream of one split: in memory until it is too much, then in a file.

    `make_directory` is called, once, where a file is needed; used as a context, the writer removes
    that directory when an exception ends it. `stream` forces a file (True) or memory (False); None
    lets the size decide: a file where the rows would take more than `limit_bytes` of memory.
    Raises `InputError` where the file cannot be written.
    """

    def __init__(
        self,
        make_directory: Callable[[], Path],
        vocab_size: int,
        stream: bool | None,
        limit_bytes: int,
    ):
        self._make_directory = make_directory
        self._directory: Path | None = None
        self._dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")
        self._stream = stream
        self._limit_tokens = limit_bytes // (2 * np.dtype(np.int32).itemsize)
        self._waiting: list[np.ndarray] = []
        self._n_waiting = 0
        self._written = 0
        self._lengths = array("q")

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def extend(self, documents: Iterable[np.ndarray]) -> None:
        """Adds documents, each an array of tokens [n] without separator."""
        for tokens in documents:
            content = np.empty(len(tokens) + 1, self._dtype)
            content[0], content[1:] = SEPARATOR, tokens
            self._waiting.append(content)
            self._n_waiting += len(content)
            self._lengths.append(len(content))
            if self._n_waiting >= _CHUNK_TOKENS and self._wants_file():
                self._flush()

    @property
    def n_tokens(self) -> int:
        """Tokens so far, separators included."""
        return self._written + self._n_waiting

    @property
    def n_documents(self) -> int:
        """Documents so far."""
        return len(self._lengths)

    def finish(
        self, sequence_length: int, packing: Packing
    ) -> TokenRows | tuple[np.ndarray, np.ndarray]:
        """The rows: read from files, or inputs and labels int32 [N, T] in memory."""
        if not self._wants_file():
            starts = row_starts(self._lengths, sequence_length, packing)
            return rows(np.concatenate(self._waiting), starts[:-1], starts[1:], sequence_length)
        self._flush()
        assert self._directory is not None
        names = [TOKENS]
        with _writing(self._directory):
            with (self._directory / TOKENS).open("r+b") as file:
                _write_header(file, self._dtype, self._written)
                os.fsync(file.fileno())
            if packing != "concatenate":
                names.append(STARTS)
                starts = row_starts(self._lengths, sequence_length, packing)
                with (self._directory / STARTS).open("wb") as file:
                    np.save(file, starts)
                    file.flush()
                    os.fsync(file.fileno())
            checksums = {name: file_sha256(self._directory / name) for name in names}
        return TokenRows(self._directory, sequence_length, checksums)

    def _wants_file(self) -> bool:
        return self.n_tokens > self._limit_tokens if self._stream is None else self._stream

    def _flush(self) -> None:
        if self._directory is None:
            self._directory = self._make_directory()
            with _writing(self._directory), (self._directory / TOKENS).open("wb") as file:
                _write_header(file, self._dtype, 0)
        with _writing(self._directory), (self._directory / TOKENS).open("ab") as file:
            for content in self._waiting:
                file.write(content.tobytes())
        self._written += self._n_waiting
        self._waiting, self._n_waiting = [], 0


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write tokens to {directory} ({error.strerror or error}): set ICI_DATA_DIR to "
            "a writable directory with free space"
        ) from None


def _write_header(file: Any, dtype: np.dtype, n: int) -> None:
    # The header of an array that grows keeps its length: NumPy leaves room for more digits.
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
    np.lib.format.write_array_header_1_0(file, header)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"cannot read {path} ({' '.join(str(error).split())}): prepare the data again"
        ) from None
