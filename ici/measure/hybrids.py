"""Gradients of many hybrids of two parameter settings, at the price of a third of as many passes.

Block i's hybrid has the new parameters in the blocks before i and the old ones from i on. Run one
by one, k hybrids are k forward and backward passes. Here they run together, over the objective's
own jaxpr, so that no model has to be cut into pieces by hand: wherever blocks 0 … m have been
applied, the hybrids above m still share one value, and those up to m differ and are carried as a
growing stack. Only hybrid i is differentiated with respect to block i. So about k²/2 forward and
k²/2 backward products remain of k² and 2k², and what is compiled grows with k, not with k².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax import Array
from jax.interpreters import partial_eval

from ici.measure.jaxprs import INLINED, REMATERIALISED, bind, opened

PyTree = Any
Owners = Sequence[int | Sequence[int]]
# Run equation by equation, like the program around them.
_INNER = INLINED | REMATERIALISED
_ROW_BY_ROW = {"convert_element_type", "copy", "copy_p", "optimization_barrier"}


@dataclass(frozen=True)
class _Stack:
    """One value in all hybrids 0 … k−1. ``level`` m is the last block upstream of it, −1: none.

    Attributes:
      base: in hybrid 0, where every block is old.
      early: in hybrids 1 … m−1; ``[m − 1, ...]`` where `batched`, else equal in all. None: m < 2.
      own: in hybrid m. None: m < 1.
      late: in hybrids above m, which agree. None: there are none (m = k − 1).
    """

    level: int
    base: Any
    early: Any = None
    batched: bool = False
    own: Any = None
    late: Any = None


class _Rows(list):
    """A value stacked for a scan, one `_Stack` per row: its rows belong to different blocks."""


class _Hybrids:
    """Runs a jaxpr on `_Stack`s."""

    def __init__(self, n_blocks: int):
        self.n_blocks = n_blocks
        self.lifted: dict[tuple[int, int], tuple[_Stack, _Stack]] = {}

    def parameter(self, block: int, traced: Any, own: Any, old: Any, new: Any) -> _Stack:
        """A parameter of `block`: gradients flow to `traced` from hybrid 0 and to `own` from the
        block's own hybrid; `old` and `new` are constants."""
        return _Stack(
            level=block,
            base=traced,
            early=old if block > 1 else None,
            own=own if block > 0 else None,
            late=new if block < self.n_blocks - 1 else None,
        )

    def lift(self, value: _Stack, level: int) -> _Stack:
        """The same value, laid out as one that block `level` is upstream of."""
        if value.level == level or level < 0:
            return value
        key = (id(value), level)
        if key not in self.lifted:
            self.lifted[key] = (value, self._lift(value, level))
        return self.lifted[key][1]

    def _lift(self, value: _Stack, level: int) -> _Stack:
        if value.level < 0:
            x = value.base
            return _Stack(level, x, x if level > 1 else None, False, x if level else None, x)
        late = value.late
        parts = []
        if value.early is not None:
            n_early = value.level - 1
            parts.append(value.early if value.batched else _repeat(value.early, n_early))
        if value.own is not None:
            parts.append(_repeat(value.own, 1))
        if level - 1 > value.level:
            parts.append(_repeat(late, level - 1 - value.level))
        early = None
        if level > 1:
            # Block 0 has no hybrid of its own beside hybrid 0: the others still agree.
            shared = value.level == 0
            early = late if shared else jnp.concatenate(parts)
        return _Stack(level, value.base, early, level > 1 and value.level > 0, late, late)

    def map(self, function: Callable[..., Any], *values: Any) -> list[_Stack]:
        """``function`` (arrays to a list of arrays) in every hybrid."""
        stacks = [self.whole(value) for value in values]
        level = max((value.level for value in stacks), default=-1)
        stacks = [self.lift(value, level) for value in stacks]
        bases = function(*(value.base for value in stacks))
        none = [None] * len(bases)
        earlies, owns, lates, batched = none, none, none, False
        if level > 1:
            axes = [0 if value.batched else None for value in stacks]
            batched = 0 in axes
            early = jax.vmap(function, in_axes=axes) if batched else function
            earlies = early(*(value.early for value in stacks))
        if level > 0:
            owns = function(*(value.own for value in stacks))
        if 0 <= level < self.n_blocks - 1:
            lates = function(*(value.late for value in stacks))
        return [
            _Stack(level, base, early, batched, own, late)
            for base, early, own, late in zip(bases, earlies, owns, lates, strict=True)
        ]

    def whole(self, value: Any) -> _Stack:
        """`value` as one stack, its rows put together if it has any."""
        if not isinstance(value, _Rows):
            return value
        return self.map(lambda *rows: [jnp.stack(rows)], *value)[0]

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The outputs of `jaxpr`."""
        known: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            if isinstance(atom, jex.core.Literal):
                return _Stack(-1, atom.val)
            return known[atom]

        known.update(zip(jaxpr.constvars, (_Stack(-1, c) for c in consts), strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            with equation.ctx.manager:
                results = self.equation(equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, operands: list[Any]) -> list[Any]:
        name = equation.primitive.name

        def evaluate(*operands: Any) -> list[Any]:
            return bind(equation, operands)

        if name in _INNER:
            return self.run(*opened(equation.params[_INNER[name]]), operands)
        if any(isinstance(value, _Rows) for value in operands):
            if name == "scan":
                return self.unrolled(equation.params, operands)
            if name in _ROW_BY_ROW and len(operands) == 1:
                return [_Rows(self.map(evaluate, row)[0] for row in operands[0])]
        return self.map(evaluate, *operands)

    def unrolled(self, params: dict[str, Any], operands: list[Any]) -> list[Any]:
        """A scan over layers, iteration by iteration."""
        n_consts, n_carry = params["num_consts"], params["num_carry"]
        consts = operands[:n_consts]
        carry = operands[n_consts : n_consts + n_carry]
        stacked = operands[n_consts + n_carry :]
        body, length = params["jaxpr"], params["length"]
        collected: list[list[Any]] = [[]] * length
        for i in range(length)[:: -1 if params["reverse"] else 1]:
            rows = [
                value[i] if isinstance(value, _Rows) else self.map(lambda x, i=i: [x[i]], value)[0]
                for value in stacked
            ]
            outputs = self.run(body.jaxpr, body.consts, [*consts, *carry, *rows])
            carry, collected[i] = outputs[:n_carry], outputs[n_carry:]
        return [*carry, *(_Rows(column) for column in zip(*collected, strict=True))]


def _repeat(x: Any, n: int) -> Array:
    return jnp.broadcast_to(jnp.asarray(x)[None], (n, *jnp.shape(x)))


def hybrid_gradients(
    objective: Callable[[PyTree], Array],
    before: PyTree,
    after: PyTree,
    owners: Owners,
    n_blocks: int,
) -> tuple[PyTree, PyTree]:
    """``∇L(before)``, and the same with each block's part taken at the block's own hybrid.

    Args:
      objective: parameters to a scalar.
      before, after: old and new parameters, the same tree.
      owners: per leaf, in the order of ``jax.tree.leaves``, the block it belongs to; or, for a
        leaf stacked for a scan over layers, one block per row.
      n_blocks: number of blocks k, in execution order.

    Returns:
      Two trees like `before`: G, and G', whose leaves of block i are
      ``∂L/∂W_i (W_0 new, …, W_{i−1} new, W_i old, …, W_{k−1} old)``.
    """
    closed = jax.make_jaxpr(objective)(before)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    old, structure = jax.tree.flatten(jax.lax.stop_gradient(before))
    new = jax.tree.leaves(jax.lax.stop_gradient(after))

    def total(traced: list[Any], own: list[Any]) -> Array:
        hybrids = _Hybrids(n_blocks)
        arguments: list[Any] = []
        for leaf, owner in enumerate(owners):
            values = traced[leaf], own[leaf], old[leaf], new[leaf]
            if isinstance(owner, int):
                arguments.append(hybrids.parameter(owner, *values))
            else:
                arguments.append(
                    _Rows(
                        hybrids.parameter(block, *(value[row] for value in values))
                        for row, block in enumerate(owner)
                    )
                )
        kept = [argument for argument, use in zip(arguments, used, strict=True) if use]
        loss = hybrids.whole(hybrids.run(jaxpr, closed.consts, kept)[0])
        parts = [loss.base, *(part for part in (loss.early, loss.own) if part is not None)]
        return sum((jnp.sum(part) for part in parts), jnp.float32(0))

    base, own = jax.grad(total, argnums=(0, 1))(old, old)
    # Block 0 has nothing below it: its own hybrid is hybrid 0.
    shifted = [_own_or_base(owner, *pair) for owner, *pair in zip(owners, own, base, strict=True)]
    return jax.tree.unflatten(structure, base), jax.tree.unflatten(structure, shifted)


def _own_or_base(owner: int | Sequence[int], own: Array, base: Array) -> Array:
    if isinstance(owner, int):
        return own if owner else base
    first = jnp.asarray([block == 0 for block in owner])
    return jnp.where(first.reshape(-1, *(1,) * (own.ndim - 1)), base, own)
