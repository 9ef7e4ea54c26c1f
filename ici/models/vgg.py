"""VGG networks (Simonyan & Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.errors import InputError
from ici.models import norms
from ici.models.layers import (
    ConvBlock,
    Placement,
    check_choices,
    check_images,
    check_positive,
    head,
    stream,
)
from ici.models.norms import Norm
from ici.models.registry import InputSpec, register

Classifier = Literal["auto", "paper", "linear"]
# Table 1, columns A, B, D and E: convolutions per stage.
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_PAPER_SIZE = 224


class Classifier3(nnx.Module):
    """The paper's classifier: two hidden layers with dropout, then a linear one; ``x[B, D]``."""

    def __init__(self, features: int, config: VGGConfig, spec: InputSpec, *, key: Array):
        he, width = nnx.initializers.he_normal(), config.hidden_width
        self.hidden = nnx.List(
            nnx.Linear(size, width, kernel_init=he, rngs=stream(key, i + 1))
            for i, size in enumerate((features, width))
        )
        self.dropout = nnx.List(
            nnx.Dropout(config.dropout, rngs=stream(key, i + 3)) for i in range(2)
        )
        self.head = head(width, spec, key=key)

    def __call__(self, x: Array) -> Array:
        for hidden, dropout in zip(self.hidden, self.dropout, strict=True):
            x = dropout(nnx.relu(hidden(x)))
        return self.head(x)


class VGG(nnx.Module):
    """Five stages of 3x3 convolutions, each halving the image, and a classifier."""

    def __init__(self, config: VGGConfig, norm: Norm, depth: int, spec: InputSpec, rngs: nnx.Rngs):
        key = rngs.params()
        height, width, features = spec.shape
        stages = []
        for i, n_convs in enumerate(_STAGES[depth]):
            blocks, stage_key = [], jax.random.fold_in(key, i + 1)
            for j in range(n_convs):
                blocks.append(
                    ConvBlock(
                        features,
                        config.width * min(2**i, 8),
                        norm=norm,
                        activation="relu",
                        placement=config.placement,
                        key=jax.random.fold_in(stage_key, j),
                    )
                )
                features = config.width * min(2**i, 8)
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.flattens = config.classifier_for(spec) == "paper"
        key = jax.random.fold_in(key, 0)
        if self.flattens:
            flat = features * (height // 32) * (width // 32)
            self.classifier = Classifier3(flat, config, spec, key=key)
        else:
            self.classifier = head(features, spec, key=key)

    def __call__(self, x: Array) -> Array:
        for stage in self.stages:
            for block in stage:
                x = block(x)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1) if self.flattens else jnp.mean(x, axis=(1, 2))
        return self.classifier(x)


@register("vgg")
@dataclass(frozen=True)
class VGGConfig:
    """Settings of VGG networks; depth (11, 13, 16 or 19) and norm are swept.

    Attributes:
      width: channels of the first stage, 64 in the paper; they double up to eightfold.
      classifier: "paper", two hidden layers and a linear one on all positions of the last stage;
        "linear", one linear layer on the mean over positions; "auto" takes "paper" from 224x224.
      hidden_width: units of the paper's hidden layers.
      dropout: rate after each of them.
      placement: norm after the convolution ("post"), before it ("pre"), or after the nonlinearity
        ("after"). The classifier has no norm.
    """

    width: int = 64
    classifier: Classifier = "auto"
    hidden_width: int = 4096
    dropout: float = 0.5
    placement: Placement = "post"

    def __post_init__(self) -> None:
        check_positive(self, "width", "hidden_width")
        check_choices(self, {"classifier": Classifier, "placement": Placement})
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}: wanted 0 <= dropout < 1.")

    def classifier_for(self, spec: InputSpec) -> str:
        """The classifier that these images get."""
        if self.classifier != "auto":
            return self.classifier
        return "paper" if min(spec.shape[:2]) >= _PAPER_SIZE else "linear"

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]:
        """A factory for ``from_nnx``.

        Raises:
          InputError: unknown norm, a depth that is not the paper's, data that are no images, or
            images too small for five poolings.
        """
        parsed = norms.parse(norm)
        if depth not in _STAGES:
            known = ", ".join(map(str, _STAGES))
            raise InputError(f"depth is {depth}: wanted one of {known} for model 'vgg'.")
        check_images(spec, "vgg", 5, "poolings")
        return lambda rngs: VGG(self, parsed, depth, spec, rngs)
