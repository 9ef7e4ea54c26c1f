"""Convolutions in the order of axes that the CPU compiler is fast at.

XLA's CPU compiler brings a convolution's axes into the order its kernels want only outside of
loops. A gradient with respect to weights has them in another order, and every step of a fleet is
inside a loop: measured on two cores, 20 to 100 times slower than outside. So the axes are brought
into order here, in the traced program, whoever wrote the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.extend import core as jex

from ici.measure.jaxprs import bind, opened

_CONVOLUTION = lax.conv_general_dilated_p


def in_canonical_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, with every convolution's axes in canonical order.

    Batch first and features last, in and out; spatial axes first in the kernel. The same values up
    to the rounding of sums. A program without any other convolution stays as it is.
    """

    @functools.wraps(function)
    def reordered(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)

        def flat(*leaves: Any) -> Any:
            return function(*jax.tree.unflatten(structure, leaves))

        program, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        results = jex.jaxpr_as_fun(_rewritten(program))(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return reordered


def _is_canonical(numbers: Any) -> bool:
    return _canonical(len(numbers.lhs_spec) - 2) == numbers


def _canonical(n_spatial: int) -> lax.ConvDimensionNumbers:
    spatial = range(1, n_spatial + 1)
    images = (0, n_spatial + 1, *spatial)
    return lax.ConvDimensionNumbers(images, (n_spatial + 1, n_spatial, *range(n_spatial)), images)


def _concerns(jaxpr: Any) -> bool:
    """Whether any convolution in it, however deep, has its axes in another order."""
    return any(
        (e.primitive is _CONVOLUTION and not _is_canonical(e.params["dimension_numbers"]))
        or any(_concerns(opened(inner)[0]) for inner in jex.jaxprs_in_params(e.params))
        for e in jaxpr.eqns
    )


def _rewritten(program: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    if not _concerns(program.jaxpr):
        return program
    run = functools.partial(_run, program.jaxpr, program.consts)
    return jax.make_jaxpr(run)(*program.in_avals)


def _run(jaxpr: Any, consts: Sequence[Any], *arguments: Any) -> list[Any]:
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        with equation.ctx.manager:
            if equation.primitive is _CONVOLUTION:
                results = [_convolution(*operands, **equation.params)]
            else:
                results = bind(_with_inner(equation), operands)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _with_inner(equation: Any) -> Any:
    """An equation that holds programs, such as a scan, with these rewritten."""

    def inner(value: Any) -> Any:
        if isinstance(value, jex.ClosedJaxpr):
            return _rewritten(value)
        if isinstance(value, jex.Jaxpr) and not value.constvars:
            return _rewritten(jex.ClosedJaxpr(value, ())).jaxpr
        if isinstance(value, tuple) and any(isinstance(v, jex.ClosedJaxpr) for v in value):
            return tuple(map(inner, value))
        return value

    if not any(_concerns(opened(program)[0]) for program in jex.jaxprs_in_params(equation.params)):
        return equation
    return equation.replace(params={name: inner(v) for name, v in equation.params.items()})


def _convolution(lhs: Array, rhs: Array, *, dimension_numbers: Any, **params: Any) -> Array:
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    lhs = lax.transpose(lhs, _features_last(lhs_spec))
    rhs = lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
    numbers = _canonical(len(lhs_spec) - 2)
    out = _CONVOLUTION.bind(lhs, rhs, dimension_numbers=numbers, **params)
    return lax.transpose(out, tuple(int(i) for i in np.argsort(_features_last(out_spec))))


def _features_last(spec: Sequence[int]) -> tuple[int, ...]:
    return (spec[0], *spec[2:], spec[1])
