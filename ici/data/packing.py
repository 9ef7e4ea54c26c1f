"""Documents as sequences of one length, with next-token labels, and back.

All documents in their order, each behind a separator, are one stream of tokens; a row is the next
part of it, padded at the end. A document that goes on in the next row has no separator there, so
that the number of separators up to a position tells the documents of a row apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from ici.data.dataset import IGNORED, PAD, SEPARATOR
from ici.errors import InputError, unknown_name

Packing = Literal["concatenate", "whole_documents"]


def check_packing(packing: str, sequence_length: int) -> None:
    """Raises `InputError` for an unknown packing or a sequence without a next token."""
    if packing not in get_args(Packing):
        raise unknown_name("packing", packing, get_args(Packing))
    if sequence_length < 2:
        raise InputError(
            f"sequence_length is {sequence_length}: wanted at least 2, a token and the next"
        )


def stream_of(documents: Iterable[np.ndarray]) -> np.ndarray:
    """The stream int32 [L]: every document's tokens [n], each document behind a separator."""
    separator = np.array([SEPARATOR], np.int32)
    parts = [part for tokens in documents for part in (separator, tokens)]
    return np.concatenate(parts).astype(np.int32) if parts else np.empty(0, np.int32)


def row_starts(lengths: Sequence[int], sequence_length: int, packing: Packing) -> np.ndarray:
    """Where each row begins in the stream, int64 [N + 1]; the last entry is the stream's length.

    `lengths` are those of the documents with their separators. "concatenate" fills every row but
    the last, and documents run over its end. "whole_documents" begins a new row where a document
    does not fit into the rest of one; only documents longer than a row are cut.
    """
    check_packing(packing, sequence_length)
    total = sum(lengths)
    if packing == "concatenate":
        return np.append(np.arange(0, total, sequence_length, dtype=np.int64), total)
    starts, position = [0] if total else [], 0
    for length in lengths:
        end = starts[-1] + sequence_length
        if length <= sequence_length and position + length > end:
            starts.append(position)
        position += length
        while position > starts[-1] + sequence_length:
            starts.append(starts[-1] + sequence_length)
        if position == starts[-1] + sequence_length and position < total:
            starts.append(position)
    return np.array([*starts, total], np.int64)


def rows(
    stream: np.ndarray, starts: np.ndarray, ends: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels int32 [..., T] of the rows that begin and end at these places [...].

    The label of a token is the next one of the stream, even in the next row: after a document's
    last token the separator that ends it. -1 at padding and at the stream's end.
    """
    places = starts[..., None] + np.arange(sequence_length)
    inside = places < ends[..., None]
    last = len(stream) - 1
    # Streams on disk are unsigned, in which -1 would be a large number.
    inputs = stream[np.minimum(places, last)].astype(np.int32)
    labels = stream[np.minimum(places + 1, last)].astype(np.int32)
    inputs[~inside] = PAD
    labels[~inside | (places == last)] = IGNORED
    return inputs, labels


def pack(
    documents: Iterable[np.ndarray], sequence_length: int, packing: Packing = "concatenate"
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels int32 [N, T] of documents, each an array of tokens [n] >= 2.

    See `row_starts` and `rows`. Raises `InputError` for a sequence_length below 2 and an unknown
    packing.
    """
    documents = list(documents)
    lengths = [1 + len(tokens) for tokens in documents]
    starts = row_starts(lengths, sequence_length, packing)
    if not documents:
        empty = np.empty((0, sequence_length), np.int32)
        return empty, empty
    return rows(stream_of(documents), starts[:-1], starts[1:], sequence_length)


def unpack(inputs: np.ndarray) -> list[np.ndarray]:
    """The documents of `pack`'s inputs [N, T], without separators: the exact inverse."""
    stream = inputs[inputs != PAD]
    heads = np.flatnonzero(stream == SEPARATOR)
    return [part[1:] for part in np.split(stream, heads)[1:]]


def document_numbers(tokens: np.ndarray) -> np.ndarray:
    """Which document of its row each position belongs to, int32 [..., T], counted from the row's
    first separator; 0 is what the row before began. Two positions may see each other where equal.
    """
    return np.cumsum(tokens == SEPARATOR, axis=-1, dtype=np.int32)


def padding_share(inputs: np.ndarray) -> float:
    """Share of the positions [..., T] that hold padding, which is what packing wastes."""
    return float(np.mean(inputs == PAD))
