"""What an experiment can measure beside training, by name: ``Experiment(measure=...)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ici.adapt import Model, Variables
from ici.adapt.model import Loss
from ici.dissect.attribution import attribution_of
from ici.dissect.gradient_shift import gradient_shift_of
from ici.dissect.landscape import step_sizes_around
from ici.dissect.objective import Batch, in_float32, objective_of
from ici.dissect.transport import wasserstein_shift_of
from ici.errors import InputError, unknown_name
from ici.measure.landscape import landscape_along_gradient
from ici.measure.sharpness import hessian_sharpness
from ici.probe import Probe

PyTree = Any
LANDSCAPE_MULTIPLES = (0.5, 4.0, 8)  # smallest, largest, number: Santurkar et al. 2018, §3.2


@dataclass(frozen=True)
class Snapshot:
    """One run at one step, as a measurement sees it.

    Attributes:
      model, loss: what is trained.
      before: variables after `step` updates.
      initial: parameters before the first one.
      after: parameters after the next one, on `batch`.
      batch: of that update.
      reference: inputs of the fixed reference batch.
      learning_rate: of that update.
      probe: the experiment's sites.
    """

    model: Model
    loss: Loss
    before: Variables
    initial: PyTree
    after: PyTree
    batch: Batch
    reference: Any
    learning_rate: Array
    probe: Probe


@dataclass(frozen=True)
class Measurement:
    """A named measurement.

    Attributes:
      name: what ``measure=`` calls it.
      of: a `Snapshot` to labelled arrays; traced, and compiled apart from the training step.
      dims: dimensions of each of the arrays: "block", "site" or "multiple" (of the learning rate).
    """

    name: str
    of: Callable[[Snapshot], dict[str, Array]]
    dims: dict[str, tuple[str, ...]]


def _gradient_shift(at: Snapshot) -> dict[str, Array]:
    return gradient_shift_of(at.model, at.loss, at.before, at.after, at.batch).labelled()


def _attribution(at: Snapshot) -> dict[str, Array]:
    seen = attribution_of(at.model, at.before, at.after, at.reference, at.probe)
    return {
        name: _at_every_site(at, seen.sites, values) for name, values in seen.labelled().items()
    }


def _wasserstein1(at: Snapshot) -> dict[str, Array]:
    now = Variables(at.before.params, at.before.state)
    pairs = {"": (now, at.after), "_initial": (Variables(at.initial, now.state), now.params)}
    labelled: dict[str, Array] = {}
    for kind, (before, after) in pairs.items():
        found = wasserstein_shift_of(at.model, before, after, at.reference, at.probe)
        for part, summary in (
            ("", jnp.mean),
            ("_p50", lambda x: jnp.percentile(x, 50)),
            ("_p95", lambda x: jnp.percentile(x, 95)),
        ):
            values = jnp.stack([summary(x) for x in found.values()])
            labelled[f"wasserstein1{kind}{part}"] = _at_every_site(at, tuple(found), values)
    return labelled


def _at_every_site(at: Snapshot, sites: tuple[str, ...], values: Array) -> Array:
    """``[..., S]`` of some sites as that of all the probe's sites, NaN at the others."""
    everywhere = at.model.taps_shape(at.before, at.reference, at.probe).sites
    index = jnp.asarray([everywhere.index(site) for site in sites])
    blank = jnp.full((*values.shape[:-1], len(everywhere)), jnp.nan, values.dtype)
    return blank.at[..., index].set(values)


def _landscape(at: Snapshot) -> dict[str, Array]:
    low, high, n = LANDSCAPE_MULTIPLES
    step_sizes = step_sizes_around(at.learning_rate, (low, high), n)
    objective = objective_of(at.model, at.loss, at.before.state, at.batch)
    params = in_float32(at.before.params)
    return landscape_along_gradient(objective, params, step_sizes).labelled()


def _loss_step(at: Snapshot) -> dict[str, Array]:
    objective = objective_of(at.model, at.loss, at.before.state, at.batch)
    before, after = objective(at.before.params), objective(at.after)
    return {"loss_before": before, "loss_after": after, "relative_loss_step": after / before}


def _sharpness(at: Snapshot) -> dict[str, Array]:
    objective = objective_of(at.model, at.loss, at.before.state, at.batch)
    params = in_float32(at.before.params)
    labelled = hessian_sharpness(objective, params, jax.random.key(0)).labelled()
    return labelled | {"sharpness_times_lr": labelled["sharpness"] * at.learning_rate}


_BLOCK, _SITE, _BOTH, _ALONG = ("block",), ("site",), ("block", "site"), ("multiple",)
_MEASUREMENTS: dict[str, Measurement] = {
    entry.name: entry
    for entry in (
        Measurement(
            "gradient_shift",
            _gradient_shift,
            {
                "gradient_shift": _BLOCK,
                "gradient_shift_relative": _BLOCK,
                "gradient_shift_cosine": _BLOCK,
                "block_gradient_norm": _BLOCK,
                "block_gradient_norm_shifted": _BLOCK,
                "nonfinite_parameters": _BLOCK,
            },
        ),
        Measurement(
            "attribution",
            _attribution,
            {
                "attribution": _BOTH,
                "attribution_scale": _BOTH,
                "attribution_path": _BOTH,
                "update_shift": _SITE,
                "update_scale_shift": _SITE,
                "interaction": _SITE,
                "dead_features": _SITE,
            },
        ),
        Measurement(
            "wasserstein1",
            _wasserstein1,
            {
                f"wasserstein1{kind}{part}": _SITE
                for kind in ("", "_initial")
                for part in ("", "_p50", "_p95")
            },
        ),
        Measurement(
            "landscape",
            _landscape,
            {
                "loss_along": _ALONG,
                "gradient_distance": _ALONG,
                "gradient_cosine": _ALONG,
                "effective_smoothness": (),
            },
        ),
        Measurement(
            "loss_step",
            _loss_step,
            {"loss_before": (), "loss_after": (), "relative_loss_step": ()},
        ),
        Measurement(
            "sharpness",
            _sharpness,
            {
                "sharpness": (),
                "sharpness_error": (),
                "sharpness_iterations": (),
                "sharpness_times_lr": (),
            },
        ),
    )
}


def names() -> tuple[str, ...]:
    """The names that ``measure=`` takes."""
    return tuple(_MEASUREMENTS)


def measurement(name: str) -> Measurement:
    """The measurement called `name`. Raises `InputError` for an unknown one."""
    if name not in _MEASUREMENTS:
        raise unknown_name("measurement", name, names())
    return _MEASUREMENTS[name]


def register_measurement(entry: Measurement) -> None:
    """Makes `entry` available as ``Experiment(measure=(entry.name,))``."""
    _MEASUREMENTS[entry.name] = entry


def parse_schedule(entries: tuple[str, ...], default_every: int) -> dict[str, int]:
    """``("gradient_shift@100", "sharpness")`` to ``{name: steps between two}``.

    Raises:
      InputError: an unknown name, a name given twice, or a cadence that is not a number >= 1.
    """
    schedule: dict[str, int] = {}
    for entry in entries:
        name, at, cadence = entry.partition("@")
        measurement(name)
        if name in schedule:
            raise InputError(f"measure names {name} twice: wanted every measurement once.")
        if at and not (cadence.isdecimal() and int(cadence) >= 1):
            raise InputError(
                f"measure is {entry!r}: wanted name or name@steps, such as {name}@{default_every}."
            )
        schedule[name] = int(cadence) if at else default_every
    return schedule
