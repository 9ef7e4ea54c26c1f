"""Flax modules as pure functions: the one package that knows NNX from Linen.

Both adapters give a `Model` whose variables are plain pytrees and whose ``apply`` can watch the
inputs of the module's layers from outside: during the trace, what the layers are called with is
tagged, and the statistics are taken of what carries a tag.
"""

from ici.adapt.linen import from_linen
from ici.adapt.model import Model, Variables, check_same_model, scalar_loss
from ici.adapt.nnx import from_nnx
from ici.adapt.watch import watch

__all__ = [
    "Model",
    "Variables",
    "check_same_model",
    "from_linen",
    "from_nnx",
    "scalar_loss",
    "watch",
]
