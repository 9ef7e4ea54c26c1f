"""Reading the tags of a traced program: what is tagged where, and the same program with readings.

The program is run equation by equation; scans and remats that hold tags are rebuilt with the
readings as further outputs, and everything else is bound as it was traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex

from ici.measure.jaxprs import INLINED, REMATERIALISED, bind, opened
from ici.tags import Axis, Mark, tag_p

PyTree = Any
Place = tuple[int, ...]
_REFUSED = {
    "cond": "inside a condition (cond or switch): whether it runs depends on the values",
    "while": "inside a while loop: how often it runs depends on the values; wanted a scan",
    "shard_map": "inside a shard_map of the model's own: each device sees a part of the batch",
    "custom_jvp_call": "inside a function with a derivative of its own (custom_jvp)",
    "custom_vjp_call": "inside a function with a derivative of its own (custom_vjp)",
}


@dataclass(frozen=True)
class Loop:
    """A scan around a tag. ``stacked`` says that the layer's weights differ by iteration."""

    depth: int
    length: int
    reverse: bool
    stacked: bool


@dataclass(frozen=True)
class Tagged:
    """One tag of a program.

    Attributes:
      place: index of the equation at each level of nesting.
      shapes: of the tagged arrays, with the vmapped axes that they have in front.
      loops: the scans around it, outermost first.
      refused: why it cannot be read; empty if it can.
    """

    place: Place
    mark: Mark
    axes: tuple[Axis, ...]
    shapes: tuple[tuple[int, ...], ...]
    loops: tuple[Loop, ...]
    refused: str


def survey(jaxpr: Any) -> list[Tagged]:
    """Every tag of a closed jaxpr, in the order of the program."""
    return list(_survey(opened(jaxpr)[0], {}, (), (), ""))


def _survey(
    jaxpr: Any,
    varies: dict[Any, frozenset[int]],
    place: Place,
    loops: tuple[tuple[int, int, bool], ...],
    refused: str,
) -> Iterator[Tagged]:
    """``varies`` holds the depths of the scans whose iterations a value differs between."""

    def of(atom: Any) -> frozenset[int]:
        return frozenset() if isinstance(atom, jex.Literal) else varies.get(atom, frozenset())

    for index, equation in enumerate(jaxpr.eqns):
        here, params, name = (*place, index), equation.params, equation.primitive.name
        sets = [of(atom) for atom in equation.invars]
        if equation.primitive is tag_p:
            yield _tagged(equation, here, loops, sets, refused)
        for inner in jex.jaxprs_in_params(params):
            inner_loops, inner_sets, why = loops, sets, refused
            if name == "scan":
                depth, first = len(here), params["num_consts"] + params["num_carry"]
                inner_loops = (*loops, (depth, params["length"], params["reverse"]))
                inner_sets = [s | {depth} if i >= first else s for i, s in enumerate(sets)]
            elif name not in INLINED and name not in REMATERIALISED:
                why = refused or _REFUSED.get(name, f"inside {name}, which no reading can leave")
                inner_sets = []
            inner = opened(inner)[0]
            known = dict(zip(inner.invars, inner_sets, strict=False))
            yield from _survey(inner, known, here, inner_loops, why)
        together = frozenset().union(*sets)
        if together:
            varies.update((out, together) for out in equation.outvars)


def _tagged(equation: Any, place: Place, loops: Any, sets: Any, refused: str) -> Tagged:
    mark: Mark = equation.params["mark"]
    n = len(mark.operands)
    weights = frozenset().union(*sets[n:])
    return Tagged(
        place=place,
        mark=mark,
        axes=equation.params["axes"],
        shapes=tuple(atom.aval.shape for atom in equation.invars[:n]),
        loops=tuple(Loop(*loop, stacked=loop[0] in weights) for loop in loops),
        refused=refused or mark.refused,
    )


Take = Callable[[list[Any], Any], tuple[list[Any], PyTree]]


def harvest(
    jaxpr: Any, takes: Mapping[Place, Take], sinks: Mapping[Place, PyTree]
) -> tuple[list[Any], dict[Place, PyTree]]:
    """Outputs of a closed jaxpr without inputs, and what each of `takes` read.

    Args:
      jaxpr: a program with tags.
      takes: per tag to be read, ``take(values, sink) -> (values, reading)``, traced in place.
      sinks: per tag, what its `take` is given; ``[length, ...]`` for each scan around it.

    Returns:
      The outputs, and the readings, ``[length, ...]`` for each scan around their tag.
    """
    program, consts = opened(jaxpr)
    return _Harvest(takes).run(program, consts, [], (), sinks)


class _Harvest:
    def __init__(self, takes: Mapping[Place, Take]):
        self.takes = takes
        self.around = {place[:n] for place in takes for n in range(len(place))}

    def run(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        arguments: Sequence[Any],
        place: Place,
        sinks: Mapping[Place, PyTree],
    ) -> tuple[list[Any], dict[Place, PyTree]]:
        known: dict[Any, Any] = {}
        readings: dict[Place, PyTree] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else known[atom]

        for index, equation in enumerate(jaxpr.eqns):
            here = (*place, index)
            operands = [read(atom) for atom in equation.invars]
            with equation.ctx.manager:
                if equation.primitive is tag_p:
                    results = operands[: len(equation.outvars)]
                    if here in self.takes:
                        results, readings[here] = self.takes[here](results, sinks.get(here))
                elif here in self.around:
                    inside = {p: s for p, s in sinks.items() if p[: len(here)] == here}
                    results, inner = self.nested(equation, operands, here, inside)
                    readings |= inner
                else:
                    results = bind(equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars], readings

    def nested(
        self, equation: Any, operands: list[Any], here: Place, sinks: dict[Place, PyTree]
    ) -> tuple[list[Any], dict[Place, PyTree]]:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self.scan(params, operands, here, sinks)
        inner, consts = opened(params[(INLINED | REMATERIALISED)[name]])
        if name in INLINED:
            return self.run(inner, consts, operands, here, sinks)

        def function(operands: Any, sinks: Any) -> Any:
            return self.run(inner, consts, operands, here, sinks)

        rematerialised = jax.checkpoint(
            function, prevent_cse=params["prevent_cse"], policy=params["policy"]
        )
        return rematerialised(operands, sinks)

    def scan(
        self, params: Any, operands: list[Any], here: Place, sinks: dict[Place, PyTree]
    ) -> tuple[list[Any], dict[Place, PyTree]]:
        n_consts, n_carry = params["num_consts"], params["num_carry"]
        consts = operands[:n_consts]
        first, rows = operands[n_consts : n_consts + n_carry], operands[n_consts + n_carry :]
        inner, inner_consts = opened(params["jaxpr"])

        def body(carry: list[Any], at: Any) -> tuple[list[Any], Any]:
            row, sinks = at
            outputs, readings = self.run(inner, inner_consts, [*consts, *carry, *row], here, sinks)
            return outputs[:n_carry], (outputs[n_carry:], readings)

        carry, (stacked, readings) = lax.scan(
            body,
            first,
            (rows, sinks),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *stacked], readings
