"""Tags: identities that mark a layer's input in a traced program, until `ici.harvest` reads it.

A tag survives every transformation that a model may use around its layers (jit, scan, remat,
vmap, grad), which is why layers are watched this way: what a probe wants is decided on the whole
program afterwards, not inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


@dataclass(frozen=True)
class Mark:
    """What is known of a tagged call where it is traced.

    Attributes:
      path: path of the module in the tree of variables.
      module: its class.
      argument: which argument is tagged; empty if it is the only array.
      has_weights: whether the module itself owns parameters.
      stack: path of the outermost module around this call (or this one) that sees one row of its
        stacked variables; None where there is none.
      where: "input" or "attention".
      operands: names of the tagged arrays.
      settings: further keywords of an attention statistic.
      call: number of the traced call; None where equal marks are sure to mean the same layer.
      refused: why what is tagged cannot be read.
    """

    path: tuple[str, ...]
    module: type
    argument: str = ""
    has_weights: bool = False
    stack: tuple[str, ...] | None = None
    where: str = "input"
    operands: tuple[str, ...] = ("x",)
    settings: tuple[tuple[str, Any], ...] = ()
    call: int | None = None
    refused: str = ""


@dataclass(frozen=True)
class Axis:
    """A vmapped axis, leading in those tagged arrays that have it.

    ``model`` says that the layer's weights have it too: one layer per row, not one batch.
    """

    size: int
    model: bool
    present: tuple[bool, ...]


def tag(mark: Mark, values: Sequence[Array], weight: Array | None) -> list[Array]:
    """`values`, tagged. `weight` is any variable of the layer: whether it is mapped or scanned
    tells a stack of layers from a batch of inputs."""
    operands = [*values] if weight is None else [*values, jax.lax.stop_gradient(weight)]
    return tag_p.bind(*operands, mark=mark, axes=())


tag_p = Primitive("ici_tag")
tag_p.multiple_results = True


def _values(operands: Sequence[Any], mark: Mark, **_: Any) -> list[Any]:
    return list(operands[: len(mark.operands)])


tag_p.def_impl(lambda *operands, **params: _values(operands, **params))
tag_p.def_abstract_eval(lambda *operands, **params: _values(operands, **params))
mlir.register_lowering(tag_p, lambda _, *operands, **params: _values(operands, **params))


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    return tag_p.bind(*primals, **params), _values(tangents, **params)


def _batch(operands: Sequence[Any], dims: Sequence[Any], *, mark: Mark, axes: Any) -> Any:
    n = len(mark.operands)
    mapped = [dim is not None for dim in dims]
    size = next(x.shape[d] for x, d, m in zip(operands, dims, mapped, strict=True) if m)
    front = [
        jnp.moveaxis(x, d, 0) if m else x for x, d, m in zip(operands, dims, mapped, strict=True)
    ]
    axis = Axis(size, any(mapped[n:]), tuple(mapped[:n]))
    outs = tag_p.bind(*front, mark=mark, axes=(axis, *axes))
    return outs, [0 if m else None for m in mapped[:n]]


ad.primitive_jvps[tag_p] = _jvp
batching.primitive_batchers[tag_p] = _batch
