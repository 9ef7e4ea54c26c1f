"""The norms that come with the package."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

from flax import nnx

from ici.errors import InputError
from ici.models.norms.over_batch import LpBatchNorm, NoisyBatchNorm
from ici.models.norms.per_example import DynamicTanhNorm, GroupNorm, InstanceNorm, NoNorm
from ici.models.norms.spec import Layout, Limit, register

_LIMITS: dict[str, Limit] = {
    "epsilon": ("0 < epsilon <= 1", lambda v: 0 < v <= 1),
    "momentum": ("0 <= momentum < 1", lambda v: 0 <= v < 1),
    "ghost": ("ghost >= 1 examples", lambda v: v is None or v >= 1),
    "groups": ("groups >= 1", lambda v: v is None or v >= 1),
    "alpha": ("0 < alpha <= 100", lambda v: 0 < v <= 100),
    "n_mu": ("0 <= n_mu <= 100", lambda v: 0 <= v <= 100),
    "n_sigma": ("1 <= n_sigma <= 100", lambda v: 1 <= v <= 100),
    "r": ("0 <= r <= 100", lambda v: 0 <= v <= 100),
    # Float32 holds the 8th power of 60,000.
    "p": ("1 <= p <= 8, or inf", lambda v: 1 <= v <= 8 or v == inf),
}


@register("none")
def _none(features: int, *, rngs: nnx.Rngs) -> nnx.Module:
    del features, rngs
    return NoNorm()


@register("weight", limits=_LIMITS)
def _weight(features: int, *, epsilon: float = 1e-12, rngs: nnx.Rngs) -> nnx.Module:
    """Weight normalization is of the layers before it: see `Norm.linear` and `Norm.conv`."""
    del features, epsilon, rngs
    return NoNorm()


@register("batch", centres=True, over_batch=True, limits=_LIMITS)
def _batch(
    features: int,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    affine: bool = True,
    ghost: int | None = None,
    local: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Batch normalization (Ioffe & Szegedy 2015)."""
    if ghost is None and not local:
        return nnx.BatchNorm(
            features,
            epsilon=epsilon,
            momentum=momentum,
            use_scale=affine,
            use_bias=affine,
            # The default is E[x²]−E[x]², which cancels where the mean is large.
            use_fast_variance=False,
            rngs=rngs,
        )
    return LpBatchNorm(
        features,
        centred=True,
        epsilon=epsilon,
        momentum=momentum,
        affine=affine,
        ghost=ghost,
        local=local,
    )


register("batch_noisy", centres=True, over_batch=True, limits=_LIMITS)(NoisyBatchNorm)


def _of_centred_values(*, centred: bool = False, **_: Any) -> bool:
    return centred


for _name, _bound in (("lp", {}), ("l1", {"p": 1.0}), ("l2", {"p": 2.0}), ("linf", {"p": inf})):
    register(_name, centres=_of_centred_values, over_batch=True, limits=_LIMITS)(
        partial(LpBatchNorm, **_bound)
    )


@register("layer", limits=_LIMITS)
def _layer(
    features: int,
    *,
    epsilon: float = 1e-5,
    affine: bool = True,
    per_position: bool = False,
    layout: Layout = "vector",
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Layer normalization (Ba, Kiros & Hinton 2016).

    In an image over all positions and channels of an example, or with `per_position` over the
    channels alone.
    """
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        reduction_axes=_axes(layout, per_position),
        rngs=rngs,
    )


@register("rms", limits=_LIMITS)
def _rms(
    features: int,
    *,
    epsilon: float = 1e-5,
    affine: bool = True,
    per_position: bool = False,
    layout: Layout = "vector",
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Root-mean-square normalization (Zhang & Sennrich 2019); over the axes that "layer" takes."""
    return nnx.RMSNorm(
        features,
        epsilon=epsilon,
        use_scale=affine,
        reduction_axes=_axes(layout, per_position),
        rngs=rngs,
    )


def _axes(layout: Layout, per_position: bool) -> tuple[int, ...]:
    return (-3, -2, -1) if layout == "image" and not per_position else (-1,)


@register("group", limits=_LIMITS)
def _group(
    features: int,
    *,
    groups: int | None = None,
    epsilon: float = 1e-5,
    affine: bool = True,
    per_position: bool = False,
    layout: Layout = "vector",
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Group normalization (Wu & He 2018), in 32 groups.

    Where there are fewer channels, each is a group of its own in an image, and two share one
    where a position is normalised by itself.
    """
    del rngs
    over_positions = layout == "image" and not per_position
    most = features if over_positions else max(1, features // 2)
    return GroupNorm(
        features,
        groups=min(32, most) if groups is None else groups,
        over_positions=over_positions,
        epsilon=epsilon,
        affine=affine,
    )


@register("instance", centres=True, limits=_LIMITS)
def _instance(
    features: int,
    *,
    epsilon: float = 1e-5,
    affine: bool = True,
    layout: Layout = "vector",
    rngs: nnx.Rngs,
) -> nnx.Module:
    del rngs
    if layout != "image":
        raise InputError(
            f"norm 'instance' on a {layout}: each feature would be normalised by its own single "
            "value; wanted images, or use 'layer'."
        )
    return InstanceNorm(features, epsilon=epsilon, affine=affine)


register("dyt", limits=_LIMITS)(DynamicTanhNorm)
