"""ici: an instrument for internal covariate shift in JAX and Flax networks.

Names of arrays end in their axes: ``x_BD`` is a batch of feature vectors. The key:
``B`` batch, ``T`` tokens, ``D`` features, ``C`` classes, ``N`` everything pooled, ``K`` steps of a
chunk, ``S`` seeds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ici.adapt import Model as Model
    from ici.adapt import Variables as Variables
    from ici.adapt import from_linen as from_linen
    from ici.adapt import from_nnx as from_nnx
    from ici.adapt import watch as watch
    from ici.analysis.anatomy import dissect_spikes as dissect_spikes
    from ici.analysis.compare import compare as compare
    from ici.analysis.compare import compare_records as compare_records
    from ici.analysis.convergence import steps_to_target as steps_to_target
    from ici.analysis.digest import digest as digest
    from ici.analysis.sensitivity import largest_stable_lr as largest_stable_lr
    from ici.analysis.sensitivity import lr_sensitivity as lr_sensitivity
    from ici.config import Experiment as Experiment
    from ici.data import register as register_data
    from ici.dissect.attribution import Attribution as Attribution
    from ici.dissect.attribution import attribute_shift as attribute_shift
    from ici.dissect.gradient_shift import GradientShift as GradientShift
    from ici.dissect.gradient_shift import gradient_shift as gradient_shift
    from ici.dissect.landscape import landscape as landscape
    from ici.dissect.landscape import sharpness as sharpness
    from ici.dissect.transport import wasserstein_shift as wasserstein_shift
    from ici.engine.replay import replay as replay
    from ici.engine.run import run as run
    from ici.engine.step import TrainState as TrainState
    from ici.engine.step import init_train_state as init_train_state
    from ici.engine.step import make_train_step as make_train_step
    from ici.errors import InputError as InputError
    from ici.measure import Attention as Attention
    from ici.measure import Configured as Configured
    from ici.measure import DeadUnits as DeadUnits
    from ici.measure import EffectiveRank as EffectiveRank
    from ici.measure import Extremes as Extremes
    from ici.measure import HigherMoments as HigherMoments
    from ici.measure import Moments as Moments
    from ici.measure import NoiseFloor as NoiseFloor
    from ici.measure import OutputLogits as OutputLogits
    from ici.measure import Percentiles as Percentiles
    from ici.measure import Shift as Shift
    from ici.measure import SplitMoments as SplitMoments
    from ici.measure import difference_threshold as difference_threshold
    from ici.measure import effective_rank_shift as effective_rank_shift
    from ici.measure import noise_floor as noise_floor
    from ici.measure import register_statistic as register_statistic
    from ici.measure import shift as shift
    from ici.measure import shift_series as shift_series
    from ici.measure import wasserstein1 as wasserstein1
    from ici.measure.spikes import find_spikes as find_spikes
    from ici.measure.spikes import spike_score as spike_score
    from ici.models import MLPConfig as MLPConfig
    from ici.models import register_model as register_model
    from ici.models import register_norm as register_norm
    from ici.optimizers import register_optimizer as register_optimizer
    from ici.optimizers import register_schedule as register_schedule
    from ici.probe import Probe as Probe
    from ici.quantities import explain as explain
    from ici.quantities import register_quantity as register_quantity
    from ici.sinks import Sink as Sink
    from ici.sinks import TensorBoardSink as TensorBoardSink
    from ici.sinks import WandbSink as WandbSink
    from ici.store.results import Results as Results
    from ici.store.results import open_results as open

_HOMES = {
    "Attribution": "ici.dissect.attribution",
    "GradientShift": "ici.dissect.gradient_shift",
    "attribute_shift": "ici.dissect.attribution",
    "gradient_shift": "ici.dissect.gradient_shift",
    "landscape": "ici.dissect.landscape",
    "sharpness": "ici.dissect.landscape",
    "wasserstein_shift": "ici.dissect.transport",
    "Attention": "ici.measure",
    "Configured": "ici.measure",
    "DeadUnits": "ici.measure",
    "EffectiveRank": "ici.measure",
    "Experiment": "ici.config",
    "Extremes": "ici.measure",
    "HigherMoments": "ici.measure",
    "InputError": "ici.errors",
    "MLPConfig": "ici.models",
    "Model": "ici.adapt",
    "Moments": "ici.measure",
    "NoiseFloor": "ici.measure",
    "OutputLogits": "ici.measure",
    "Percentiles": "ici.measure",
    "Probe": "ici.probe",
    "Results": "ici.store.results",
    "Shift": "ici.measure",
    "Sink": "ici.sinks",
    "SplitMoments": "ici.measure",
    "TensorBoardSink": "ici.sinks",
    "TrainState": "ici.engine.step",
    "Variables": "ici.adapt",
    "WandbSink": "ici.sinks",
    "compare": "ici.analysis.compare",
    "compare_records": "ici.analysis.compare",
    "difference_threshold": "ici.measure",
    "digest": "ici.analysis.digest",
    "dissect_spikes": "ici.analysis.anatomy",
    "effective_rank_shift": "ici.measure",
    "explain": "ici.quantities",
    "find_spikes": "ici.measure.spikes",
    "from_linen": "ici.adapt",
    "from_nnx": "ici.adapt",
    "init_train_state": "ici.engine.step",
    "largest_stable_lr": "ici.analysis.sensitivity",
    "lr_sensitivity": "ici.analysis.sensitivity",
    "make_train_step": "ici.engine.step",
    "noise_floor": "ici.measure",
    "open": "ici.store.results:open_results",
    "register_data": "ici.data:register",
    "register_model": "ici.models",
    "register_norm": "ici.models",
    "register_optimizer": "ici.optimizers",
    "register_schedule": "ici.optimizers",
    "register_quantity": "ici.quantities",
    "register_statistic": "ici.measure",
    "replay": "ici.engine.replay",
    "run": "ici.engine.run",
    "shift": "ici.measure",
    "shift_series": "ici.measure",
    "spike_score": "ici.measure.spikes",
    "steps_to_target": "ici.analysis.convergence",
    "wasserstein1": "ici.measure",
    "watch": "ici.adapt",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded when first used: `import ici` stays quick in programs that need one part of it.
    if name not in _HOMES:
        raise AttributeError(f"module 'ici' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(home), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)
