"""NNX modules: variables as plain dictionaries, and calls tagged by wrapping their classes."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ici.adapt.attention import Attentions
from ici.adapt.calls import Calls, Layer
from ici.adapt.model import Loss, MappedAxes, Model, PyTree, Variables, check_params, mode_arguments
from ici.adapt.watching import watched
from ici.errors import InputError
from ici.measure.statistics import Moments
from ici.probe import Probe, Taps
from ici.sites import NEVER_CALLED, Silent

_PATCH = threading.RLock()


@contextlib.contextmanager
def _patched_calls(types: set[type], around: Callable[..., Any]) -> Iterator[None]:
    """Runs ``around(call, module, args, kwargs)`` in place of ``__call__`` of these very classes.

    Python looks ``__call__`` up on the class, so the class is what must be patched; only for the
    duration of a trace, one trace at a time.
    """

    def wrap(cls: type, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A subclass reaching here through super() has been seen under its own class.
            if type(self) is not cls:
                return original(self, *args, **kwargs)
            return around(original, self, args, kwargs)

        # The signature tells which mode keywords the module takes.
        return functools.wraps(original)(call)

    with _PATCH:
        originals = {cls: cls.__call__ for cls in types}
        own = {cls for cls in types if "__call__" in vars(cls)}
        try:
            for cls, original in originals.items():
                cls.__call__ = wrap(cls, original)
            yield
        finally:
            for cls, original in originals.items():
                if cls in own:
                    cls.__call__ = original
                else:
                    del cls.__call__


def _path(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(part) for part in path)


class Tree:
    """Where the modules and variables of one NNX module are."""

    def __init__(self, module: nnx.Module):
        self.layers: dict[str, Silent] = {}
        self.types: set[type] = set()
        self.first: dict[str, tuple[tuple[Any, ...], int]] = {}
        variables = [
            (path, variable, isinstance(variable, nnx.Param))
            for path, variable in nnx.to_flat_state(nnx.state(module))
        ]
        # Parameters first: the key of a random stream has no axes to count.
        variables.sort(key=lambda entry: not entry[2])
        weights = {path[:-1] for path, _, is_param in variables if is_param}
        prefixes: dict[tuple[Any, ...], tuple[tuple[Any, ...], int]] = {}
        for path, variable, _ in variables:
            value = variable.get_value()
            if not hasattr(value, "ndim") or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                continue
            for n in range(len(path)):
                prefixes.setdefault(path[:n], (path[n:], value.ndim))
        for path, m in nnx.iter_modules(module):
            key = "/".join(_path(path))
            if callable(m):
                self.types.add(type(m))
                self.layers[key] = Silent(_path(path), type(m), path in weights, NEVER_CALLED)
            if path in prefixes:
                self.first[key] = prefixes[path]

    def name_modules(self, module: nnx.Module) -> None:
        """Tells each module of a copy where it is; what NNX jits or scans then knows it too, and
        traces of unnamed modules are not reused."""
        for path, m in nnx.iter_modules(module):
            m._ici_path = "/".join(_path(path))  # pyright: ignore[reportAttributeAccessIssue]

    def layer(self, m: Any, key: str) -> Layer:
        known = self.layers[key]
        weight, ndim = None, 0
        if key in self.first:
            relative, ndim = self.first[key]
            weight = m
            for part in relative:
                weight = weight[part] if isinstance(part, int) else _attribute(weight, part)
            weight = weight.get_value() if isinstance(weight, nnx.Variable) else weight
        stacked = weight is not None and weight.ndim < ndim
        return Layer(known.path, known.module, known.has_weights, weight, stacked)

    def watched(
        self,
        run: Callable[[Callable[[nnx.Module], None]], tuple[Any, Any]],
        probe: Probe,
        inputs: Any,
        sinks: dict[str, Moments] | None,
        axes: MappedAxes,
    ) -> tuple[Any, Any, Taps]:
        """``run(prepare) -> (out, rest)``, which calls `prepare` on its copy of the module."""
        calls = Calls(probe, numbered=False)
        thread = threading.get_ident()
        attentions = Attentions(calls) if probe.kinds_at("attention") else None

        def around(call: Callable[..., Any], m: Any, args: Any, kwargs: Any) -> Any:
            key = vars(m).get("_ici_path")
            if key not in self.layers or threading.get_ident() != thread:
                return call(m, *args, **kwargs)
            layer = self.layer(m, key)
            with calls.inside(layer) as active:
                args, kwargs = calls.tag(layer, active, functools.partial(call, m), args, kwargs)
                return call(m, *args, **kwargs)

        def prepare(module: nnx.Module) -> None:
            self.name_modules(module)
            if attentions is not None:
                for _, m in nnx.iter_modules(module):
                    function = vars(m).get("attention_fn")
                    if callable(function):
                        setattr(m, "attention_fn", attentions.wrap(function))  # noqa: B010

        with contextlib.ExitStack() as scope:

            def function() -> tuple[Any, Any]:
                return run(prepare)

            scope.enter_context(_patched_calls(self.types, around))
            if attentions is not None:
                scope.enter_context(attentions.installed())
            return watched(
                function, probe, calls, lambda: list(self.layers.values()), inputs, sinks, axes
            )


def _attribute(holder: Any, part: Any) -> Any:
    return getattr(holder, part) if hasattr(holder, str(part)) else holder[part]


class _Nnx:
    """The NNX side of `Model`."""

    def __init__(self, factory: Callable[[nnx.Rngs], nnx.Module], call: Callable[..., Any] | None):
        if isinstance(factory, nnx.Module):
            raise InputError(
                f"from_nnx: got a {type(factory).__name__}: wanted a function that builds one, "
                "such as lambda rngs: Net(rngs=rngs)."
            )
        self.factory = factory
        self.call = call
        abstract = nnx.eval_shape(lambda: factory(nnx.Rngs(0)))
        if not isinstance(abstract, nnx.Module):
            raise InputError(
                f"from_nnx: the factory returned {type(abstract).__name__}: wanted a function "
                "from nnx.Rngs to an nnx.Module."
            )
        self.name = type(abstract).__name__
        self.tree = Tree(abstract)
        self.axes = MappedAxes()
        self.graph, *states = nnx.split(abstract, nnx.Param, ...)
        # Plain dictionaries sort their keys on their own terms, so remember which leaf is which.
        self.structures, self.orders, self.pure = [], [], []
        for state in states:
            leaves, structure = jax.tree.flatten(state)
            numbered = nnx.to_pure_dict(jax.tree.unflatten(structure, range(len(leaves))))
            self.structures.append(structure)
            self.orders.append(jax.tree.leaves(numbered))
            self.pure.append(jax.tree.structure(numbered))
        self.own = [nnx.to_pure_dict(state) for state in states]

    def _states(self, variables: Variables) -> list[Any]:
        params, state = variables
        check_params(params, self.own[0], self.name)
        if jax.tree.structure(state) != self.pure[1]:
            check_params(_unshaped(state), _unshaped(self.own[1]), self.name)
        return [self._state(i, pure) for i, pure in enumerate((params, state))]

    def _state(self, index: int, pure: PyTree) -> Any:
        leaves = jax.tree.leaves(pure)
        placed: list[Any] = [None] * len(self.orders[index])
        if jax.tree.structure(pure) != self.pure[index]:
            raise InputError(
                f"variables that do not belong to {self.name}: the names agree as text and not in "
                "type (numbers of layers restored as text?); wanted what this model's init "
                "returned."
            )
        for position, leaf in zip(self.orders[index], leaves, strict=True):
            placed[position] = leaf
        return jax.tree.unflatten(self.structures[index], placed)

    def init(self, key: Array, inputs: Any = None) -> Variables:
        del inputs  # NNX modules know their shapes
        _, *states = nnx.split(self.factory(nnx.Rngs(key)), nnx.Param, ...)
        return Variables(*(nnx.to_pure_dict(state) for state in states))

    def apply(
        self,
        variables: Variables,
        inputs: Any,
        *,
        train: bool = True,
        probe: Probe | None = None,
        sinks: dict[str, Moments] | None = None,
    ) -> tuple[Any, PyTree, Taps | None]:
        states = self._states(variables)

        def run(prepare: Callable[[nnx.Module], None]) -> tuple[Any, PyTree]:
            module = nnx.merge(self.graph, *states, copy=True)
            module.train() if train else module.eval()
            prepare(module)
            if self.call is not None:
                out = self.call(module, inputs, train)
            else:
                out = module(inputs, **mode_arguments(type(module).__call__, train))
            _, _, state = nnx.split(module, nnx.Param, ...)
            return out, nnx.to_pure_dict(state)

        if probe is None:
            out, state = self.axes.run(lambda: run(lambda _: None))
            return out, state, None
        return self.tree.watched(run, probe, inputs, sinks, self.axes)


def _unshaped(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda _: 0, tree)


def from_nnx(
    factory: Callable[[nnx.Rngs], nnx.Module],
    *,
    call: Callable[..., Any] | None = None,
    loss: Loss | None = None,
) -> Model:
    """A `Model` from any NNX module, unmodified.

    Args:
      factory: builds the module: ``lambda rngs: Net(rngs=rngs)``.
      call: ``call(module, inputs, train) -> out`` for modules with another signature than
        ``module(inputs)``: ``lambda net, batch, train: net(batch["ids"], mask=batch["mask"])``.
        ``train()``/``eval()`` is called on the module in any case, and without `call`, keywords
        named train, training, is_training, deterministic or use_running_average are filled in.
      loss: ``loss(outputs, targets) -> scalar``, for `make_train_step`.

    Raises:
      InputError: the factory does not return an ``nnx.Module``.
    """
    adapter = _Nnx(factory, call)
    return Model(adapter.init, adapter.apply, adapter.name, loss)


def watch_module(module: nnx.Module, probe: Probe, args: Sequence[Any], kwargs: Any) -> Any:
    """``module(*args, **kwargs)`` and its taps; updates the module's own state as the call does."""
    graph, params, state = nnx.split(module, nnx.Param, ...)
    tree = Tree(module)

    def run(prepare: Callable[[nnx.Module], None]) -> tuple[Any, PyTree]:
        copy: Any = nnx.merge(graph, params, state, copy=True)
        prepare(copy)
        out = copy(*args, **kwargs)
        _, _, after = nnx.split(copy, nnx.Param, ...)
        known = set(path for path, _ in nnx.to_flat_state(state))
        kept = [entry for entry in nnx.to_flat_state(after) if entry[0] in known]
        return out, nnx.from_flat_state(kept)

    inputs = args[0] if len(args) == 1 and not kwargs else (args, kwargs)
    out, after, taps = tree.watched(run, probe, inputs, None, MappedAxes())
    nnx.update(module, after)
    return out, taps
