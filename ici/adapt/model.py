"""A module of either kind as two pure functions, and checks of what is given to them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Moments
from ici.probe import Probe, Taps

PyTree = Any
Loss = Callable[[Any, Any], Array]


class Variables(NamedTuple):
    """Everything a model carries: trained parameters, and state (running statistics, RNG)."""

    params: PyTree
    state: PyTree


@dataclass(frozen=True)
class Model:
    """A module as two pure functions.

    ``init(key, inputs) -> Variables`` and
    ``apply(variables, inputs, train=True, probe=None, sinks=None) -> (out, state, taps)``, where
    ``taps`` is a `Taps` when a probe is given and None otherwise. ``sinks`` maps site names to
    empty `Moments` whose gradients are the cotangent moments (`cotangent_sinks` makes them).
    ``loss(outputs, targets) -> scalar`` is what `make_train_step` minimises unless it is given
    another; None stands for cross-entropy.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Any, PyTree, Taps | None]]
    name: str = "model"
    loss: Loss | None = None

    def taps_shape(self, variables: Variables, inputs: Any, probe: Probe) -> Taps:
        """The taps of one forward pass as shapes, without computing it.

        Raises:
          InputError: the probe selects nothing; the message lists what could be selected.
        """
        taps = jax.eval_shape(
            lambda v, x: self.apply(v, x, train=True, probe=probe)[2], variables, inputs
        )
        assert taps is not None
        return taps

    def cotangent_sinks(
        self, variables: Variables, inputs: Any, probe: Probe
    ) -> dict[str, Moments]:
        """Empty moments for every site of `probe`: differentiate with respect to them."""
        taps = self.taps_shape(variables, inputs, probe)
        return {
            site.name: Moments.empty(d)
            for site, d in zip(taps.watched, taps.features, strict=True)
            if site.where == "input"
        }


# -- conventions for training and evaluation ---------------------------------------------------

_TRAIN_ARGUMENTS = ("train", "training", "is_training")
_EVAL_ARGUMENTS = ("deterministic", "use_running_average")


def mode_arguments(call: Callable[..., Any], train: bool) -> dict[str, bool]:
    """The mode keywords that `call` takes, by the names Flax code uses for them."""
    parameters = inspect.signature(call).parameters
    return {name: train for name in _TRAIN_ARGUMENTS if name in parameters} | {
        name: not train for name in _EVAL_ARGUMENTS if name in parameters
    }


class MappedAxes:
    """The mapped axes that a module names, such as ``BatchNorm(axis_name="batch")``.

    Bound with size 1: the batch that the model is given is the whole batch, so that a mean over
    the axis changes nothing and statistics are those of all examples.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()

    def bound(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """`function` with every known name bound."""
        for name in self.names:
            function = _over_axis(function, name)
        return function

    def learning(self, function: Callable[[], Any]) -> Any:
        """The result of `function`, called again with each name that JAX misses in it."""
        while True:
            try:
                return function()
            except NameError as error:
                missing = re.search(r"unbound axis name: (.+?)(?:\. To fix|$)", str(error))
                if missing is None or missing.group(1) in self.names:
                    raise
                self.names = (*self.names, missing.group(1))

    def run(self, function: Callable[[], Any]) -> Any:
        """The result of `function`, whatever names it needs."""
        return self.learning(lambda: self.bound(function)())


def _over_axis(function: Callable[[], Any], name: str) -> Callable[[], Any]:
    def bound() -> Any:
        kept: list[Any] = []

        def arrays() -> list[Any]:
            leaves, structure = jax.tree.flatten(function())
            fixed = [None if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
            kept[:] = [structure, fixed]
            return [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

        mapped = iter(jax.vmap(arrays, in_axes=(), axis_name=name, axis_size=1)())
        structure, fixed = kept
        return jax.tree.unflatten(
            structure, [next(mapped)[0] if leaf is None else leaf for leaf in fixed]
        )

    return bound


# -- checks ------------------------------------------------------------------------------------


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf)
        for path, leaf in leaves
    }


def first_difference(a: PyTree, b: PyTree, has: tuple[str, str]) -> str:
    """Where two trees of arrays first differ in names or shapes, in words; empty if nowhere.

    `has` says whose arrays each is: ``("before", "after")``.
    """
    a, b = _shapes(a), _shapes(b)
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in b or name not in a:
            first, second = has if name in a else reversed(has)
            return f"{first} has {name}, which {second} has not"
        if a[name] != b[name]:
            return f"{name} is {a[name]} in {has[0]} and {b[name]} in {has[1]}"
    return ""


def check_params(given: PyTree, own: PyTree, name: str) -> None:
    """Raises `InputError` with the first difference unless `given` fit the model's `own`."""
    difference = first_difference(given, own, ("what is given", name))
    if difference:
        raise InputError(
            f"variables that do not belong to {name}: {difference}; wanted what this model's init "
            "returned."
        )


def check_same_model(before: Variables, after: Variables) -> None:
    """Raises `InputError` unless both are variables of one model, naming the first difference."""
    for a, b in zip(before, after, strict=True):
        difference = first_difference(a, b, ("before", "after"))
        if difference:
            raise InputError(
                f"before and after are of different models: {difference}; wanted the variables of "
                "one model at two steps."
            )


def scalar_loss(loss: Loss, outputs: Any, targets: Any) -> Array:
    """``loss(outputs, targets)``.

    Raises:
      InputError: it is not a scalar.
    """
    value = loss(outputs, targets)
    shape = getattr(value, "shape", ())
    if shape != () or not isinstance(value, Array | float | int):
        seen = f"shape {shape}" if shape != () else f"type {type(value).__name__}"
        raise InputError(
            f"loss of {seen}: wanted loss(outputs, targets) -> scalar; take its mean or sum."
        )
    return jnp.asarray(value)
