"""Images in ArrayRecord files: read by position, decoded by several threads, in memory or not."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ici.data.dataset import StreamedSplit
from ici.data.images import Scaling, decoded
from ici.data.tfds_read import Prepared, damaged
from ici.errors import InputError

_MAX_THREADS = 16
_BATCH = 256
_FINGERPRINT_BYTES = 1 << 16


class ImageRecords:
    """The records of one split of a directory that TFDS prepared, as images uint8 [H, W, C].

    `size` is as in `images.decoded`. Reading is safe from several threads. Raises `InputError`
    naming the file for a missing file, one with another number of records than listed, and, at the
    moment it is read, a damaged record.
    """

    def __init__(self, prepared: Prepared, split: str, fix: str, size: int | None = None):
        info = prepared.builder.info.splits[split]
        self.prepared, self.split, self.fix, self.size = prepared, split, fix, size
        self.paths = [Path(path) for path in info.filepaths]
        self._lengths = [int(length) for length in info.shard_lengths]
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])
        self._open()

    def _open(self) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._readers: list[Any] = []
        for path, wanted in zip(self.paths, self._lengths, strict=True):
            try:
                self._readers.append(ArrayRecordReader(str(path)))
                seen = self._readers[-1].num_records()
            except Exception as error:  # the reader raises RuntimeError, TypeError and others
                raise damaged(path, error, self.fix) from None
            if seen != wanted:
                raise damaged(path, f"{seen} records where {wanted} are listed", self.fix)
        self._decode = _decoder(self.prepared, self.size)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the files itself.
        state = {key: value for key, value in self.__dict__.items() if key[0] != "_"}
        return {**state, "_lengths": self._lengths, "_starts": self._starts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over what the directory says of itself and each file's size and ends."""
        digest = hashlib.sha256((self.prepared.directory / "dataset_info.json").read_bytes())
        for path in self.paths:
            with path.open("rb") as file:
                digest.update(file.read(_FINGERPRINT_BYTES))
                file.seek(-min(_FINGERPRINT_BYTES, path.stat().st_size), os.SEEK_END)
                digest.update(file.read())
            digest.update(f"{path.name} {path.stat().st_size}".encode())
        return digest.hexdigest()

    def labels(self) -> np.ndarray:
        """Labels int64 [N] of all records; reads every record and decodes no image."""
        skip = _label_reader(self.prepared)
        parts = [self._each(positions, skip) for positions in _batches(len(self))]
        return np.array([label for part in parts for label in part], np.int64)

    def take(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, H, W, C] and labels int64 [n] at positions [n]."""
        examples = self._each(positions, self._decode)
        images = [image for image, _ in examples]
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            raise InputError(
                f"{self.prepared.directory}: {self.prepared.input_key!r} of {self.split} has "
                f"shapes {', '.join(str(shape) for shape in shapes[:3])}: wanted one shape, give "
                "the size that images are to be resized and cut to"
            )
        return np.stack(images), np.array([label for _, label in examples], np.int64)

    def batches(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """The images at those positions, some at a time."""
        for start in range(0, len(positions), _BATCH):
            yield self.take(positions[start : start + _BATCH])[0]

    def _each(self, positions: np.ndarray, parse: Callable[[bytes], Any]) -> list[Any]:
        """`parse` of the record at each position, by several threads."""
        n_threads = min(os.cpu_count() or 1, _MAX_THREADS)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        results: list[Any] = [None] * len(positions)

        def run(piece: np.ndarray) -> None:
            for i, record in zip(
                piece, self._records(positions[piece], shards[piece]), strict=True
            ):
                try:
                    results[i] = parse(record)
                except Exception as error:  # decoders raise their own
                    raise damaged(self.paths[shards[i]], error, self.fix) from None

        order = np.argsort(positions, kind="stable")
        pieces = np.array_split(order, max(1, min(4 * n_threads, len(order) // 8)))
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(n_threads, thread_name_prefix="ici-decode")
        for _ in self._threads.map(run, pieces):
            pass
        return results

    def _records(self, positions: np.ndarray, shards: np.ndarray) -> list[bytes]:
        """The bytes of records; positions are sorted, so that each file's are together."""
        records: list[bytes] = []
        for shard in np.unique(shards):
            wanted = (positions[shards == shard] - self._starts[shard]).tolist()
            try:
                with self._lock:
                    found = self._readers[shard].read(wanted)
            except Exception as error:
                raise damaged(self.paths[shard], error, self.fix) from None
            if len(found) != len(wanted):
                reason = f"{len(found)} of {len(wanted)} records are readable"
                raise damaged(self.paths[shard], reason, self.fix)
            records += found
        return records


class StreamedImages(StreamedSplit):
    """Records at `rows` of `ImageRecords`, in that order, scaled: float32 [H, W, C] and a label."""

    def __init__(self, records: ImageRecords, rows: np.ndarray, n_classes: int, scaling: Scaling):
        self.records, self.rows, self.n_classes = records, rows, n_classes
        self.scaling = scaling
        self.example_shape = records.take(rows[:1])[0].shape[1:]
        self.dtype = np.dtype(np.float32)
        self.n_bytes = len(rows) * decoded_bytes(self.example_shape)
        facts = [records.digest, records.split, records.size, self.example_shape]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for array in (rows.astype("<i8"), scaling.mean, scaling.scale):
            digest.update(array.tobytes())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"StreamedImages({len(self)} of {list(self.example_shape)})"

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return self.records.prepared.directory

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images float32 [..., H, W, C] and labels int32 [...]; `IndexError` as of an array."""
        indices = np.asarray(indices)
        if indices.size == 0:
            empty = np.empty((*indices.shape, *self.example_shape), np.float32)
            return empty, np.empty(indices.shape, np.int32)
        images, labels = self.records.take(self.rows[indices.ravel()])
        if labels.min() < 0 or labels.max() >= self.n_classes:
            raise InputError(
                f"{self.directory} holds the labels {labels.min()} to {labels.max()}: wanted 0 to "
                f"{self.n_classes - 1}"
            )
        inputs = self.scaling(images).reshape(*indices.shape, *self.example_shape)
        return inputs, labels.astype(np.int32).reshape(indices.shape)


def decoded_bytes(example_shape: tuple[int, ...]) -> int:
    """Bytes of one example in memory, its label included."""
    return int(np.prod(example_shape) + 1) * np.dtype(np.float32).itemsize


def _batches(n: int) -> Iterator[np.ndarray]:
    for start in range(0, n, 16 * _BATCH):
        yield np.arange(start, min(start + 16 * _BATCH, n))


def _decoder(prepared: Prepared, size: int | None) -> Callable[[bytes], tuple[np.ndarray, int]]:
    import tensorflow_datasets as tfds

    features: Any = prepared.builder.info.features
    image = features[prepared.input_key]
    channels = image.shape[-1] or 3
    if np.dtype(image.np_dtype) != np.uint8 or channels not in (1, 3):
        if size is not None:
            raise InputError(
                f"{prepared.directory}: {prepared.input_key!r} has {channels} channels of "
                f"{np.dtype(image.np_dtype)}: wanted 1 or 3 of uint8 to resize them"
            )

        def decode_any(record: bytes) -> tuple[np.ndarray, int]:
            example = features.deserialize_example_np(record)
            return example[prepared.input_key], int(example[prepared.label_key])

        return decode_any
    decoders = {prepared.input_key: tfds.decode.SkipDecoding()}

    def decode(record: bytes) -> tuple[np.ndarray, int]:
        example = features.deserialize_example_np(record, decoders=decoders)
        pixels = decoded(example[prepared.input_key], channels, size)
        return pixels, int(example[prepared.label_key])

    return decode


def _label_reader(prepared: Prepared) -> Callable[[bytes], int]:
    import tensorflow_datasets as tfds

    features: Any = prepared.builder.info.features
    decoders = {prepared.input_key: tfds.decode.SkipDecoding()}

    def read(record: bytes) -> int:
        example = features.deserialize_example_np(record, decoders=decoders)
        return int(example[prepared.label_key])

    return read
