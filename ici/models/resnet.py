"""Residual networks, original (He et al. 2016a) and with pre-activation (He et al. 2016b)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.errors import InputError
from ici.models import norms
from ici.models.layers import check_choices, check_images, check_positive, conv, head, stream
from ici.models.norms import Norm
from ici.models.registry import InputSpec, register

Version = Literal["v1", "v2"]
Size = Literal["auto", "small", "large"]
# Table 1 of He et al. 2016a: blocks per stage.
_LARGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
_BOTTLENECK_DEPTH = 50
_LARGE_SIZE = 64


class ConvUnit(nnx.Module):
    """Convolution then norm (v1), or norm, ReLU and then convolution (v2); ``x[B, H, W, C]``."""

    def __init__(
        self,
        in_features: int,
        features: int,
        kernel_size: int,
        strides: int,
        *,
        norm: Norm,
        version: Version,
        key: Array,
    ):
        self.norm_first = version == "v2"
        self.conv = conv(
            norm,
            in_features,
            features,
            kernel_size,
            strides=strides,
            # In v2 too: all that reads the sum of the branches begins with a norm.
            use_bias=not norm.makes_bias_redundant,
            rngs=stream(key, 0),
        )
        normed = in_features if self.norm_first else features
        self.norm = norm.layer(normed, layout="image", rngs=stream(key, 1))

    def __call__(self, x: Array) -> Array:
        return self.conv(self.activated(x)) if self.norm_first else self.norm(self.conv(x))

    def activated(self, x: Array) -> Array:
        """What the convolution of v2 gets of `x`."""
        return nnx.relu(self.norm(x))

    def start_at_zero(self) -> None:
        """Makes the output 0: by the scale of a norm that ends it, or else by the weights."""
        for module in (self.conv,) if self.norm_first else (self.norm, self.conv):
            for name in ("scale", "kernel"):
                parameter = getattr(module, name, None)
                if isinstance(parameter, nnx.Param):
                    parameter[...] = jnp.zeros_like(parameter[...])
                    return


class PaddedShortcut(nnx.Module):
    """Option A of He et al. 2016a: every second position, and channels of zeros; no weights."""

    def __init__(self, in_features: int, features: int, strides: int):
        self.strides, self.extra = strides, features - in_features

    def __call__(self, x: Array) -> Array:
        x = x[:, :: self.strides, :: self.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.extra)))


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 (bottleneck), beside a shortcut."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        strides: int,
        config: ResNetConfig,
        norm: Norm,
        is_bottleneck: bool,
        is_small: bool,
        key: Array,
    ):
        self.norm_first = config.version == "v2"
        # Kernel size, channels, stride. The stride of a bottleneck is in its 3x3 convolution, as in
        # most code since the paper, where it is in the first 1x1.
        inner = features // 4
        plan = [(3, features, strides), (3, features, 1)]
        if is_bottleneck:
            plan = [(1, inner, 1), (3, inner, strides), (1, features, 1)]
        layers, size = [], in_features
        for i, (kernel_size, width, step) in enumerate(plan):
            layer_key = jax.random.fold_in(key, i + 1)
            unit = ConvUnit(
                size, width, kernel_size, step, norm=norm, version=config.version, key=layer_key
            )
            layers.append(unit)
            size = width
        if config.zero_init:
            layers[-1].start_at_zero()
        self.layers = nnx.List(layers)
        self.shortcut: Any = nnx.data(None)
        if strides == 1 and in_features == features:
            return
        if is_small:
            self.shortcut = PaddedShortcut(in_features, features, strides)
        elif self.norm_first:
            keep = not norm.makes_bias_redundant
            rngs = stream(jax.random.fold_in(key, 0), 0)
            self.shortcut = conv(
                norm, in_features, features, 1, strides=strides, use_bias=keep, rngs=rngs
            )
        else:
            key = jax.random.fold_in(key, 0)
            self.shortcut = ConvUnit(
                in_features, features, 1, strides, norm=norm, version="v1", key=key
            )

    def __call__(self, x: Array) -> Array:
        if self.norm_first:
            first = self.layers[0].activated(x)
            y = self.layers[0].conv(first)
            for layer in self.layers[1:]:
                y = layer(y)
            return y + (x if self.shortcut is None else self.shortcut(first))
        y = self.layers[0](x)
        for layer in self.layers[1:]:
            y = layer(nnx.relu(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, mean over positions, linear; ``x[B, H, W, C]``."""

    def __init__(
        self, config: ResNetConfig, norm: Norm, depth: int, spec: InputSpec, rngs: nnx.Rngs
    ):
        key = rngs.params()
        self.is_small = config.size_for(spec) == "small"
        self.norm_first = config.version == "v2"
        width = config.width or (16 if self.is_small else 64)
        is_bottleneck = not self.is_small and depth >= _BOTTLENECK_DEPTH
        stem_key = jax.random.fold_in(key, 1)
        size, step = (3, 1) if self.is_small else (7, 2)
        keep = not norm.makes_bias_redundant
        channels = spec.shape[-1]
        self.stem: nnx.Module = (
            # In v2 the first block begins with the norm.
            conv(norm, channels, width, size, strides=step, use_bias=keep, rngs=stream(stem_key, 0))
            if self.norm_first
            else ConvUnit(channels, width, size, step, norm=norm, version="v1", key=stem_key)
        )
        stages, features = [], width
        for i, n_blocks in enumerate(_blocks(depth, self.is_small)):
            blocks, stage_key = [], jax.random.fold_in(key, i + 3)
            for j in range(n_blocks):
                out = width * 2**i * (4 if is_bottleneck else 1)
                block = ResidualBlock(
                    features,
                    out,
                    strides=2 if i > 0 and j == 0 else 1,
                    config=config,
                    norm=norm,
                    is_bottleneck=is_bottleneck,
                    is_small=self.is_small,
                    key=jax.random.fold_in(stage_key, j),
                )
                blocks.append(block)
                features = out
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.norm: Any = nnx.data(None)
        if self.norm_first:
            norm_rngs = stream(jax.random.fold_in(key, 2), 0)
            self.norm = norm.layer(features, layout="image", rngs=norm_rngs)
        self.head = head(features, spec, key=jax.random.fold_in(key, 0))

    def __call__(self, x: Array) -> Array:
        x = self.stem(x)  # pyright: ignore[reportCallIssue]
        x = x if self.norm_first else nnx.relu(x)
        if not self.is_small:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage in self.stages:
            for block in stage:
                x = block(x)
        if self.norm is not None:
            x = nnx.relu(self.norm(x))
        return self.head(jnp.mean(x, axis=(1, 2)))


def _blocks(depth: int, is_small: bool) -> tuple[int, ...]:
    return ((depth - 2) // 6,) * 3 if is_small else _LARGE[depth]


@register("resnet")
@dataclass(frozen=True)
class ResNetConfig:
    """Settings of residual networks; depth and norm are swept.

    Small images: depth 6n+2 (20, 32, 44, 56, 110), three stages of n blocks, shortcuts without
    weights (option A), He et al. 2016a section 4.2. Large ones: depth 18, 34, 50, 101 or 152, a
    7x7 stem with pooling, four stages, bottlenecks from depth 50, projections (option B) where
    the shape changes.

    Attributes:
      version: "v1", the norm after each convolution and the ReLU after the sum (He et al. 2016a);
        "v2", norm and ReLU before each convolution (He et al. 2016b).
      size: "small", "large", or "auto": large from 64x64.
      width: channels of the first stage, doubling at each (bottlenecks give out four times as
        many); None takes 16 for small images and 64 for large ones.
      zero_init: each branch starts at 0, and each block at its shortcut: by the scale of the last
        norm (Goyal et al. 2017), or where none ends the branch by the last convolution's weights.
    """

    version: Version = "v1"
    size: Size = "auto"
    width: int | None = None
    zero_init: bool = False

    def __post_init__(self) -> None:
        if self.width is not None:
            check_positive(self, "width")
        check_choices(self, {"version": Version, "size": Size})

    def size_for(self, spec: InputSpec) -> str:
        """Which of the two families these images get."""
        if self.size != "auto":
            return self.size
        return "large" if min(spec.shape[:2]) >= _LARGE_SIZE else "small"

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]:
        """A factory for ``from_nnx``.

        Raises:
          InputError: unknown norm, a depth that the size does not have, data that are no images,
            or images too small for the strides.
        """
        parsed = norms.parse(norm)
        check_images(spec, "resnet", 2, "strides of 2")
        is_small = self.size_for(spec) == "small"
        if is_small and (not isinstance(depth, int) or depth < 8 or depth % 6 != 2):
            raise InputError(
                f"depth is {depth}: wanted 6n+2, such as 20, 56 or 110, for images of "
                f"{spec.shape[0]}x{spec.shape[1]}; 18, 34 and 50 need size='large'."
            )
        if not is_small:
            check_images(spec, "resnet", 5, "halvings")
            if depth not in _LARGE:
                known = ", ".join(map(str, _LARGE))
                raise InputError(f"depth is {depth}: wanted one of {known} for large images.")
        return lambda rngs: ResNet(self, parsed, depth, spec, rngs)
