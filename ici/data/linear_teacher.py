"""Regression on what a random linear map says of Gaussian inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ici.data.dataset import Dataset, Split
from ici.data.registry import DataConfig, register
from ici.data.small import normal
from ici.data.text import check_seed
from ici.errors import InputError


@register("linear_teacher")
@dataclass(frozen=True)
class LinearTeacher(DataConfig):
    """Targets y = W x + noise [N, n_outputs] of inputs x ~ N(0, I) [N, dim].

    The entries of W are N(0, 1/dim), so that targets have variance 1 + `noise`^2 on average over
    teachers; `noise` is the std of the Gaussian noise, in training and out of it alike. Test bed of
    the deep linear networks of Santurkar et al. 2018. Raises `InputError` for settings that make no
    data set.
    """

    dim: int = 32
    n_outputs: int = 10
    n_train: int = 4096
    n_validation: int = 1024
    n_test: int = 1024
    noise: float = 0.0
    seed: int = 0

    kind: ClassVar[str] = "vectors"

    def __post_init__(self) -> None:
        for name in ("dim", "n_outputs", "n_train", "n_validation"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: wanted at least 1")
        if self.n_test < 0:
            raise InputError(f"n_test is {self.n_test}: wanted 0 or more")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise InputError(f"noise is {self.noise}: wanted a finite number >= 0")
        check_seed(self.seed)

    @property
    def teacher(self) -> np.ndarray:
        """W, float64 [dim, n_outputs], to be multiplied from the right."""
        entries = normal(self.dim * self.n_outputs, self.seed, 0)
        return entries.reshape(self.dim, self.n_outputs) / math.sqrt(self.dim)

    def load(self) -> Dataset:
        return Dataset(
            name="linear_teacher",
            train=self._draw(1, self.n_train),
            validation=self._draw(2, self.n_validation),
            test=self._draw(3, self.n_test),
            n_classes=self.n_outputs,
            input_kind="vectors",
            task="regression",
            notes=f"Gaussian inputs; targets of a random linear map, noise of std {self.noise:g}",
        )

    def _draw(self, stream: int, n: int) -> Split:
        inputs = normal(n * self.dim, self.seed, 2 * stream).reshape(n, self.dim)
        noise = normal(n * self.n_outputs, self.seed, 2 * stream + 1).reshape(n, self.n_outputs)
        targets = inputs @ self.teacher + self.noise * noise
        return Split(inputs.astype(np.float32), targets.astype(np.float32))
