"""What it takes to run a traced program equation by equation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex

# Inner programs that only group equations, and the parameter that holds them.
INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
REMATERIALISED = {name: "jaxpr" for name in ("remat", "remat2", "checkpoint")}


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, closed or not."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, jex.ClosedJaxpr) else (jaxpr, ())


def bind(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation, as it was traced."""
    params = equation.primitive.get_bind_params(equation.params)
    results = equation.primitive.bind(*operands, **params)
    return list(results) if equation.primitive.multiple_results else [results]
