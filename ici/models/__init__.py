"""Models: ordinary NNX modules that know nothing of measurement."""

from ici.models.mlp import MLP, MLPConfig
from ici.models.norms import make_norm
from ici.models.norms import register as register_norm
from ici.models.registry import InputSpec, ModelConfig, resolve
from ici.models.registry import register as register_model

__all__ = [
    "MLP",
    "InputSpec",
    "MLPConfig",
    "ModelConfig",
    "make_norm",
    "register_model",
    "register_norm",
    "resolve",
]
