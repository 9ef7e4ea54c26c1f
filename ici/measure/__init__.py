"""Measurement: pure functions on arrays. No Flax, no files, no engine."""

from ici.measure.shift import DEAD_STD, Shift, shift
from ici.measure.statistics import (
    Extremes,
    Moments,
    Statistic,
    register_statistic,
    statistic,
)

__all__ = [
    "DEAD_STD",
    "Extremes",
    "Moments",
    "Shift",
    "Statistic",
    "register_statistic",
    "shift",
    "statistic",
]
