"""What every data source delivers: three splits of plain arrays, checked once, at birth."""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from ici.errors import InputError, unknown_name

InputKind = Literal["tokens", "vectors", "images"]
Task = Literal["classification", "language_model", "regression"]
SPLITS = ("train", "validation", "test")
PAD, UNKNOWN = 0, 1
SEPARATOR = 1  # begins every document of language-model data, and ends the one before
IGNORED = -1  # a language model's label that does not count

_LAYOUT = {"tokens": "[N, T]", "vectors": "[N, D]", "images": "[N, H, W, C]"}


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their labels, in memory.

    `inputs` are int32 tokens [N, T] (0 is padding, 1 an unknown word or, for language models, what
    separates documents), or float32 vectors [N, D] or images [N, H, W, C]. `labels` are classes,
    int32 [N]; the next tokens, int32 [N, T], -1 where none counts; or targets, float32 [N, D].
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({self.inputs.dtype} {list(self.inputs.shape)}, {len(self)} labels)"

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.inputs.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Type of the inputs."""
        return self.inputs.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of inputs and labels together."""
        return self.inputs.nbytes + self.labels.nbytes

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over both arrays with their shapes and dtypes."""
        digest = hashlib.sha256()
        for array in (self.inputs, self.labels):
            little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{array.dtype.name} {array.shape}".encode())
            digest.update(little_endian.tobytes())
        return digest.hexdigest()

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of the examples ``indices[...]``, in new arrays [..., *shape]."""
        return self.inputs[indices], self.labels[indices]


class StreamedSplit(ABC):
    """Examples that are read from random-access files as they are needed.

    Subclasses give `example_shape`, `dtype` and `n_bytes` of the whole in memory, as `Split` has
    them, `digest` (of what is on disk, so that other data are told apart) and `take`, which is
    called from several threads. The same index always gives the same example.
    """

    example_shape: tuple[int, ...]
    dtype: np.dtype
    n_bytes: int
    digest: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of the examples ``indices[...]``, as `Split.take` gives them.

        Raises:
          InputError: a damaged file, by name.
        """


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train, validation and test examples with what is needed to read them.

    The constructor casts inputs to int32 (tokens) or float32 and labels to int32 (float32 for
    regression), and makes them read-only; a `StreamedSplit`, which only train may be, checks what
    it reads. Raises `InputError` naming the split, the first offending index and its value where
    lengths or shapes disagree, a label is outside [0, n_classes), an input is not finite, a token
    is outside [0, vocab_size), a text is all padding, or train or validation is empty.

    `n_classes` is the size of a model's output: classes, the vocabulary for language models, the
    targets of one example for regression.
    """

    name: str
    train: Split | StreamedSplit
    validation: Split
    test: Split
    n_classes: int
    input_kind: InputKind
    vocab_size: int | None = None
    vocabulary: tuple[str, ...] | None = field(default=None, repr=False)
    notes: str = ""
    task: Task = "classification"

    def __post_init__(self) -> None:
        self._check_metadata()
        for split_name in SPLITS:
            split = getattr(self, split_name)
            if isinstance(split, StreamedSplit):
                if split_name != "train" or len(split) == 0:
                    raise InputError(
                        f"{split_name} is streamed and has {len(split)} examples: wanted at least "
                        "one, and only train streamed; give a Split of arrays."
                    )
                continue
            inputs = self._checked_inputs(split_name, np.asarray(split.inputs))
            labels = self._checked_labels(split_name, np.asarray(split.labels), inputs)
            if len(inputs) != len(labels):
                raise InputError(
                    f"{split_name} has {len(inputs)} inputs but {len(labels)} labels: "
                    "wanted one label per input"
                )
            if len(inputs) == 0 and split_name != "test":
                raise InputError(f"{split_name} has no examples: wanted at least one")
            object.__setattr__(self, split_name, Split(_read_only(inputs), _read_only(labels)))
        wanted = self.train.example_shape
        for split_name in SPLITS[1:]:
            seen = getattr(self, split_name).example_shape
            if seen != wanted:
                raise InputError(
                    f"{split_name} inputs have shape {seen} per example: "
                    f"wanted {wanted}, the shape of train"
                )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the splits' digests and the metadata.

        `notes` are prose and do not count.
        """
        digest = hashlib.sha256(json.dumps(self.metadata(), sort_keys=True).encode())
        for split_name in SPLITS:
            digest.update(f"{split_name} {getattr(self, split_name).digest}".encode())
        return digest.hexdigest()

    def metadata(self) -> dict[str, Any]:
        """The fields that are neither arrays nor prose, as JSON values."""
        return {
            "name": self.name,
            "n_classes": int(self.n_classes),
            "input_kind": self.input_kind,
            "vocab_size": None if self.vocab_size is None else int(self.vocab_size),
            "vocabulary": None if self.vocabulary is None else list(self.vocabulary),
            "task": self.task,
        }

    def decode(self, row: np.ndarray) -> str:
        """The words of a row of tokens [T] without padding; numbers where words are not known.

        Tokens that stand for bytes give their text, with a mark where a document begins.
        """
        from ici.data.tokenizers import is_byte_level, readable

        if self.vocabulary is not None and is_byte_level(self.vocabulary):
            return readable(self.vocabulary, row)
        tokens = [int(token) for token in row if token != PAD]
        if self.vocabulary is None:
            return " ".join(str(token) for token in tokens)
        return " ".join(self.vocabulary[token] for token in tokens)

    def _check_metadata(self) -> None:
        if self.input_kind not in _LAYOUT:
            raise InputError(
                f"input_kind is {self.input_kind!r}: wanted 'tokens', 'vectors' or 'images'"
            )
        if self.task not in get_args(Task):
            raise unknown_name("task", self.task, get_args(Task))
        if self.n_classes < (1 if self.task == "regression" else 2):
            raise InputError(f"n_classes is {self.n_classes}: wanted at least 2")
        if self.task == "language_model" and self.n_classes != self.vocab_size:
            raise InputError(
                f"n_classes is {self.n_classes} and vocab_size is {self.vocab_size}: wanted the "
                "same for a language model, which predicts tokens"
            )
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

    def _checked_labels(
        self, split_name: str, labels: np.ndarray, inputs: np.ndarray
    ) -> np.ndarray:
        if self.task == "regression":
            if labels.shape[1:] != (self.n_classes,) or labels.dtype.kind not in "biuf":
                raise InputError(
                    f"{split_name} labels have shape {labels.shape} and dtype {labels.dtype}: "
                    f"wanted real targets [N, {self.n_classes}] for regression"
                )
            targets = np.ascontiguousarray(labels, np.float32)
            _refuse(split_name, "labels", labels, ~np.isfinite(targets), "finite float32 values")
            return targets
        is_text = self.task == "language_model"
        if labels.shape != inputs.shape if is_text else labels.ndim != 1:
            wanted = f"{inputs.shape}, a next token for every token" if is_text else "[N]"
            raise InputError(f"{split_name} labels have shape {labels.shape}: wanted {wanted}")
        if labels.dtype.kind not in "biu" and labels.size:
            raise InputError(
                f"{split_name} labels have dtype {labels.dtype}: wanted integers from 0 to "
                f"{self.n_classes - 1}, cast them with .astype(np.int32)"
            )
        as_int64 = labels.astype(np.int64)
        least = IGNORED if is_text else 0
        wanted = f"{least} to {self.n_classes - 1} (n_classes is {self.n_classes})"
        bad = (as_int64 < least) | (as_int64 >= self.n_classes)
        _refuse(split_name, "labels", labels, bad, wanted)
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
