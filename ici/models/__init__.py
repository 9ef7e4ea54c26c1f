"""Models: ordinary NNX modules that know nothing of measurement."""

from ici.models.convnet import ConvNetConfig
from ici.models.linear import DeepLinearConfig
from ici.models.mlp import MLP, MLPConfig
from ici.models.norms import make_norm
from ici.models.norms import register as register_norm
from ici.models.registry import InputSpec, ModelConfig, resolve
from ici.models.registry import register as register_model
from ici.models.resnet import ResNetConfig
from ici.models.transformer import TransformerConfig
from ici.models.vgg import VGGConfig

__all__ = [
    "MLP",
    "ConvNetConfig",
    "DeepLinearConfig",
    "InputSpec",
    "MLPConfig",
    "ModelConfig",
    "ResNetConfig",
    "TransformerConfig",
    "VGGConfig",
    "make_norm",
    "register_model",
    "register_norm",
    "resolve",
]
