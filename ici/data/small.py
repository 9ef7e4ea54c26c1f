"""Two small sources that need no download: handwritten digits, and data with a known shift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from ici.data.cache import CachedData
from ici.data.dataset import Dataset, InputKind, Split
from ici.data.registry import DataConfig, register
from ici.data.sampler import permutation, raw_bits
from ici.data.splits import standardize, stratified_split
from ici.data.text import check_seed
from ici.errors import InputError


@register("digits")
@dataclass(frozen=True)
class Digits(CachedData):
    """1,797 handwritten digits of 8 x 8 pixels from scikit-learn, as vectors [N, 64].

    `layout` "images" gives them as images [N, 8, 8, 1] instead. 80/10/10 train/validation/test,
    balanced by label; scaled by the overall mean and std of the training split. Raises `InputError`
    where scikit-learn is missing.
    """

    split_seed: int = 0
    layout: Literal["vectors", "images"] = "vectors"

    kind: ClassVar[str] = "vectors"
    needs: ClassVar[str] = "the package scikit-learn: pip install -e '.[demo]' in the checkout"

    def __post_init__(self) -> None:
        check_seed(self.split_seed)
        if self.layout not in get_args(InputKind)[1:]:
            raise InputError(f"layout is {self.layout!r}: wanted 'vectors' or 'images'")

    def build(self, refresh: bool = False) -> Dataset:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise InputError(
                "data set 'digits' wants the package scikit-learn, which is not installed: "
                "pip install -e '.[demo]' in the checkout"
            ) from None
        inputs, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
        if self.layout == "images":
            inputs = inputs.reshape(-1, 8, 8, 1)
        rows = stratified_split(labels, self.split_seed)
        train, validation, test = standardize(
            *(Split(inputs[rows[name]], labels[rows[name]]) for name in rows)
        )
        return Dataset(
            name="digits",
            train=train,
            validation=validation,
            test=test,
            n_classes=10,
            input_kind=self.layout,
            notes="scikit-learn load_digits; 80/10/10 by label; scaled by the training split",
        )


@register("synthetic")
@dataclass(frozen=True)
class Synthetic(DataConfig):
    """A Gaussian mixture, one component per class, with a dialled shift of validation and test.

    In training every feature has population mean 0 and std 1; `separation` is the std of the class
    centres over the std within a class. Validation and test inputs are drawn from the same mixture
    and then mapped to `shift_scale` * x + `shift_mean`, so that against train every feature has, up
    to sampling error, mean shift (mu_b - mu_a)/sigma_a = `shift_mean` and scale shift
    ln(sigma_b/sigma_a) = ln(`shift_scale`). Classes are balanced to within one example. Raises
    `InputError` for settings that make no data set.
    """

    dim: int = 32
    n_classes: int = 10
    n_train: int = 4096
    n_validation: int = 1024
    n_test: int = 1024
    separation: float = 1.0
    shift_mean: float = 0.0
    shift_scale: float = 1.0
    seed: int = 0

    kind: ClassVar[str] = "vectors"

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("n_classes", 2), ("n_train", 1), ("n_validation", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}: wanted at least {least}")
        if self.n_test < 0:
            raise InputError(f"n_test is {self.n_test}: wanted 0 or more")
        if not (math.isfinite(self.separation) and self.separation >= 0):
            raise InputError(f"separation is {self.separation}: wanted a finite number >= 0")
        if not (math.isfinite(self.shift_scale) and self.shift_scale > 0):
            raise InputError(f"shift_scale is {self.shift_scale}: wanted a finite number > 0")
        if not math.isfinite(self.shift_mean):
            raise InputError(f"shift_mean is {self.shift_mean}: wanted a finite number")
        check_seed(self.seed)

    def load(self) -> Dataset:
        return Dataset(
            name="synthetic",
            train=self._draw(1, self.n_train, 0.0, 1.0),
            validation=self._draw(2, self.n_validation, self.shift_mean, self.shift_scale),
            test=self._draw(3, self.n_test, self.shift_mean, self.shift_scale),
            n_classes=self.n_classes,
            input_kind="vectors",
            notes=(
                f"Gaussian mixture; validation and test are {self.shift_scale:g} x + "
                f"{self.shift_mean:g} in units of the training std"
            ),
        )

    def _draw(self, stream: int, n: int, mean: float, scale: float) -> Split:
        labels = permutation(n, self.seed, 2 * stream + 1) % self.n_classes
        noise = normal(n * self.dim, self.seed, 2 * stream).reshape(n, self.dim)
        centre_share = self.separation**2 / (1 + self.separation**2)
        x = self._centres()[labels] * math.sqrt(centre_share) + noise * math.sqrt(1 - centre_share)
        return Split((scale * x + mean).astype(np.float32), labels.astype(np.int32))

    def _centres(self) -> np.ndarray:
        centres = normal(self.n_classes * self.dim, self.seed, 0).reshape(self.n_classes, self.dim)
        centres -= centres.mean(axis=0)
        return centres / centres.std(axis=0)


def normal(n: int, seed: int, stream: int) -> np.ndarray:
    """Standard normal float64 [n] by Box & Muller 1958: reproducible over NumPy versions."""
    uniform = (raw_bits(2 * n, seed, stream) >> np.uint64(11)) * 2.0**-53
    return np.sqrt(-2.0 * np.log1p(-uniform[:n])) * np.cos(2.0 * np.pi * uniform[n:])
