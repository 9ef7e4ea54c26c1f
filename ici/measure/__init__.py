"""Measurement: pure functions on arrays. No Flax, no files, no engine."""

from ici.measure.attention import Attention, OutputLogits
from ici.measure.higher_moments import HigherMoments
from ici.measure.noise_floor import NoiseFloor, difference_threshold, noise_floor
from ici.measure.percentiles import Percentiles
from ici.measure.shift import DEAD_STD, Shift, shift, shift_series
from ici.measure.splits import SplitMoments
from ici.measure.statistics import (
    Configured,
    Extremes,
    Moments,
    Statistic,
    own_statistic,
    register_statistic,
    statistic,
    statistic_names,
)
from ici.measure.transport import wasserstein1
from ici.measure.units import DeadUnits, EffectiveRank, effective_rank_shift
from ici.measure.updates import Updates

__all__ = [
    "DEAD_STD",
    "Attention",
    "Configured",
    "DeadUnits",
    "EffectiveRank",
    "Extremes",
    "HigherMoments",
    "Moments",
    "NoiseFloor",
    "OutputLogits",
    "Percentiles",
    "Shift",
    "SplitMoments",
    "Statistic",
    "Updates",
    "difference_threshold",
    "effective_rank_shift",
    "noise_floor",
    "register_statistic",
    "shift",
    "shift_series",
    "statistic",
    "statistic_names",
    "wasserstein1",
]

for _kind in (
    HigherMoments,
    Percentiles,
    DeadUnits,
    EffectiveRank,
    Attention,
    OutputLogits,
    SplitMoments,
    Updates,
):
    own_statistic(_kind)
