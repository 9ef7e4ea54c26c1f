"""Attention as modules call it: jax.nn's, NNX's and Linen's function, whoever holds them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from ici.adapt.calls import Calls

_FUNCTIONS = (
    jax.nn.dot_product_attention,
    nnx.dot_product_attention,
    nn.dot_product_attention,
)
_LIMITS = ("query_seq_lengths", "key_value_seq_lengths", "local_window_size")


class Attentions:
    """Tags queries and keys of the attention calls of one trace, in one thread."""

    def __init__(self, calls: Calls):
        self.calls = calls
        self.thread = threading.get_ident()
        self.depth = 0
        self.wrapped: dict[Any, Callable[..., Any]] = {}

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, an attention or what a module uses as one, with its queries tagged."""
        if function not in self.wrapped:
            self.wrapped[function] = self._wrap(function)
        return self.wrapped[function]

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def attention(*args: Any, **kwargs: Any) -> Any:
            if self.depth or threading.get_ident() != self.thread:
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            names = list(bound.arguments)[:2]
            operands, settings, refused = _operands(bound.arguments, names)
            query, key = self.calls.attention(operands, settings, refused)
            bound.arguments |= dict(zip(names, (query, key), strict=True))
            # One of these functions calls another: what the outer one is given counts.
            self.depth += 1
            try:
                return function(*bound.args, **bound.kwargs)
            finally:
                self.depth -= 1

        return attention

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Puts the wrapped functions wherever a loaded module holds one by any name."""
        held: list[tuple[dict[str, Any], str, Any]] = []
        by_id = {id(function): function for function in _FUNCTIONS}
        for module in list(sys.modules.values()):
            namespace = getattr(module, "__dict__", None)
            if isinstance(namespace, dict):
                held += [(namespace, n, v) for n, v in list(namespace.items()) if id(v) in by_id]
        held = [entry for entry in held if entry[0] is not globals()]
        try:
            for namespace, name, function in held:
                namespace[name] = self.wrap(function)
            yield
        finally:
            for namespace, name, function in held:
                namespace[name] = function


def _operands(
    arguments: dict[str, Any], names: list[str]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What an attention statistic is given, its settings, and why it cannot be read."""
    query, key = (jnp.asarray(arguments[name]) for name in names)
    operands = {"query": query, "key": key}
    rank = query.ndim
    bias, mask = arguments.get("bias"), arguments.get("mask")
    if bias is not None:
        operands["bias"] = _with_rank(jnp.asarray(bias), rank)
    if mask is not None:
        operands["mask"] = _with_rank(jnp.asarray(mask).astype(bool), rank)
    settings = {
        name: arguments[name] for name in ("is_causal", "scale") if arguments.get(name) is not None
    }
    limits = [name for name in _LIMITS if arguments.get(name) is not None]
    refused = f"it is called with {', '.join(limits)}; wanted a mask instead" if limits else ""
    if isinstance(settings.get("scale"), jax.Array):
        settings.pop("scale")
        refused = "its scale is an array; wanted a number"
    return operands, settings, refused


def _with_rank(x: jax.Array, rank: int) -> jax.Array:
    return x.reshape((1,) * (rank - x.ndim) + x.shape)
