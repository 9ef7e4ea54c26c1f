"""Model families by name, and what they are told of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from flax import nnx

from ici.errors import unknown_name


@dataclass(frozen=True)
class InputSpec:
    """Shape of one input and the size of the output.

    Attributes:
      shape: of one example, without the batch axis.
      vocab_size: number of token ids, None where inputs are not tokens.
      n_classes: size of the output: classes, next tokens, or real targets.
      task: "classification", "language_model" or "regression".
      separator: the token that begins every document of language-model data.
    """

    shape: tuple[int, ...]
    vocab_size: int | None
    n_classes: int
    task: str = "classification"
    separator: int | None = None

    @property
    def n_features(self) -> int:
        """Number of values in one example."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


class ModelConfig(Protocol):
    """The settings of a model family: a frozen dataclass that builds the module."""

    def build(self, norm: str, depth: int, spec: InputSpec) -> Callable[[nnx.Rngs], nnx.Module]: ...


Config = TypeVar("Config", bound=type[Any])
_MODELS: dict[str, type[Any]] = {}


def register(name: str) -> Callable[[Config], Config]:
    """Class decorator: makes a config available as ``model="name"``."""

    def add(config: Config) -> Config:
        config.registered_name = name
        _MODELS[name] = config
        return config

    return add


def names() -> tuple[str, ...]:
    """The registered names."""
    return tuple(_MODELS)


def resolve(name: str) -> ModelConfig:
    """The family registered as `name`, with its defaults. Raises `InputError` if unknown."""
    if name not in _MODELS:
        raise unknown_name("model", name, names())
    return _MODELS[name]()
