"""What the values of an experiment's fields must be, by the fields' annotations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ici.errors import InputError
from ici.probe import Probe


def _grid(value: Any) -> tuple[Any, ...]:
    value = _number(value)
    values = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else value
    return tuple(_number(v) for v in values)


def _number(value: Any) -> Any:
    # NumPy's numbers become Python's: a description must be JSON.
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _has(*methods: str) -> Callable[[Any], bool]:
    # A class has them too, but was not called: it holds no settings.
    return lambda v: not isinstance(v, type) and all(callable(getattr(v, m, None)) for m in methods)


# By the first word of a field's annotation: what its values, or each of a grid, must be.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda v: isinstance(v, str)),
    "bool": ("True or False", lambda v: isinstance(v, bool)),
    "int": ("an integer", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "Probe": ("a probe, such as ici.Probe(every=10)", lambda v: isinstance(v, Probe)),
    "DataConfig": ("a data set's name, or a config such as Digits()", _has("load", "fingerprint")),
    "ModelConfig": ("a family's name, or a config such as MLPConfig()", _has("build")),
}


def of_kind(name: str, annotation: str, value: Any) -> Any:
    """`value` as Python's own type for the field; `InputError` where it is of another kind."""
    if value is None and annotation.endswith("| None"):
        return None
    swept = annotation.startswith("tuple[")
    kind = re.split(r"\W", annotation.removeprefix("tuple["))[0]
    wanted, accepts = _KINDS[kind]
    values = _grid(value) if swept else (_number(value),)
    for each in values:
        if not accepts(each):
            shown = " ".join(repr(each).split())
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise InputError(f"{name} is {shown}: wanted {wanted}.")
    # 1 and 1.0 are one learning rate, and so one experiment.
    values = tuple(float(v) for v in values) if kind == "float" else values
    return values if swept else values[0]
