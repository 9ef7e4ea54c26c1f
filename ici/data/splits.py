"""Seeded, label-balanced splits and the scaling that goes with them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from ici.data.dataset import Split
from ici.data.sampler import permutation

_ORDER_STREAM = 2**32


def stratified_split(
    strata: np.ndarray,
    seed: int,
    validation: float = 0.1,
    test: float = 0.1,
    keep_in_train: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Example numbers of train, validation and test, shuffled, with the same share of each stratum.

    `strata` is int [N], `validation` and `test` are fractions of every stratum (rounded, at least
    one example where the fraction is not 0). Examples marked in `keep_in_train`, bool [N], count
    towards the size of their stratum but go to train.
    """
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for rank, stratum in enumerate(np.unique(strata)):
        members = np.flatnonzero(strata == stratum)
        members = members[permutation(len(members), seed, rank)]
        n_validation = max(1, round(validation * len(members))) if validation else 0
        n_test = max(1, round(test * len(members))) if test else 0
        pinned = keep_in_train[members] if keep_in_train is not None else members < 0
        free = members[~pinned]
        parts["validation"].append(free[:n_validation])
        parts["test"].append(free[n_validation : n_validation + n_test])
        parts["train"] += [free[n_validation + n_test :], members[pinned]]
    return {
        name: shuffled(np.concatenate(part), seed, stream=_ORDER_STREAM + i)
        for i, (name, part) in enumerate(parts.items())
    }


def shuffled(rows: np.ndarray, seed: int, stream: int = _ORDER_STREAM) -> np.ndarray:
    """The rows in a seeded order, so that any first part of a split is a fair sample of it."""
    return rows[permutation(len(rows), seed, stream)]


def repeated(keys: list[str]) -> np.ndarray:
    """Bool [N]: whether the key occurs more than once."""
    counts = Counter(keys)
    return np.array([counts[key] > 1 for key in keys], bool)


def standardize(train: Split, *others: Split) -> tuple[Split, ...]:
    """All splits, shifted and scaled by the overall mean and std of the training inputs."""
    # For whole numbers, as pixels are, both sums are exact: the same bits on every machine.
    total = train.inputs.sum(dtype=np.float64)
    total_of_squares = sum(np.square(row, dtype=np.float64).sum() for row in train.inputs)
    mean = total / train.inputs.size
    std = math.sqrt(max(0.0, total_of_squares / train.inputs.size - mean**2))
    scale = np.float32(1.0 / std if std else 1.0)
    return tuple(
        Split((split.inputs.astype(np.float32) - np.float32(mean)) * scale, split.labels)
        for split in (train, *others)
    )
