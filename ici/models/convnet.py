"""Plain deep convolutional networks: no shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.models import norms
from ici.models.layers import (
    Activation,
    ConvBlock,
    Placement,
    check_choices,
    check_depth,
    check_images,
    check_positive,
    head,
)
from ici.models.norms import Norm
from ici.models.registry import InputSpec, register


class ConvNet(nnx.Module):
    """Stem, ``depth`` 3x3 convolutions, mean over positions, linear; ``x[B, H, W, C]``."""

    def __init__(
        self, config: ConvNetConfig, norm: Norm, depth: int, spec: InputSpec, rngs: nnx.Rngs
    ):
        key = rngs.params()

        def block(in_features: int, features: int, strides: int, key: Array) -> ConvBlock:
            return ConvBlock(
                in_features,
                features,
                norm=norm,
                activation=config.activation,
                placement=config.placement,
                strides=strides,
                key=key,
            )

        self.stem = block(spec.shape[-1], config.width, 1, jax.random.fold_in(key, 1))
        stages, features = [], config.width
        for i in range(config.stages):
            blocks, stage_key = [], jax.random.fold_in(key, i + 2)
            for j in range(depth // config.stages + (i < depth % config.stages)):
                width, strides = config.width * 2**i, 2 if i > 0 and j == 0 else 1
                blocks.append(block(features, width, strides, jax.random.fold_in(stage_key, j)))
                features = width
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.head = head(features, spec, key=jax.random.fold_in(key, 0))

    def __call__(self, x: Array) -> Array:
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


@register("convnet")
@dataclass(frozen=True)
class ConvNetConfig:
    """Settings of plain convnets, as the "plain" networks for small images in He et al. 2016.

    A stem of one 3x3 convolution, then ``depth`` more, spread evenly over the stages (the first
    ones take what is left over). The first convolution of every stage but the first has stride 2,
    and stage i has ``width · 2^i`` channels, i from 0.

    Attributes:
      width: channels of the stem and of the first stage.
      stages: number of stages.
      activation: nonlinearity of each block.
      placement: norm after the convolution ("post"), before it ("pre"), or after the nonlinearity
        ("after").
    """

    width: int = 16
    stages: int = 3
    activation: Activation = "relu"
    placement: Placement = "post"

    def __post_init__(self) -> None:
        check_positive(self, "width", "stages")
        check_choices(self, {"activation": Activation, "placement": Placement})

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]:
        """A factory for ``from_nnx``.

        Raises:
          InputError: unknown norm, fewer convolutions than stages, data that are no images, or
            images too small for the strides.
        """
        parsed = norms.parse(norm)
        check_depth(depth, self.stages, ", one convolution per stage")
        check_images(spec, "convnet", self.stages - 1, "strides of 2")
        return lambda rngs: ConvNet(self, parsed, depth, spec, rngs)
