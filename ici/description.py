"""Settings as plain JSON values: what is recorded, compared and hashed."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType
from typing import Any

import numpy as np

_LITERALS = (str, bytes, int, float, complex, type(None), type(...))


def fingerprint(identity: dict[str, Any]) -> str:
    """SHA-256 hex digest of a JSON-able description."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines ``field: old -> new`` for every entry in which two descriptions differ."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += [f"{name}.{line}" for line in differences(before, after)]
        elif before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines


def plain(value: Any) -> Any:
    """`value` as JSON types.

    A dataclass becomes its fields, a type its name; any other callable its name and a digest of
    what it does, since two lambdas share one name. The digest depends on the Python version.
    """
    if is_dataclass(value) and not isinstance(value, type):
        name = getattr(type(value), "registered_name", None)
        # Field by field: asdict would copy what need not be copyable.
        parts = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return {"name": name, **parts} if name else parts
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if isinstance(value, type):
        return _name(value)
    if callable(value):
        digest = hashlib.sha256("\n".join(_traits(value, ())).encode()).hexdigest()
        return f"{_name(value)} ({digest[:12]})"
    return value


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _traits(value: Any, within: tuple[Any, ...]) -> Iterator[str]:
    """Text that two values share where they do the same, in every process: no addresses."""
    if any(value is outer for outer in within):
        yield f"itself {len(within)}"  # recursion; the outer one is described already
        return
    inner = (*within, value)
    if isinstance(value, _LITERALS):
        yield repr(value)
    elif isinstance(value, type):
        yield _name(value)
    elif isinstance(value, tuple | list):
        yield f"{type(value).__name__} of {len(value)}"
        for entry in value:
            yield from _traits(entry, inner)
    elif isinstance(value, set | frozenset):
        # The order of a set of texts differs from process to process.
        yield f"set of {len(value)}"
        yield from sorted("\n".join(_traits(entry, inner)) for entry in value)
    elif isinstance(value, dict):
        yield f"dict of {len(value)}"
        yield from sorted("\n".join(_traits(item, inner)) for item in value.items())
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        yield f"{value.dtype}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, CodeType):
        yield value.co_code.hex()
        yield from _traits((value.co_consts, value.co_names), inner)
    elif isinstance(value, FunctionType):
        yield from _function_traits(value, inner)
    elif isinstance(value, functools.partial):
        yield from _traits((value.func, value.args, value.keywords), inner)
    elif inspect.ismethod(value):
        yield from _traits((value.__func__, value.__self__), inner)
    elif (wrapped := getattr(value, "__wrapped__", None)) is not None:  # jax.jit and its like
        yield from _traits(wrapped, inner)
    else:
        yield _name(value)
        if callable(value) and hasattr(value, "__dict__"):
            yield from _traits(vars(value), inner)


def _function_traits(function: FunctionType, within: tuple[Any, ...]) -> Iterator[str]:
    own = function.__globals__
    called = set(_globals_of(function.__code__))
    # Constants and functions beside it in its file; a library's insides are not the user's choice.
    beside = {
        name: own[name]
        for name in called & own.keys()
        if not callable(own[name]) or getattr(own[name], "__module__", "") == function.__module__
    }
    enclosed = []
    for cell in function.__closure__ or ():
        try:
            enclosed.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            enclosed.append(None)
    parts = (function.__code__, function.__defaults__, function.__kwdefaults__, enclosed, beside)
    yield from _traits(parts, within)


def _globals_of(code: CodeType) -> Iterator[str]:
    yield from (i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)
