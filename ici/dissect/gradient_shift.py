"""Gradient shift: how a layer's gradient changes because the layers below it moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from ici.adapt import Model, Variables, check_same_model
from ici.adapt.model import Loss
from ici.dissect.blocks import Blocks, find_blocks
from ici.dissect.objective import (
    Batch,
    batch_of,
    in_float32,
    loss_of,
    objective_of,
    variables_of,
)
from ici.errors import unknown_name
from ici.measure.hybrids import hybrid_gradients

PyTree = Any
Method = Literal["auto", "stacked", "separate"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradientShift:
    """Internal covariate shift as Santurkar et al. define it, for every block.

    Definition: on one batch, G_i = ∇_{W_i} L(W_1ᵗ, …, W_kᵗ) and
    G'_i = ∇_{W_i} L(W_1ᵗ⁺¹, …, W_{i−1}ᵗ⁺¹, W_iᵗ, …, W_kᵗ): what the update of the blocks below i
    did to the gradient of block i. Exactly 0 for the first block, and wherever nothing below moved.

    Source: Santurkar, Tsipras, Ilyas & Madry, "How Does Batch Normalization Help Optimization?"
    (2018), definition 2.1.

    Cost: reference: a third to a half of k forward and backward passes for all k blocks together.

    Caveats: raw norms are not comparable between networks whose gradients differ in scale, so
    report the relative value or the cosine beside them. Batch statistics are those of training
    mode, running statistics are dropped; scale and bias of a norm belong to their layer. One
    batch: repeat over batches and seeds for an interval. Rematerialised layers run in line, so
    what they save in memory is not saved here.

    Attributes:
      l2: ``[k]``, ‖G_i − G'_i‖₂.
      relative: ``[k]``, the same over ‖G_i‖₂.
      cosine: ``[k]``, cos(G_i, G'_i); NaN where one of them is 0 and the other is not.
      norm: ``[k]``, ‖G_i‖₂.
      norm_shifted: ``[k]``, ‖G'_i‖₂.
      nonfinite: ``[k]``, share of the block's parameters, before or after, that are not finite.
      blocks: names in execution order.
    """

    l2: Array
    relative: Array
    cosine: Array
    norm: Array
    norm_shifted: Array
    nonfinite: Array
    blocks: tuple[str, ...] = field(metadata={"static": True})

    def labelled(self) -> dict[str, Array]:
        """Named arrays for the record, each ``[k]``."""
        return {
            "gradient_shift": self.l2,
            "gradient_shift_relative": self.relative,
            "gradient_shift_cosine": self.cosine,
            "block_gradient_norm": self.norm,
            "block_gradient_norm_shifted": self.norm_shifted,
            "nonfinite_parameters": self.nonfinite,
        }


def gradient_shift_of(
    model: Model,
    loss: Loss,
    before: Variables,
    after: PyTree,
    batch: Batch,
    method: Method = "auto",
    blocks: Blocks | None = None,
) -> GradientShift:
    """`GradientShift` as a traceable function, for use inside a compiled program.

    `after` holds parameters only: the state (running statistics, random keys) of `before` is used
    for both, and what the passes would change in it is dropped.
    """
    blocks = find_blocks(model, before, batch[0]) if blocks is None else blocks
    objective = objective_of(model, loss, before.state, batch)
    old = before.params
    if method == "separate":
        gradient, shifted = _separate(objective, old, after, blocks)
    else:
        try:
            gradient, shifted = hybrid_gradients(objective, old, after, blocks.owners, len(blocks))
        except NotImplementedError:
            # A primitive that JAX cannot batch.
            if method == "stacked":
                raise
            gradient, shifted = _separate(objective, old, after, blocks)
    gradient, shifted = in_float32(gradient), in_float32(shifted)
    moved = blocks.total(jax.tree.map(_differs, old, after)) > 0
    # Where nothing below a block moved, G' is G by definition; computed twice, in stacks of other
    # sizes, the two would differ by rounding.
    below = jnp.cumsum(moved) - moved > 0
    shifted = blocks.select(below, shifted, gradient)
    difference = jax.tree.map(jnp.subtract, gradient, shifted)
    l2, norm, norm_shifted = map(blocks.norm, (difference, gradient, shifted))
    product = blocks.total(jax.tree.map(jnp.multiply, gradient, shifted))
    # What has not moved has no shift, be its gradient NaN.
    l2 = jnp.where(below, l2, 0.0)
    same = l2 == 0
    return GradientShift(
        l2=l2,
        relative=jnp.where(same, 0.0, l2 / norm),
        cosine=jnp.where(same, 1.0, product / (norm * norm_shifted)),
        norm=norm,
        norm_shifted=norm_shifted,
        nonfinite=jnp.maximum(blocks.nonfinite(old), blocks.nonfinite(after)),
        blocks=blocks.names,
    )


def _differs(a: Array, b: Array) -> Array:
    return ((a != b) & ~(jnp.isnan(a) & jnp.isnan(b))).astype(jnp.float32)


def _separate(objective: Any, old: PyTree, new: PyTree, blocks: Blocks) -> tuple[PyTree, PyTree]:
    """G and G' by one whole pass per block."""
    index = jnp.arange(len(blocks))

    def accumulate(shifted: PyTree, block: Array) -> tuple[PyTree, None]:
        mixed = blocks.select(index < block, new, old)
        return blocks.select(index == block, jax.grad(objective)(mixed), shifted), None

    gradient = jax.grad(objective)(old)
    shifted, _ = lax.scan(accumulate, gradient, index[1:])
    return gradient, shifted


@lru_cache(maxsize=32)
def _compiled(model: Model, loss: Loss, method: Method) -> Any:
    return jax.jit(
        lambda before, after, batch: gradient_shift_of(model, loss, before, after, batch, method)
    )


def gradient_shift(
    model: Model,
    loss: Loss | None,
    before: Variables,
    after: Variables,
    batch: Batch,
    *,
    method: Method = "auto",
) -> GradientShift:
    """How the update from `before` to `after` moved every block's gradient on `batch`.

    Args:
      model: from `from_nnx` or `from_linen`.
      loss: ``loss(outputs, targets) -> scalar``; None takes the model's own. The compiled program
        is kept per function: define it once, not at every call.
      before, after: variables of steps t and t+1; the state is taken from `before`.
      batch: ``(inputs, targets)`` of step t.
      method: "stacked" runs all blocks together over the traced program; "separate" runs one
        pass per block; "auto" is stacked wherever the program can be.

    Raises:
      InputError: `before` and `after` differ in structure or shape, or do not fit the model.
    """
    if method not in ("auto", "stacked", "separate"):
        raise unknown_name("method", method, ("auto", "stacked", "separate"))
    before, after = variables_of(before, "before"), variables_of(after, "after")
    check_same_model(before, after)
    compiled = _compiled(model, loss_of(model, loss), method)
    return compiled(before, after.params, batch_of(batch))
