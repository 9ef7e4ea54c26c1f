"""What the analysis expects of a record, and the views of it that every analysis starts from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ici.errors import InputError
from ici.store.places import Place
from ici.store.results import Results

NODES = ("train", "probe", "reference", "evaluation", "runs")
COMPARED = ("norm", "lr", "seed")


@dataclass(frozen=True)
class Selection:
    """Some runs of a record, with the parts of a whole one.

    ``train``: loss, grad_norm ``(run…, step)``. ``probe`` and ``reference``: mean, std
    ``(run…, step, site, feature)`` and count ``(run…, step, site)``. ``evaluation``: loss,
    accuracy ``(run…, step)``. ``runs``: diverged_at ``(run…)``, NaN for never. The run
    dimensions are norm, lr, seed, depth and any other that was swept.
    """

    train: xr.Dataset
    probe: xr.Dataset
    reference: xr.Dataset
    evaluation: xr.Dataset
    runs: xr.Dataset
    experiment: dict[str, Any]
    path: Place
    task: str = "classification"


Records = Results | Selection


def select(results: Records, **labels: Any) -> Selection:
    """The runs with these labels, such as ``depth=10`` (drops the dimension) or ``lr=[0.1]``.

    Raises:
      InputError: the record has no such dimension or no such label along it.
    """
    for dim, wanted in labels.items():
        if dim not in run_dims(results):
            raise InputError(
                f"runs have no dimension {dim!r}: wanted one of {', '.join(run_dims(results))}."
            )
        known = results.runs[dim].values.tolist()
        missing = [v for v in np.atleast_1d(wanted).tolist() if v not in known]
        if missing:
            raise InputError(f"no run has {dim} {missing[0]}: wanted one of {known}.")
    # One node at a time: a record is read as it is asked for.
    parts = {node: getattr(results, node).sel(labels) for node in NODES}
    return Selection(**parts, experiment=results.experiment, path=results.path, task=results.task)


@dataclass(frozen=True)
class Target:
    """What a run is to reach on validation data: a `variable` of the evaluations, and its value."""

    variable: str
    value: float

    @property
    def higher_is_better(self) -> bool:
        """Whether values above the target meet it."""
        return self.variable == "accuracy"

    def __str__(self) -> str:
        if self.variable == "accuracy":
            return f"{100 * self.value:.3g}% acc."
        return f"val. loss {self.value:g}"


def target_of(results: Records) -> Target | None:
    """The experiment's own target; None where it has none."""
    for variable in ("accuracy", "loss"):
        value = results.experiment.get(f"target_{variable}")
        if value is not None:
            return Target(variable, float(value))
    return None


def score_variable(results: Records) -> str:
    """What of the evaluations tells how well a run does: accuracy of classifiers, else loss."""
    return "accuracy" if results.task == "classification" else "loss"


def run_dims(results: Records) -> tuple[str, ...]:
    """Dimensions along which the runs differ, in storage order."""
    return tuple(str(dim) for dim in results.runs["diverged_at"].dims)


def settings(results: Records) -> list[dict[str, Any]]:
    """Every combination of the swept values that tables and figures never mix.

    Norm, learning rate and seed are compared or pooled within one of these; depth, and whatever
    else was swept, is not. A record without such dimensions has the one empty combination.
    """
    dims = [dim for dim in run_dims(results) if dim not in COMPARED]
    values = [results.runs[dim].values.tolist() for dim in dims]
    return [dict(zip(dims, combination, strict=True)) for combination in itertools.product(*values)]


def short(value: Any) -> str:
    """A swept value in few characters: ``0.003``, ``3e-4``, ``0.9995``, ``batch``."""
    if not isinstance(value, float):
        return str(value)
    if 0.9 < value < 1:
        # Decay rates differ in their distance to 1.
        return f"{value:.6g}"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.3g}"


def describe_setting(setting: dict[str, Any]) -> str:
    """``depth 10, weight_decay 0.1``."""
    return ", ".join(f"{dim} {short(value)}" for dim, value in setting.items())


def check_one_setting(results: Records) -> None:
    """Raises `InputError` where a record still mixes depths or other settings."""
    mixed = {
        dim: results.runs[dim].values.tolist() for dim in run_dims(results) if dim not in COMPARED
    }
    if mixed:
        dim, values = next(iter(mixed.items()))
        raise InputError(
            f"the record holds {dim} {values}: wanted the runs of one, "
            f"select(results, {dim}={values[0]!r})."
        )


def check_recorded(results: Records) -> None:
    """Raises `InputError` where no step is committed yet."""
    for node in ("train", "reference", "evaluation"):
        if not getattr(results, node).sizes["step"]:
            raise InputError(f"{results.path} holds no {node} step yet: wait for its first steps.")


def has_moments(dataset: xr.Dataset) -> bool:
    """Whether a node of a record has the mean and the standard deviation of layer inputs."""
    return {"mean", "std"} <= set(dataset.data_vars)


def diverged(results: Records) -> xr.DataArray:
    """Whether each run diverged, bool ``(run…)``."""
    return results.runs["diverged_at"].notnull()


def training_loss(results: Records) -> xr.DataArray:
    """Training loss ``(run…, step)`` of the steps whose update was made, NaN elsewhere.

    The loss at the diverging step belongs to the divergence and is left out.
    """
    loss = results.train["loss"].transpose(*run_dims(results), "step").load()
    return loss.where(~(loss["step"] >= results.runs["diverged_at"]))


def validation(results: Records, variable: str) -> xr.DataArray:
    """A variable of the evaluations ``(run…, step)``, NaN after a run diverged."""
    values = results.evaluation[variable].transpose(*run_dims(results), "step").load()
    return values.where(~(values["step"] > results.runs["diverged_at"]))


def last_position(values: xr.DataArray) -> xr.DataArray:
    """Where along ``step`` the last value lies that is not NaN, int ``(…)``; the end if none."""
    from_end = values.notnull().isel(step=slice(None, None, -1)).argmax("step")
    return values.sizes["step"] - 1 - from_end


def last_recorded(values: xr.DataArray) -> xr.DataArray:
    """The last value along ``step`` that is not NaN, ``(…)``; NaN where there is none."""
    return values.isel(step=last_position(values)).drop_vars("step")


def still_going(results: Records) -> xr.DataArray:
    """Whether each run has steps to come, bool ``(run…)``.

    A run has ended when it diverged, when its last step is recorded, or when it met the target
    of an experiment that stops there.
    """
    loss = results.train["loss"].transpose(*run_dims(results), "step")
    total_steps = int(results.experiment["steps"])
    done = diverged(results)
    if int(loss["step"][-1]) >= total_steps - 1:
        done = done | np.isfinite(loss.isel(step=-1, drop=True))
    if results.experiment.get("stop_at_target"):
        target = target_of(results)
        assert target is not None, "an experiment that stops at its target has one"
        score = validation(results, target.variable)
        met = score >= target.value if target.higher_is_better else score <= target.value
        done = done | met.any("step")
    return ~done
