"""What every data source delivers: three splits of plain arrays, checked once, at birth."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ici.errors import InputError

InputKind = Literal["tokens", "vectors", "images"]
SPLITS = ("train", "validation", "test")
PAD, UNKNOWN = 0, 1

_LAYOUT = {"tokens": "[N, T]", "vectors": "[N, D]", "images": "[N, H, W, C]"}


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their labels.

    `inputs` are int32 tokens [N, T] (0 is padding, 1 an unknown word), or float32 vectors [N, D]
    or images [N, H, W, C]. `labels` are int32 [N].
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({self.inputs.dtype} {list(self.inputs.shape)}, {len(self)} labels)"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test arrays with what is needed to read them.

    The constructor casts inputs to int32 (tokens) or float32 and labels to int32, and makes them
    read-only. Raises `InputError` naming the split, the first offending index and its value where
    lengths or shapes disagree, a label is outside [0, n_classes), an input is not finite, a token
    is outside [0, vocab_size), a text is all padding, or train or validation is empty.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    n_classes: int
    input_kind: InputKind
    vocab_size: int | None = None
    vocabulary: tuple[str, ...] | None = field(default=None, repr=False)
    notes: str = ""

    def __post_init__(self) -> None:
        self._check_metadata()
        for split_name in SPLITS:
            split = getattr(self, split_name)
            inputs = self._checked_inputs(split_name, np.asarray(split.inputs))
            labels = _checked_labels(split_name, np.asarray(split.labels), self.n_classes)
            if len(inputs) != len(labels):
                raise InputError(
                    f"{split_name} has {len(inputs)} inputs but {len(labels)} labels: "
                    "wanted one label per input"
                )
            if len(inputs) == 0 and split_name != "test":
                raise InputError(f"{split_name} has no examples: wanted at least one")
            object.__setattr__(self, split_name, Split(_read_only(inputs), _read_only(labels)))
        wanted = self.train.inputs.shape[1:]
        for split_name in SPLITS[1:]:
            seen = getattr(self, split_name).inputs.shape[1:]
            if seen != wanted:
                raise InputError(
                    f"{split_name} inputs have shape {seen} per example: "
                    f"wanted {wanted}, the shape of train"
                )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over each array with its shape and dtype, and over the metadata.

        `notes` are prose and do not count.
        """
        digest = hashlib.sha256(json.dumps(self.metadata(), sort_keys=True).encode())
        for split_name in SPLITS:
            split = getattr(self, split_name)
            for array in (split.inputs, split.labels):
                little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
                digest.update(f"{split_name} {array.dtype.name} {array.shape}".encode())
                digest.update(little_endian.tobytes())
        return digest.hexdigest()

    def metadata(self) -> dict[str, Any]:
        """The fields that are neither arrays nor prose, as JSON values."""
        return {
            "name": self.name,
            "n_classes": int(self.n_classes),
            "input_kind": self.input_kind,
            "vocab_size": None if self.vocab_size is None else int(self.vocab_size),
            "vocabulary": None if self.vocabulary is None else list(self.vocabulary),
        }

    def decode(self, row: np.ndarray) -> str:
        """The words of a row of tokens [T] without padding; numbers where words are not known."""
        tokens = [int(token) for token in row if token != PAD]
        if self.vocabulary is None:
            return " ".join(str(token) for token in tokens)
        return " ".join(self.vocabulary[token] for token in tokens)

    def _check_metadata(self) -> None:
        if self.input_kind not in _LAYOUT:
            raise InputError(
                f"input_kind is {self.input_kind!r}: wanted 'tokens', 'vectors' or 'images'"
            )
        if self.n_classes < 2:
            raise InputError(f"n_classes is {self.n_classes}: wanted at least 2")
        if self.input_kind == "tokens":
            if self.vocab_size is None or self.vocab_size < 2:
                raise InputError(
                    f"vocab_size is {self.vocab_size}: wanted at least 2 for tokens "
                    "(0 is padding, 1 an unknown word)"
                )
        elif self.vocab_size is not None:
            raise InputError(
                f"vocab_size is {self.vocab_size} although the inputs are {self.input_kind}: "
                "wanted None"
            )
        if self.vocabulary is not None and len(self.vocabulary) != self.vocab_size:
            raise InputError(
                f"the vocabulary has {len(self.vocabulary)} words but vocab_size is "
                f"{self.vocab_size}: wanted the same number"
            )

    def _checked_inputs(self, split_name: str, inputs: np.ndarray) -> np.ndarray:
        layout = _LAYOUT[self.input_kind]
        if inputs.ndim != layout.count(",") + 1 or 0 in inputs.shape[1:]:
            raise InputError(
                f"{split_name} inputs have shape {inputs.shape}: "
                f"wanted {layout} for {self.input_kind}, no axis of length 0"
            )
        if self.input_kind == "tokens":
            return self._checked_tokens(split_name, inputs)
        if inputs.dtype.kind not in "biuf":
            raise InputError(
                f"{split_name} inputs have dtype {inputs.dtype}: wanted real numbers, "
                "cast them with .astype(np.float32)"
            )
        with np.errstate(over="ignore"):  # a value too large for float32 is reported just below
            as_float32 = np.ascontiguousarray(inputs, np.float32)
        _refuse(
            split_name,
            "inputs",
            inputs,
            ~np.isfinite(as_float32),
            "finite float32 values, drop or repair the example",
        )
        return as_float32

    def _checked_tokens(self, split_name: str, tokens: np.ndarray) -> np.ndarray:
        if tokens.dtype.kind not in "iu":
            raise InputError(
                f"{split_name} inputs have dtype {tokens.dtype}: wanted integer tokens, or "
                "input_kind='vectors' for features"
            )
        assert self.vocab_size is not None
        wanted = f"0 to {self.vocab_size - 1} (vocab_size is {self.vocab_size})"
        _refuse(split_name, "inputs", tokens, (tokens < 0) | (tokens >= self.vocab_size), wanted)
        only_padding = ~(tokens != PAD).any(axis=1)
        if only_padding.any():
            raise InputError(
                f"{split_name} inputs[{np.argmax(only_padding)}] is all padding (0): wanted at "
                f"least one token, write {UNKNOWN} (unknown word) for an empty text"
            )
        return np.ascontiguousarray(tokens, np.int32)


def _checked_labels(split_name: str, labels: np.ndarray, n_classes: int) -> np.ndarray:
    if labels.ndim != 1:
        raise InputError(f"{split_name} labels have shape {labels.shape}: wanted [N]")
    if labels.dtype.kind not in "biu" and labels.size:
        raise InputError(
            f"{split_name} labels have dtype {labels.dtype}: wanted integers from 0 to "
            f"{n_classes - 1}, cast them with .astype(np.int32)"
        )
    as_int64 = labels.astype(np.int64)
    wanted = f"0 to {n_classes - 1} (n_classes is {n_classes})"
    _refuse(split_name, "labels", labels, (as_int64 < 0) | (as_int64 >= n_classes), wanted)
    return np.ascontiguousarray(labels, np.int32)


def _refuse(split_name: str, what: str, values: np.ndarray, bad: np.ndarray, wanted: str) -> None:
    if not bad.any():
        return
    index = np.unravel_index(np.argmax(bad), bad.shape)
    where = ", ".join(str(int(i)) for i in index)
    raise InputError(
        f"{split_name} {what}[{where}] is {values[index]}: wanted {wanted} "
        f"({np.count_nonzero(bad)} of {bad.size} are at fault)"
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
