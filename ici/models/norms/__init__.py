"""Normalization layers by name and options, so that an experiment can sweep them.

A spec is a name, or a name and options: ``"batch"``, ``"batch:ghost=32,momentum=0.99"``. Add one::

    @register("mine")
    def mine(features: int, *, strength: float = 1.0, rngs: nnx.Rngs) -> nnx.Module:
        return MyNorm(features, strength, rngs=rngs)

after which ``norm="mine:strength=2"`` means it.
"""

from ici.models.norms import catalogue as _catalogue  # noqa: F401 - registers the norms
from ici.models.norms.per_example import NoNorm
from ici.models.norms.spec import (
    Layout,
    Norm,
    NormFactory,
    check_norm,
    make_norm,
    makes_bias_redundant,
    names,
    parse,
    register,
)

__all__ = [
    "Layout",
    "NoNorm",
    "Norm",
    "NormFactory",
    "check_norm",
    "make_norm",
    "makes_bias_redundant",
    "names",
    "parse",
    "register",
]
