"""Deep multi-layer perceptrons on bags of words or plain vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from ici.errors import InputError, unknown_name
from ici.models import norms
from ici.models.registry import InputSpec, register

Activation = Literal["relu", "sigmoid", "tanh", "gelu"]
Placement = Literal["post", "pre"]
Init = Literal["he", "glorot", "small_gaussian"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nnx.relu,
    "sigmoid": nnx.sigmoid,
    "tanh": jnp.tanh,
    "gelu": nnx.gelu,
}
_INITS = {
    "he": nnx.initializers.he_normal(),
    "glorot": nnx.initializers.glorot_normal(),
    "small_gaussian": nnx.initializers.normal(0.01),
}


def _stream(key: jax.Array, index: int) -> nnx.Rngs:
    """Own random numbers per layer: variants that differ in a norm or in depth share weights."""
    return nnx.Rngs(jax.random.fold_in(key, index))


class Block(nnx.Module):
    """Linear map, then norm and nonlinearity in the order of `placement`.

    ``"post"``: linear → norm → activation, the norm after the linear map (Ioffe & Szegedy 2015).
    ``"pre"``: norm → linear → activation, the norm before it.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        norm: str,
        activation: Activation,
        placement: Placement,
        init: Init,
        key: jax.Array,
    ):
        self.activation = activation
        self.placement = placement
        self.linear = nnx.Linear(
            in_features,
            features,
            use_bias=not (placement == "post" and norms.makes_bias_redundant(norm)),
            kernel_init=_INITS[init],
            rngs=_stream(key, 0),
        )
        normed = features if placement == "post" else in_features
        self.norm = norms.make_norm(norm, normed, rngs=_stream(key, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.linear(x)) if self.placement == "post" else self.linear(self.norm(x))
        return _ACTIVATIONS[self.activation](x)


class BagOfWords(nnx.Module):
    """Mean of the embeddings of a text's tokens. Token 0 is padding and does not count."""

    def __init__(self, vocab_size: int, features: int, *, key: jax.Array):
        self.embed = nnx.Embed(
            vocab_size,
            features,
            embedding_init=nnx.initializers.normal(1.0),
            rngs=_stream(key, 0),
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        real_BT = (tokens_BT > 0).astype(jnp.float32)
        weight_BT = real_BT / jnp.maximum(jnp.sum(real_BT, axis=-1, keepdims=True), 1.0)
        return jnp.einsum("bt,btd->bd", weight_BT, self.embed(tokens_BT))


class MLP(nnx.Module):
    """``depth`` blocks and a linear classifier; ``x[B, D]`` or ``tokens[B, T]`` to logits."""

    def __init__(self, config: MLPConfig, norm: str, depth: int, spec: InputSpec, rngs: nnx.Rngs):
        key = rngs.params()
        features = spec.n_features
        if spec.vocab_size is not None:
            features = config.embed_features
            self.words = BagOfWords(spec.vocab_size, features, key=jax.random.fold_in(key, 0))
        self.is_text = spec.vocab_size is not None
        blocks = []
        for i in range(depth):
            blocks.append(
                Block(
                    features,
                    config.width,
                    norm=norm,
                    activation=config.activation,
                    placement=config.placement,
                    init=config.init,
                    key=jax.random.fold_in(key, i + 2),
                )
            )
            features = config.width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(
            features,
            spec.n_classes,
            # No nonlinearity follows, so no gain for one: the loss starts near ln(classes).
            kernel_init=nnx.initializers.lecun_normal(),
            rngs=_stream(jax.random.fold_in(key, 1), 0),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.words(x) if self.is_text else x.reshape(x.shape[0], -1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@register("mlp")
@dataclass(frozen=True)
class MLPConfig:
    """Settings of the MLP family; depth and norm are swept by the experiment.

    Attributes:
      width: units per hidden layer.
      activation: nonlinearity after each block.
      placement: norm after ("post") or before ("pre") the linear map.
      init: weights of the blocks: He or Glorot normal, or a Gaussian of standard deviation 0.01.
        Biases start at 0.
      embed_features: size of a word's embedding, for text.
    """

    width: int = 128
    activation: Activation = "relu"
    placement: Placement = "post"
    init: Init = "he"
    embed_features: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "embed_features"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value}: wanted an integer >= 1.")
        for name, choices in (("activation", Activation), ("placement", Placement), ("init", Init)):
            if getattr(self, name) not in get_args(choices):
                raise unknown_name(name, getattr(self, name), get_args(choices))

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]:
        """A factory for ``from_nnx``."""
        norms.check_norm(norm)
        if not isinstance(depth, int) or depth < 1:
            raise InputError(f"depth is {depth}: wanted an integer >= 1.")
        return lambda rngs: MLP(self, norm, depth, spec, rngs)
