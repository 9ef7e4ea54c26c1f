"""Checks of an experiment that need no data: each refuses the first field that cannot be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ici.data.augment import augmentation_names
from ici.errors import InputError, unknown_name
from ici.models.norms import check_norm
from ici.optimizers import Optimizer, betas, schedule_names

if TYPE_CHECKING:
    from ici.config.experiment import Experiment

SWEPT = ("norm", "depth", "lr", "weight_decay", "warmup_steps", "beta1", "beta2", "seed")


def check(experiment: Experiment) -> None:
    """Raises `InputError` with the field, its value, what was wanted and the fix."""
    for part in (_names, _grid, _betas, _counts, _schedule, _cadences, _batch, _sharding, _targets):
        part(experiment)


def _names(e: Experiment) -> None:
    if e.name.strip() in ("", ".", "..") or "/" in e.name:
        raise InputError(
            f"name is {e.name!r}: wanted the name of a folder, without '/', such as 'mine'."
        )
    for norm in e.norm:
        base, *additions = norm.split("+")
        check_norm(base)
        known = getattr(e.model, "norm_additions", ())
        for addition in additions:
            if addition not in known:
                raise InputError(
                    f"norm is {norm!r}: {type(e.model).__name__} adds "
                    f"{', '.join(known) or 'nothing'} to a norm, not {addition!r}; wanted {base!r}."
                )
    Optimizer(e.optimizer, e.bias_correction, e.clip_norm, e.decay_on)  # pyright: ignore
    if e.schedule not in schedule_names():
        raise unknown_name("schedule", e.schedule, schedule_names())
    if e.augment not in augmentation_names():
        raise unknown_name("augment", e.augment, augmentation_names())


def _grid(e: Experiment) -> None:
    for name in SWEPT:
        values = getattr(e, name)
        if values is None:
            continue
        if not values:
            raise InputError(f"{name} is empty: wanted at least one value to run.")
        if len(set(values)) < len(values):
            raise InputError(f"{name} is {values}: wanted every value once.")
    for depth in e.depth:
        if depth < 1:
            raise InputError(f"depth is {depth}: wanted an integer >= 1.")
    for lr in e.learning_rates:
        if not (math.isfinite(lr) and lr > 0):
            raise InputError(f"lr is {lr}: wanted a finite number > 0.")
    for decay in e.weight_decay:
        if not (math.isfinite(decay) and decay >= 0):
            raise InputError(f"weight_decay is {decay}: wanted a finite number >= 0.")
    for seed in e.seed:
        if not 0 <= seed < 2**31:
            raise InputError(f"seed is {seed}: wanted an integer from 0 to 2**31 - 1.")
    if e.probe.step_part() is None:
        raise InputError(
            f"probe stats is {e.probe.stats}: all of them are for the reference batch; "
            "wanted one for the training step too, such as 'moments'."
        )


def _betas(e: Experiment) -> None:
    own = betas(e.optimizer)
    for name in ("beta1", "beta2"):
        values = getattr(e, name)
        if values is None:
            continue
        if name not in own:
            raise InputError(
                f"{name} is {values} and optimizer is {e.optimizer!r}, which has "
                f"{', '.join(own) or 'no betas'}: wanted None."
            )
        for value in values:
            if not 0 <= value < 1:
                raise InputError(f"{name} is {value}: wanted a number in [0, 1).")


def _counts(e: Experiment) -> None:
    positive = ("steps", "batch_size", "reference_size", "reference_every", "eval_every")
    for name in (*positive, "data_parallel", "accumulation_steps"):
        if getattr(e, name) < 1:
            raise InputError(f"{name} is {getattr(e, name)}: wanted an integer >= 1.")
    for name in ("devices", "lane_width", "eval_size"):
        if getattr(e, name) is not None and getattr(e, name) < 1:
            raise InputError(f"{name} is {getattr(e, name)}: wanted an integer >= 1.")


def _schedule(e: Experiment) -> None:
    for warmup in e.warmup_steps:
        if warmup < 0:
            raise InputError(f"warmup_steps is {warmup}: wanted an integer >= 0.")
        if warmup > e.steps:
            raise InputError(
                f"warmup_steps is {warmup} and steps is {e.steps}: wanted a warm-up that ends "
                "within the run."
            )
    if not 0 < e.decay_fraction <= 1:
        raise InputError(f"decay_fraction is {e.decay_fraction}: wanted a fraction in (0, 1].")
    if e.ema_decay is not None and not 0 < e.ema_decay < 1:
        raise InputError(f"ema_decay is {e.ema_decay}: wanted a number in (0, 1), or None.")


def _cadences(e: Experiment) -> None:
    cadences = {name: getattr(e, name) for name in ("reference_every", "eval_every")}
    cadences |= {f"measure {name}@": every for name, every in e.measurements.items()}
    for name, every in cadences.items():
        if every % e.probe.every:
            raise InputError(
                f"{name} is {every} and probe.every is {e.probe.every}: wanted a multiple of "
                "probe.every."
            )


def _batch(e: Experiment) -> None:
    parts = e.data_parallel * e.accumulation_steps
    if e.batch_size % parts:
        split = " · ".join(
            f"{name} {getattr(e, name)}"
            for name in ("data_parallel", "accumulation_steps")
            if getattr(e, name) > 1
        )
        raise InputError(
            f"batch_size is {e.batch_size} and is split by {split}: wanted a batch that divides "
            "evenly."
        )


def _sharding(e: Experiment) -> None:
    if e.shard_params and e.data_parallel == 1:
        raise InputError(
            "shard_params is True and data_parallel is 1: wanted the number of devices that share "
            "a run; set data_parallel too."
        )


def _targets(e: Experiment) -> None:
    if e.target_accuracy is not None and not 0 < e.target_accuracy <= 1:
        raise InputError(f"target_accuracy is {e.target_accuracy}: wanted a fraction in (0, 1].")
    if e.target_loss is not None and not math.isfinite(e.target_loss):
        raise InputError(f"target_loss is {e.target_loss}: wanted a finite number.")
    if e.target_accuracy is not None and e.target_loss is not None:
        raise InputError(
            f"target_accuracy is {e.target_accuracy} and target_loss is {e.target_loss}: wanted "
            "one target."
        )
    if e.stop_at_target and e.target_accuracy is None and e.target_loss is None:
        raise InputError(
            "stop_at_target is set without a target: set target_accuracy or target_loss too."
        )
    if not e.divergence_ratio > 1:
        raise InputError(f"divergence_ratio is {e.divergence_ratio}: wanted > 1.")
