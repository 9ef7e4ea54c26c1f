"""A user's own arrays as a data source."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ici.data.dataset import SPLITS, Dataset, InputKind, Split, Task
from ici.data.registry import DataConfig
from ici.errors import InputError

Pair = tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True, eq=False)
class Arrays(DataConfig):
    """Wraps (inputs, labels) pairs of a user's own; they are checked at once.

    Integer inputs [N, T] are read as tokens, floats [N, D] as vectors and [N, H, W, C] as images;
    `input_kind` overrides that. Labels say the task: floats [N] or [N, D] are regression targets,
    integers [N, T] beside tokens [N, T] are the next tokens of a language model (-1 where none
    counts), all others are classes; `task` overrides that. `n_classes` and `vocab_size` default to
    the largest value that occurs, plus one, or to the number of targets; those of a language model
    are the same. Raises `InputError` as `Dataset` does.
    """

    train: Pair = field(repr=False)
    validation: Pair = field(repr=False)
    test: Pair | None = field(default=None, repr=False)
    n_classes: int | None = None
    vocab_size: int | None = None
    input_kind: InputKind | None = None
    name: str = "arrays"
    task: Task | None = None

    registered_name: ClassVar[str] = "arrays"

    def __post_init__(self) -> None:
        _ = self._dataset

    def load(self) -> Dataset:
        return self._dataset

    def fingerprint(self) -> dict[str, Any]:
        """The digest of the arrays stands for them."""
        return {"data": self.registered_name, "name": self.name, "digest": self._dataset.digest}

    @property
    def spec(self) -> str:
        return self.name

    @functools.cached_property
    def _dataset(self) -> Dataset:
        splits = {name: _split(name, getattr(self, name)) for name in SPLITS[:2]}
        inputs, labels = splits["train"].inputs, splits["train"].labels
        if self.test is None:
            splits["test"] = Split(inputs[:0], labels[:0])
        else:
            splits["test"] = _split("test", self.test)
        kind = self.input_kind or _guess_kind(inputs)
        task = self.task or _guess_task(kind, inputs, labels)
        if task == "regression":
            splits = {name: _as_targets(split) for name, split in splits.items()}
        vocab_size, n_classes = self.vocab_size, self.n_classes
        if vocab_size is None and kind == "tokens":
            arrays = [split.inputs for split in splits.values()]
            if task == "language_model":
                arrays += [split.labels for split in splits.values()]
            vocab_size = max(2, _largest(arrays) + 1)
        if n_classes is None:
            if task == "regression":
                n_classes = splits["train"].labels.shape[-1]
            elif task == "language_model" and vocab_size is not None:
                n_classes = vocab_size
            else:
                n_classes = max(2, _largest(split.labels for split in splits.values()) + 1)
        return Dataset(
            name=self.name,
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            n_classes=n_classes,
            input_kind=kind,
            vocab_size=vocab_size,
            task=task,
            notes="arrays given by the user",
        )


def _split(name: str, pair: Any) -> Split:
    try:
        inputs, labels = pair
        return Split(np.asarray(inputs), np.asarray(labels))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} is not a pair of arrays ({' '.join(str(error).split())}): "
            "wanted (inputs, labels)"
        ) from None


def _guess_kind(inputs: np.ndarray) -> InputKind:
    if inputs.ndim == 4:
        return "images"
    if inputs.ndim == 2:
        return "tokens" if inputs.dtype.kind in "iu" else "vectors"
    hint = ", add a channel axis with x[..., None]" if inputs.ndim == 3 else ""
    raise InputError(
        f"train inputs have shape {inputs.shape}: wanted [N, T] tokens, [N, D] vectors or "
        f"[N, H, W, C] images{hint}"
    )


def _guess_task(kind: InputKind, inputs: np.ndarray, labels: np.ndarray) -> Task:
    if labels.dtype.kind == "f":
        return "regression"
    if kind == "tokens" and labels.ndim == 2 and labels.shape == inputs.shape:
        return "language_model"
    return "classification"


def _as_targets(split: Split) -> Split:
    """Targets [N] are those of one output, [N, 1]."""
    labels = split.labels
    return Split(split.inputs, labels[:, None] if labels.ndim == 1 else labels)


def _largest(arrays: Any) -> int:
    numeric = [array for array in arrays if array.size and array.dtype.kind in "biu"]
    return max((int(array.max()) for array in numeric), default=1)
