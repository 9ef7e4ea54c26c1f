"""Linen modules: variables as collections, and calls tagged by Flax's own interceptor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ici.adapt.attention import Attentions
from ici.adapt.calls import Calls, Layer
from ici.adapt.model import Loss, MappedAxes, Model, PyTree, Variables, check_params, mode_arguments
from ici.adapt.watching import watched
from ici.errors import InputError
from ici.measure.statistics import Moments
from ici.probe import Probe, Taps
from ici.sites import NEVER_CALLED, Silent


def _flat(tree: PyTree) -> dict[tuple[str, ...], Any]:
    return {
        tuple(str(getattr(entry, "key", entry)) for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(tree))
    }


class Interceptor:
    """Tags the calls of one trace of a Linen module with these parameters."""

    def __init__(self, probe: Probe, params: PyTree):
        # Flax's jit traces equal layers once, under the name of the first.
        self.calls = Calls(probe, numbered=True)
        self.attentions = Attentions(self.calls) if probe.kinds_at("attention") else None
        self.leaves = _flat(params)
        self.weights = {path[:-1] for path in self.leaves}
        self.other_methods: dict[tuple[str, ...], str] = {}

    def layer(self, m: nn.Module) -> Layer:
        path = tuple(m.path)
        own = _flat(m.variables.get("params", {}))
        for relative, weight in own.items():
            full = self.leaves.get((*path, *relative))
            if full is not None:
                stacked = jnp.ndim(weight) < jnp.ndim(full)
                return Layer(path, type(m), path in self.weights, weight, stacked)
        return Layer(path, type(m), path in self.weights, None, False)

    def __call__(self, next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        m = context.module
        if context.method_name != "__call__":
            if context.method_name != "setup":
                self.other_methods[tuple(m.path)] = context.method_name
            return next_call(*args, **kwargs)
        layer = self.layer(m)
        with self.calls.inside(layer) as active, self._attention(m):
            args, kwargs = self.calls.tag(layer, active, context.orig_method, args, kwargs)
            return next_call(*args, **kwargs)

    @contextlib.contextmanager
    def _attention(self, m: Any):
        function = getattr(m, "attention_fn", None)
        if self.attentions is None or not callable(function):
            yield
            return
        # Linen modules are frozen to their users.
        object.__setattr__(m, "attention_fn", self.attentions.wrap(function))
        try:
            yield
        finally:
            object.__setattr__(m, "attention_fn", function)

    def silent(self) -> Sequence[Silent]:
        """Every module that owns parameters or was called without an array."""
        found = dict(self.calls.silent)
        for path in self.weights - found.keys():
            method = self.other_methods.get(path)
            reason = f"it is called through its method {method}" if method else NEVER_CALLED
            found[path] = Silent(path, nn.Module, True, reason)
        return list(found.values())

    def watched(
        self,
        run: Callable[[], tuple[Any, Any]],
        inputs: Any,
        sinks: dict[str, Moments] | None,
        axes: MappedAxes,
    ) -> tuple[Any, Any, Taps]:
        """``run() -> (out, rest)`` and what the probe saw of it."""

        def function() -> tuple[Any, Any]:
            with contextlib.ExitStack() as scope:
                scope.enter_context(nn.intercept_methods(self))
                if self.attentions is not None:
                    scope.enter_context(self.attentions.installed())
                return run()

        return watched(function, self.calls.probe, self.calls, self.silent, inputs, sinks, axes)


class _Linen:
    """The Linen side of `Model`. State holds the mutable collections and the RNG."""

    def __init__(
        self, module: nn.Module, call: Callable[..., Any] | None, rng_streams: tuple[str, ...]
    ):
        self.module = module
        self.name = type(module).__name__
        self.call = call
        self.rng_streams = rng_streams
        self.axes = MappedAxes()
        self.own: dict[Any, PyTree] = {}

    def _run(self, module: Any, inputs: Any, train: bool) -> Any:
        if self.call is not None:
            return self.call(module, inputs, train)
        return module(inputs, **mode_arguments(type(module).__call__, train))

    def init(self, key: Array, inputs: Any) -> Variables:
        params_key, state_key = jax.random.split(key)
        streams = {
            name: jax.random.fold_in(state_key, i) for i, name in enumerate(self.rng_streams)
        }
        init = nn.init(lambda m: self._run(m, inputs, False), self.module)
        variables = self.axes.run(lambda: init({"params": params_key, **streams}))
        collections = {k: v for k, v in variables.items() if k not in ("params", "intermediates")}
        rng = {"key": state_key, "count": jnp.uint32(0)}
        return Variables(variables.get("params", {}), {"collections": collections, "rng": rng})

    def _check(self, variables: Variables, inputs: Any) -> None:
        """Compares parameters with what init would give for such inputs, without computing it."""
        leaves, structure = jax.tree.flatten(inputs)
        kinds = tuple(
            (leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else id(leaf) for leaf in leaves
        )
        key = (structure, kinds)
        if key not in self.own:
            shapes = jax.eval_shape(lambda: self.init(jax.random.key(0), inputs))
            self.own[key] = shapes.params
        check_params(variables.params, self.own[key], self.name)

    def apply(
        self,
        variables: Variables,
        inputs: Any,
        *,
        train: bool = True,
        probe: Probe | None = None,
        sinks: dict[str, Moments] | None = None,
    ) -> tuple[Any, PyTree, Taps | None]:
        self._check(variables, inputs)
        params, state = variables
        rng = state["rng"]
        collections = state["collections"]

        def run() -> tuple[Any, PyTree]:
            key = jax.random.fold_in(rng["key"], rng["count"])
            streams = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.rng_streams)}
            # In evaluation too: a BatchNorm that always uses the batch writes, to be dropped below.
            function = nn.apply(
                lambda m: self._run(m, inputs, train), self.module, mutable=[*collections]
            )
            out, updated = function({"params": params, **collections}, rngs=streams)
            # What the module sows grows with every call: it is an output, not a state.
            kept = {
                k: v
                for k, v in updated.items()
                if train and jax.tree.structure(v) == jax.tree.structure(collections[k])
            }
            return out, {
                "collections": {**collections, **kept},
                "rng": {"key": rng["key"], "count": rng["count"] + jnp.uint32(train)},
            }

        if probe is None:
            out, new_state = self.axes.run(run)
            return out, new_state, None
        return Interceptor(probe, params).watched(run, inputs, sinks, self.axes)


def from_linen(
    module: nn.Module,
    *,
    call: Callable[..., Any] | None = None,
    loss: Loss | None = None,
    rng_streams: tuple[str, ...] = ("dropout",),
) -> Model:
    """A `Model` from any Linen module, unmodified.

    Args:
      module: the module, such as ``ResNet(stages=...)``.
      call: ``call(module, inputs, train) -> out`` for another signature than ``module(inputs)``:
        ``lambda net, batch, train: net(batch["ids"], mask=batch["mask"])``. Without it, keywords
        named train, training, is_training, deterministic or use_running_average are filled in.
      loss: ``loss(outputs, targets) -> scalar``, for `make_train_step`.
      rng_streams: names of the random streams the module draws from besides ``params``.

    Raises:
      InputError: `module` is not a Linen module instance.
    """
    if not isinstance(module, nn.Module):
        raise InputError(
            f"from_linen: got {type(module).__name__}: wanted a flax.linen module instance."
        )
    adapter = _Linen(module, call, rng_streams)
    return Model(adapter.init, adapter.apply, adapter.name, loss)


def watch_apply(apply: Callable[..., Any], probe: Probe, args: Any, kwargs: Any) -> Any:
    """``apply(variables, *inputs, **kwargs)`` and its taps."""
    variables, *rest = args
    inputs = rest[0] if len(rest) == 1 else tuple(rest)

    def run() -> tuple[Any, Any]:
        result = apply(*args, **kwargs)
        mutable = kwargs.get("mutable", False) is not False
        return result if mutable else (result, None)

    interceptor = Interceptor(probe, variables.get("params", {}))
    out, updated, taps = interceptor.watched(run, inputs, None, MappedAxes())
    return ((out, updated) if kwargs.get("mutable", False) is not False else out), taps
