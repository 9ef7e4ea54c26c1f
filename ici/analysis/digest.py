"""A record boiled down to what a report shows: small labelled arrays, made part by part.

Memory is bounded by the largest part and by the budgets below, whatever the number of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from ici.analysis.anatomy import SpikeStudy, spikes_of, study_of
from ici.analysis.convergence import (
    chosen_target,
    examples_to_target,
    seconds_to_target,
    steps_to_target,
)
from ici.analysis.gradients import GRADIENT_NORM, gradient_growth, repeated_blocks
from ici.analysis.outcomes import run_divergence_cause, run_first_nonfinite, run_outcome
from ici.analysis.parts import common_sites, groups_of, not_begun, parts
from ici.analysis.records import (
    Records,
    Selection,
    Target,
    has_moments,
    run_dims,
    score_variable,
    training_loss,
    validation,
)
from ici.analysis.shifts import mean_shift
from ici.analysis.summary import incomplete, joined, run_table
from ici.measure.spikes import PRESETS, SpikeRule
from ici.store.places import Place
from ici.store.results import Results

PERCENTILES = (15, 50, 85)  # Ioffe & Szegedy 2015, Fig. 1
# Numbers that each kind of picture may take in a report; more runs get fewer steps each.
CURVE_VALUES, INPUT_VALUES, SHIFT_VALUES, MEASURED_VALUES = 600_000, 500_000, 400_000, 100_000
MAX_BINS, MIN_BINS, MAX_STEPS = 150, 20, 40


@dataclass(frozen=True)
class Digest:
    """What a report knows of one experiment. "Cells" are run dimensions without seed.

    Attributes:
      runs: a `run_table` with ``cause``, ``first_nonfinite``, ``outcome`` and, with a target,
        ``steps_to_target``, ``examples_to_target``, ``seconds_to_target``; its attributes hold the
        constants.
      curves: training loss ``(run…, step)``: ``mean`` and ``peak`` over bins of ``bin_steps``.
      scores: evaluations ``(run…, step)``.
      shift: reference-batch mean shift ``(cell…, step, site)`` against step 0 (``initial``) and
        against the measurement before (``previous``), medians over the running seeds; None
        without moments.
      inputs: percentiles over units of all running seeds, of each unit's ``mean`` and ``std``
        ``(cell…, step, site, percentile)``, from the probed training batches; None without.
      gradients: ``gradient_norm`` ``(cell…, step, block)`` and ``growth``, ``r2``
        ``(cell…, step)``, medians over the running seeds; None where the record has no norms of
        blocks.
      measured: heavy measurements by name, medians over seeds ``(cell…, step, …)``.
      spikes: every spike, and what led it.
      target, target_source: what speed is judged by, and who set it.
      not_begun: norm and depth of the groups of an unfinished record without a recorded step.
      notes: what was left out, and why; for the reader.
    """

    runs: xr.Dataset
    curves: xr.Dataset
    scores: xr.DataArray
    shift: xr.Dataset | None
    inputs: xr.Dataset | None
    gradients: xr.Dataset | None
    measured: dict[str, xr.Dataset]
    spikes: SpikeStudy
    target: Target | None
    target_source: str
    experiment: dict[str, Any]
    task: str
    path: Place
    environment: dict[str, Any] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    not_begun: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def run_dims(self) -> tuple[str, ...]:
        """Dimensions along which the runs differ, in storage order."""
        return tuple(str(dim) for dim in self.runs["diverged_at"].dims)

    @property
    def cell_dims(self) -> tuple[str, ...]:
        """`run_dims` without seed."""
        return tuple(dim for dim in self.run_dims if dim != "seed")

    @property
    def n_seeds(self) -> int:
        """Number of seeds of every cell."""
        return self.runs.sizes["seed"]

    @property
    def score(self) -> str:
        """accuracy or loss: the variable of the evaluations that tells how well a run does."""
        return score_variable(self)  # pyright: ignore[reportArgumentType]


def digest(results: Records, rule: SpikeRule = PRESETS["olmo_core"]) -> Digest:
    """Reads a record once, part by part.

    Raises:
      InputError: nothing is recorded yet.
    """
    n_runs = int(results.runs["diverged_at"].size)
    n_cells = max(1, n_runs // results.runs.sizes["seed"])
    sites = common_sites(results)
    pieces: dict[str, list[Any]] = {name: [] for name in ("runs", "curves", "scores")}
    pieces |= {"shift": [], "inputs": [], "gradients": [], "spikes": []}
    for part in parts(results):
        site = sites[-1] if sites and has_moments(part.reference) else None
        table = run_table(_without(part, site), rule, site)
        why = {"cause": run_divergence_cause(part), "first_nonfinite": run_first_nonfinite(part)}
        pieces["runs"].append(table.assign(why))
        pieces["curves"].append(binned_loss(part, _n_bins(n_runs)))
        pieces["scores"].append(validation(part, score_variable(part)).to_dataset(name="score"))
        pieces["spikes"] += spikes_of(part, rule)
        if site is not None:
            n_sites = part.reference.sizes["site"]
            pieces["shift"].append(_shift(part, _n_steps(SHIFT_VALUES, n_cells * n_sites * 2)))
        probed = bool(part.probe.sizes.get("step"))
        if probed and has_moments(part.probe):
            per_step = n_cells * part.probe.sizes["site"] * 2 * len(PERCENTILES)
            pieces["inputs"].append(layer_inputs(part, _n_steps(INPUT_VALUES, per_step)))
        if probed and GRADIENT_NORM in part.probe:
            n_blocks = part.probe.sizes["block"]
            pieces["gradients"].append(
                _gradients(part, _n_steps(MEASURED_VALUES, n_cells * n_blocks))
            )
    runs = joined(pieces["runs"], results)
    scores = joined(pieces["scores"], results)["score"]
    best = runs[f"best_validation_{score_variable(results)}"]
    target, source = chosen_target(results, best)
    if target is not None:
        runs = _with_times(runs, scores, target, results)
    runs.attrs["incomplete"] = incomplete(results)
    runs.attrs |= {"target": None if target is None else str(target), "target_source": source}
    runs["outcome"] = run_outcome(runs)
    measured, notes = _measured(results, n_cells)
    environment = results.manifest.environment if isinstance(results, Results) else {}
    return Digest(
        runs=runs,
        curves=joined(pieces["curves"], results),
        scores=scores,
        shift=_maybe(pieces["shift"], results),
        inputs=_maybe(pieces["inputs"], results),
        gradients=_maybe(pieces["gradients"], results),
        measured=measured,
        spikes=study_of(pieces["spikes"], rule),
        target=target,
        target_source=source,
        experiment=results.experiment,
        task=results.task,
        path=results.path,
        environment=environment,
        sites=tuple(sites),
        not_begun=not_begun(results),
        notes=tuple(notes),
    )


def _without(part: Selection, site: str | None) -> Selection:
    """The part as it is, or without moments where its groups share no site."""
    if site is not None or not has_moments(part.reference):
        return part
    from dataclasses import replace

    return replace(part, reference=part.reference.drop_vars(["mean", "std"]))


def _maybe(pieces: Sequence[xr.Dataset], results: Records) -> xr.Dataset | None:
    return joined(pieces, results) if pieces else None


def _n_bins(n_runs: int) -> int:
    return int(np.clip(CURVE_VALUES // (2 * n_runs), MIN_BINS, MAX_BINS))


def _n_steps(budget: int, values_per_step: int) -> int:
    return int(np.clip(budget // max(1, values_per_step), 2, MAX_STEPS))


def thinned(node: Any, n_steps: int) -> Any:
    """At most `n_steps` of a node's steps: evenly spaced, the first and the last among them."""
    at = np.linspace(0, node.sizes["step"] - 1, min(n_steps, node.sizes["step"]))
    return node.isel(step=np.unique(at.round().astype(int)))


def binned_loss(results: Records, n_bins: int = MAX_BINS) -> xr.Dataset:
    """``mean`` and ``peak`` of the training loss over bins ``(run…, step)``, float32.

    ``step`` is the first of each bin, the attribute ``bin_steps`` their width. NaN once a run has
    ended.
    """
    width = max(1, -(-int(results.experiment["steps"]) // n_bins))
    bins = training_loss(results).coarsen(step=width, boundary="pad", coord_func="min")
    curves = xr.Dataset({"mean": bins.mean(), "peak": bins.max()}, attrs={"bin_steps": width})
    return curves.assign_coords(step=curves["step"].astype(int))


def _median_over_seeds(values: xr.DataArray) -> xr.DataArray:
    known = values.notnull().any("seed")
    # A cell of which every seed has ended would make NumPy warn.
    return values.where(known, 0.0).median("seed").where(known).astype(np.float32)


def _shift(part: Selection, n_steps: int) -> xr.Dataset:
    shifts = {}
    for against in ("initial", "previous"):
        moved = thinned(mean_shift(part, part.reference, against)["mean_shift"], n_steps)
        shifts[against] = _median_over_seeds(moved)
    return xr.Dataset(shifts)


def layer_inputs(results: Records, n_steps: int = MAX_STEPS) -> xr.Dataset:
    """Percentiles over units of all running seeds of each unit's mean and standard deviation.

    ``mean`` and ``std`` ``(cell…, step, site, percentile)``, float32; NaN where no seed is running
    or the networks have no such site. From the training batches that the probe saw.
    """
    node = thinned(results.probe[["mean", "std"]], n_steps)
    cells = [dim for dim in run_dims(results) if dim != "seed"]
    found = {}
    for name in ("mean", "std"):
        values = node[name].transpose(*cells, "step", "site", "seed", "feature")
        pooled = values.values.reshape(*values.shape[:-2], -1)
        found[name] = ((*cells, "step", "site", "percentile"), _percentiles(pooled))
    coordinates = {dim: node[dim] for dim in (*cells, "step", "site")}
    return xr.Dataset(found, {**coordinates, "percentile": list(PERCENTILES)})


def _percentiles(values: np.ndarray) -> np.ndarray:
    """`PERCENTILES` of the finite numbers along the last axis ``[..., 3]``, float32."""
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=-1)  # NaN sorts last
    n = np.isfinite(ordered).sum(axis=-1)
    out = np.full((*ordered.shape[:-1], len(PERCENTILES)), np.nan, np.float32)
    for i, percentile in enumerate(PERCENTILES):
        place = (np.maximum(n, 1) - 1) * percentile / 100
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, np.maximum(n, 1) - 1)
        below, above = (
            np.take_along_axis(ordered, at[..., None], -1)[..., 0] for at in (low, high)
        )
        out[..., i] = np.where(n > 0, below + (place - low) * (above - below), np.nan)
    return out


def _gradients(part: Selection, n_steps: int) -> xr.Dataset:
    norms = thinned(part.probe[GRADIENT_NORM], n_steps)
    norms = norms.where(~(norms["step"] >= part.runs["diverged_at"]))
    found = {"gradient_norm": _median_over_seeds(norms)}
    if repeated_blocks(norms["block"].values.tolist()):
        growth = gradient_growth(norms)
        found |= {name: _median_over_seeds(growth[name]) for name in ("growth", "r2")}
    return xr.Dataset(found)


def _with_times(
    runs: xr.Dataset, scores: xr.DataArray, target: Target, results: Records
) -> xr.Dataset:
    met_at = steps_to_target(
        scores.transpose(..., "step").values,
        scores["step"].values,
        target.value,
        target.higher_is_better,
    )
    dims = [dim for dim in scores.dims if dim != "step"]
    steps = xr.DataArray(met_at, {dim: scores[dim] for dim in dims}, dims)
    steps = steps.transpose(*runs["diverged_at"].dims)
    steps = steps.where(np.isfinite(steps) | ~runs["going"])
    return runs.assign(
        steps_to_target=steps,
        examples_to_target=examples_to_target(steps, results),
        seconds_to_target=seconds_to_target(steps, results),
    )


def _measured(results: Records, n_cells: int) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Heavy measurements as medians over seeds, thinned to what a report can hold."""
    if not isinstance(results, Results):
        return {}, []
    found: dict[str, list[xr.Dataset]] = {}
    notes = []
    for group in groups_of(results):
        assert isinstance(group, Results)
        for name in group.measured:
            node = group.measurement(name)
            if not node.sizes["step"]:
                continue
            extent = sum(
                int(np.prod([node.sizes[d] for d in v.dims if d not in (*run_dims(group), "step")]))
                for v in node.data_vars.values()
            )
            kept = thinned(node, _n_steps(MEASURED_VALUES, n_cells * extent))
            if kept.sizes["step"] < node.sizes["step"]:
                notes.append(
                    f"{name}: {kept.sizes['step']} of {node.sizes['step']} measured steps are shown"
                )
            kept = kept.load()
            found.setdefault(name, []).append(
                xr.Dataset({k: _median_over_seeds(v) for k, v in kept.data_vars.items()})
            )
    return {name: joined(each, results) for name, each in found.items()}, sorted(set(notes))
