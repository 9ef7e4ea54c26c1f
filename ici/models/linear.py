"""Deep linear networks, the test bed of Santurkar et al. 2018 and Yang et al. 2019."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
from flax import nnx
from jax import Array

from ici.models import norms
from ici.models.layers import (
    check_choices,
    check_depth,
    check_no_tokens,
    check_positive,
    check_task,
    stream,
)
from ici.models.norms import Norm
from ici.models.registry import InputSpec, register

Init = Literal["lecun", "orthogonal"]
_INITS = {
    "lecun": nnx.initializers.lecun_normal(),
    "orthogonal": nnx.initializers.orthogonal(),
}


class LinearBlock(nnx.Module):
    """Linear map without bias, then norm; ``x[B, D]``."""

    def __init__(self, in_features: int, config: DeepLinearConfig, norm: Norm, *, key: Array):
        self.linear = norm.linear(
            in_features,
            config.width,
            use_bias=False,
            kernel_init=_INITS[config.init],
            rngs=stream(key, 0),
        )
        self.norm = norm.layer(config.width, layout="vector", rngs=stream(key, 1))

    def __call__(self, x: Array) -> Array:
        return self.norm(self.linear(x))


class DeepLinear(nnx.Module):
    """``depth`` hidden linear layers and a linear head, ``x[B, ...]`` to ``[B, n_classes]``."""

    def __init__(
        self, config: DeepLinearConfig, norm: Norm, depth: int, spec: InputSpec, rngs: nnx.Rngs
    ):
        key = rngs.params()
        sizes = [spec.n_features, *[config.width] * (depth - 1)]
        self.blocks = nnx.List(
            LinearBlock(size, config, norm, key=jax.random.fold_in(key, i + 1))
            for i, size in enumerate(sizes)
        )
        self.head = nnx.Linear(
            config.width,
            spec.n_classes,
            use_bias=False,
            kernel_init=_INITS[config.init],
            rngs=stream(jax.random.fold_in(key, 0), 0),
        )

    def __call__(self, x: Array) -> Array:
        x = x.reshape(x.shape[0], -1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@register("deep_linear")
@dataclass(frozen=True)
class DeepLinearConfig:
    """Settings of deep linear networks; depth (hidden layers) and norm are swept.

    Without norm the network is the product of its matrices: no nonlinearity, no biases. A norm
    stands after each hidden layer.

    Attributes:
      width: units per hidden layer.
      init: every weight matrix: Gaussian with variance 1/inputs, or orthogonal rows or columns
        (Saxe et al. 2014).
    """

    width: int = 100
    init: Init = "lecun"

    def __post_init__(self) -> None:
        check_positive(self, "width")
        check_choices(self, {"init": Init})

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]:
        """A factory for ``from_nnx``.

        Raises:
          InputError: unknown norm, a depth below 1, tokens, or language-model data.
        """
        parsed = norms.parse(norm)
        check_depth(depth)
        check_task(spec, "deep_linear")
        check_no_tokens(spec, "deep_linear")
        return lambda rngs: DeepLinear(self, parsed, depth, spec, rngs)
