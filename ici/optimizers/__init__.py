"""Optimizers and schedules whose numbers are traced values, so that sweeping them never recompiles.

A lane's learning rate is data, not code: one compiled program trains every learning rate.
"""

from ici.optimizers.directions import (
    Direction,
    Optimizer,
    betas,
    default_learning_rates,
    optimizer_names,
)
from ici.optimizers.directions import register as register_optimizer
from ici.optimizers.parameters import DECAYED, decay_mask, matrices
from ici.optimizers.schedules import register as register_schedule
from ici.optimizers.schedules import schedule_factor, schedule_names

__all__ = [
    "DECAYED",
    "Direction",
    "Optimizer",
    "betas",
    "decay_mask",
    "default_learning_rates",
    "matrices",
    "optimizer_names",
    "register_optimizer",
    "register_schedule",
    "schedule_factor",
    "schedule_names",
]
