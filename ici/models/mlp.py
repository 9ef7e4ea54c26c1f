"""Deep multi-layer perceptrons on bags of words or plain vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ici.errors import InputError
from ici.models import norms
from ici.models.layers import (
    Activation,
    Nonlinearity,
    Placement,
    check_choices,
    check_depth,
    check_positive,
    check_task,
    in_order,
    keeps_bias,
    stream,
)
from ici.models.norms import Norm
from ici.models.registry import InputSpec, register

Init = Literal["he", "glorot", "small_gaussian"]


class Block(nnx.Module):
    """Linear map, norm and nonlinearity in the order of `placement`; ``x[B, D]``."""

    def __init__(
        self,
        in_features: int,
        config: MLPConfig,
        norm: Norm,
        *,
        key: jax.Array,
    ):
        self.nonlinearity = Nonlinearity(config.activation)
        self.placement: Placement = config.placement
        self.linear = norm.linear(
            in_features,
            config.width,
            use_bias=keeps_bias(config.placement, norm),
            kernel_init=config.initializer,
            rngs=stream(key, 0),
        )
        normed = in_features if config.placement == "pre" else config.width
        self.norm = norm.layer(normed, layout="vector", rngs=stream(key, 1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return in_order(
            self.placement, x, weights=self.linear, norm=self.norm, activation=self.nonlinearity
        )


class BagOfWords(nnx.Module):
    """Mean of the embeddings of a text's tokens. Token 0 is padding and does not count."""

    def __init__(self, vocab_size: int, features: int, *, key: jax.Array):
        self.embed = nnx.Embed(
            vocab_size,
            features,
            embedding_init=nnx.initializers.normal(1.0),
            rngs=stream(key, 0),
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        real_BT = (tokens_BT > 0).astype(jnp.float32)
        weight_BT = real_BT / jnp.maximum(jnp.sum(real_BT, axis=-1, keepdims=True), 1.0)
        return jnp.einsum("bt,btd->bd", weight_BT, self.embed(tokens_BT))


class MLP(nnx.Module):
    """``depth`` blocks and a linear map to ``[B, n_classes]`` logits or real targets.

    Takes ``x[B, ...]``, such as vectors or images, which it flattens, or ``tokens[B, T]``.
    """

    def __init__(self, config: MLPConfig, norm: Norm, depth: int, spec: InputSpec, rngs: nnx.Rngs):
        key = rngs.params()
        features = spec.n_features
        if spec.vocab_size is not None:
            features = config.embed_features
            self.words = BagOfWords(spec.vocab_size, features, key=jax.random.fold_in(key, 0))
        self.is_text = spec.vocab_size is not None
        blocks = []
        for i in range(depth):
            block_key = jax.random.fold_in(key, i + 2)
            blocks.append(Block(features, config, norm, key=block_key))
            features = config.width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(
            features,
            spec.n_classes,
            kernel_init=config.head_initializer,
            rngs=stream(jax.random.fold_in(key, 1), 0),
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

    The network for MNIST of Ioffe & Szegedy 2015, section 4.1, is
    ``MLPConfig(width=100, activation="sigmoid", init="small_gaussian")`` at depth 3. The paper does
    not tell the size of its small Gaussian values: `gaussian_std` is that.

    Attributes:
      width: units per hidden layer.
      activation: nonlinearity of each block.
      placement: norm after the linear map ("post"), before it ("pre"), or after the nonlinearity
        ("after").
      init: weights of the blocks: He or Glorot normal; or a Gaussian of standard deviation
        `gaussian_std`, of the classifier too. Biases start at 0.
      gaussian_std: standard deviation for the init "small_gaussian".
      embed_features: size of a word's embedding, for text.
    """

    width: int = 128
    activation: Activation = "relu"
    placement: Placement = "post"
    init: Init = "he"
    gaussian_std: float = 0.01
    embed_features: int = 64

    def __post_init__(self) -> None:
        check_positive(self, "width", "embed_features")
        check_choices(self, {"activation": Activation, "placement": Placement, "init": Init})
        if not 0 < self.gaussian_std < float("inf"):
            raise InputError(f"gaussian_std is {self.gaussian_std}: wanted a number > 0.")

    @property
    def initializer(self) -> nnx.Initializer:
        """Of the blocks' weights."""
        return {
            "he": nnx.initializers.he_normal(),
            "glorot": nnx.initializers.glorot_normal(),
            "small_gaussian": nnx.initializers.normal(self.gaussian_std),
        }[self.init]

    @property
    def head_initializer(self) -> nnx.Initializer:
        """Of the classifier's weights."""
        # No nonlinearity follows, so no gain for one: the loss starts near ln(classes).
        gaussian = self.init == "small_gaussian"
        return self.initializer if gaussian else nnx.initializers.lecun_normal()

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]:
        """A factory for ``from_nnx``.

        Raises:
          InputError: unknown norm, a depth below 1, or language-model data.
        """
        parsed = norms.parse(norm)
        check_depth(depth)
        check_task(spec, "mlp")
        return lambda rngs: MLP(self, parsed, depth, spec, rngs)
