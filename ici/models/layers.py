"""What the model families share: random streams, orders inside a block, and checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.errors import InputError, unknown_name
from ici.models.norms import Norm
from ici.models.registry import InputSpec

Activation = Literal["relu", "sigmoid", "tanh", "gelu", "silu"]
Placement = Literal["post", "pre", "after"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nnx.relu,
    "sigmoid": nnx.sigmoid,
    "tanh": jnp.tanh,
    "gelu": nnx.gelu,
    "silu": nnx.silu,
}


class Nonlinearity(nnx.Module):
    """An activation as a layer of its own, so that its input can be watched."""

    def __init__(self, activation: Activation):
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        return ACTIVATIONS[self.activation](x)


def stream(key: Array, index: int) -> nnx.Rngs:
    """Own random numbers per layer: variants that differ in a norm or in depth share weights."""
    return nnx.Rngs(jax.random.fold_in(key, index))


def in_order(
    placement: Placement,
    x: Array,
    *,
    weights: Callable[[Array], Array],
    norm: Callable[[Array], Array],
    activation: Callable[[Array], Array],
) -> Array:
    """One block.

    ``"post"``: weights → norm → activation, the norm after the weights (Ioffe & Szegedy 2015).
    ``"pre"``: norm → weights → activation, the norm before them.
    ``"after"``: weights → activation → norm, the norm after the nonlinearity.
    """
    if placement == "pre":
        return activation(weights(norm(x)))
    if placement == "after":
        return norm(activation(weights(x)))
    return activation(norm(weights(x)))


def keeps_bias(placement: Placement, norm: Norm) -> bool:
    """Whether a bias of a block's weights has an effect."""
    return not (placement == "post" and norm.makes_bias_redundant)


class ConvBlock(nnx.Module):
    """3x3 convolution, norm and nonlinearity in the order of `placement`; ``x[B, H, W, C]``."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        norm: Norm,
        activation: Activation,
        placement: Placement,
        strides: int = 1,
        key: Array,
    ):
        self.nonlinearity = Nonlinearity(activation)
        self.placement: Placement = placement
        self.conv = conv(
            norm,
            in_features,
            features,
            strides=strides,
            use_bias=keeps_bias(placement, norm),
            rngs=stream(key, 0),
        )
        normed = in_features if placement == "pre" else features
        self.norm = norm.layer(normed, layout="image", rngs=stream(key, 1))

    def __call__(self, x: Array) -> Array:
        return in_order(
            self.placement, x, weights=self.conv, norm=self.norm, activation=self.nonlinearity
        )


def conv(
    norm: Norm, in_features: int, features: int, kernel_size: int = 3, **settings: Any
) -> nnx.Conv:
    """Square convolution that keeps the size at stride 1, with He's initialisation (2015)."""
    margin = (kernel_size // 2, kernel_size // 2)
    return norm.conv(
        in_features,
        features,
        (kernel_size, kernel_size),
        padding=(margin, margin),
        kernel_init=nnx.initializers.he_normal(),
        **settings,
    )


def head(in_features: int, spec: InputSpec, *, key: Array) -> nnx.Linear:
    """The linear map to ``spec.n_classes`` outputs."""
    # No nonlinearity follows, so no gain for one: the loss starts near ln(classes).
    lecun = nnx.initializers.lecun_normal()
    return nnx.Linear(in_features, spec.n_classes, kernel_init=lecun, rngs=stream(key, 0))


# -- checks ------------------------------------------------------------------------------------


def check_choices(config: object, choices: dict[str, Any]) -> None:
    """Raises `InputError` for a field whose value is not in its Literal type."""
    for name, literal in choices.items():
        if getattr(config, name) not in get_args(literal):
            raise unknown_name(name, getattr(config, name), get_args(literal))


def check_positive(config: object, *names: str) -> None:
    """Raises `InputError` for a field that is not an integer of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} is {value}: wanted an integer >= 1.")


def check_depth(depth: int, least: int = 1, why: str = "") -> None:
    """Raises `InputError` for a depth that is not an integer of at least `least`."""
    if not isinstance(depth, int) or depth < least:
        raise InputError(f"depth is {depth}: wanted an integer >= {least}{why}.")


def check_task(spec: InputSpec, model: str) -> None:
    """Raises `InputError` for language-model data."""
    if spec.task == "language_model":
        raise InputError(
            f"model {model!r} on language-model data: it has one output per example; wanted a "
            "language model such as 'transformer'."
        )


def check_no_tokens(spec: InputSpec, model: str) -> None:
    """Raises `InputError` for data that are tokens."""
    if spec.vocab_size is not None:
        raise InputError(f"model {model!r} on tokens: wanted vectors or images; use 'mlp'.")


def check_images(spec: InputSpec, model: str, halvings: int, what: str) -> tuple[int, int, int]:
    """Height, width and channels of images that can be halved so often.

    Raises:
      InputError: tokens or vectors, language-model data, or images that are too small.
    """
    check_task(spec, model)
    if spec.vocab_size is not None or len(spec.shape) != 3:
        seen = "tokens" if spec.vocab_size is not None else f"inputs of shape {spec.shape}"
        raise InputError(
            f"model {model!r} on {seen}: wanted images [height, width, channels]; use 'mlp', or "
            "add the missing axes."
        )
    height, width, channels = spec.shape
    least = 2**halvings
    if min(height, width) < least:
        raise InputError(
            f"image too small for {halvings} {what}: {height}x{width}, wanted >= {least}x{least}."
        )
    return height, width, channels
