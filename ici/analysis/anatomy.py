"""Anatomy of loss spikes: which layers' inputs moved first, and whether that is more than chance.

At every probed step, the mean shift of each site against the probe before tells how far its inputs
moved. A site has left its band where the logarithm of that lies `LEAD.k` standard deviations above
the mean of the probes before. Something always moves before something: the null hypothesis is the
same record with its spikes at other times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from ici.analysis.parts import parts
from ici.analysis.records import Records, has_moments, run_dims, select, training_loss
from ici.analysis.shifts import mean_shift
from ici.measure.spikes import PRESETS, SpikeEvent, SpikeRule, band, events, score

# Probes are few between spikes: a short memory. As far out as a spike of the loss has to be: with
# less, of twenty sites one is always outside.
LEAD = SpikeRule("lead", window=16, k=6.0, two_sided=False, burn_in=6, min_std=1e-10)
LOOKBACK_STEPS = 50
N_ROTATIONS = 999


@dataclass(frozen=True)
class Mover:
    """A site whose inputs left their band before a spike.

    Attributes:
      site: its name.
      step: the probed step at which it was first outside.
      shift: mean shift against the probe before, in standard deviations of a unit; the largest
        between `step` and the onset.
      ratio: `shift` over the geometric mean of the probes before `step`.
      deviation: how many standard deviations of the band.
    """

    site: str
    step: int
    shift: float
    ratio: float
    deviation: float


@dataclass(frozen=True)
class Anatomy:
    """A spike of one run, and the sites that moved before it, the first first.

    `run` holds the labels of the run; `movers` is empty where no site left its band within
    `LOOKBACK_STEPS` before the onset, or where no moments were recorded.
    """

    run: dict[str, object]
    event: SpikeEvent
    movers: tuple[Mover, ...]

    @property
    def lead_steps(self) -> float:
        """Steps from the first site's excursion to the onset; NaN where none moved."""
        return float(self.event.onset - self.movers[0].step) if self.movers else math.nan


@dataclass(frozen=True)
class Lead:
    """Whether shift precedes spikes more often than it would by chance.

    Attributes:
      n_events: spikes that were judged.
      n_led: spikes before which a site left its band, at most `lookback_steps` before the onset.
      median_steps: median lead of those; NaN without any.
      null_share: mean share of led spikes with the spikes at other times.
      p_value: share of rotations, the real one among them, with at least as many led spikes.
      lookback_steps, n_rotations: constants.
    """

    n_events: int
    n_led: int
    median_steps: float
    null_share: float
    p_value: float
    lookback_steps: int
    n_rotations: int

    @property
    def share(self) -> float:
        """Share of the spikes that were led; NaN without spikes."""
        return self.n_led / self.n_events if self.n_events else math.nan


def excursions(shifts: ArrayLike, rule: SpikeRule = LEAD) -> np.ndarray:
    """How far ``shifts[step, site]`` lies above its band, in its standard deviations ``[…]``.

    NaN where a value cannot be judged, for want of history or because it is 0 or not finite; a
    value has left the band where this is at least ``rule.k``.
    """
    values = np.asarray(shifts, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    deviation = np.full(values.shape, np.nan)
    for site in range(values.shape[1]):
        # Sites that stand still, as the data do, have no logarithm; nor has the first probe.
        known = np.flatnonzero(np.isfinite(logs[:, site]))
        if len(known) > rule.burn_in:
            mean, std = band(logs[known, site], rule)
            deviation[known, site] = (logs[known, site] - mean) / np.maximum(std, rule.min_std)
    return deviation


def movers_before(
    onset: int,
    steps: ArrayLike,
    sites: Sequence[str],
    shifts: ArrayLike,
    deviation: ArrayLike,
    rule: SpikeRule = LEAD,
    lookback_steps: int = LOOKBACK_STEPS,
) -> tuple[Mover, ...]:
    """The sites outside their bands in ``[onset − lookback, onset]``, first and furthest first.

    ``steps[P]`` of the probes, ``shifts[P, S]`` and ``deviation[P, S]`` of `excursions`.
    """
    at = np.asarray(steps)
    values, far = np.asarray(shifts, np.float64), np.nan_to_num(np.asarray(deviation), nan=-np.inf)
    window = np.flatnonzero((at >= onset - lookback_steps) & (at <= onset))
    found = []
    for s, site in enumerate(sites):
        outside = window[far[window, s] >= rule.k]
        if not outside.size:
            continue
        first = int(outside[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            before = np.log(values[:first, s])
        # The probes that the band is of: those at which the site did not move are none of them.
        usual = math.exp(float(np.mean(before[np.isfinite(before)][-rule.window :])))
        largest = first + int(np.nanargmax(values[first : window[-1] + 1, s]))
        found.append(
            Mover(
                site,
                int(at[first]),
                float(values[largest, s]),
                float(values[largest, s] / usual),
                float(far[first, s]),
            )
        )
    return tuple(sorted(found, key=lambda mover: (mover.step, -mover.deviation)))


def lead_of_shift(
    onsets: Sequence[ArrayLike],
    outside: Sequence[ArrayLike],
    steps: Sequence[ArrayLike],
    first_steps: Sequence[int],
    last_steps: Sequence[int],
    *,
    lookback_steps: int = LOOKBACK_STEPS,
    n_rotations: int = N_ROTATIONS,
    seed: int = 0,
) -> Lead:
    """Tests the spikes of some runs against the same spikes at other times.

    A rotation moves all onsets of a run by one random number of steps, circularly between
    the run's first step and its last one, so that their number and distances stay as they are.

    Args:
      onsets: per run the steps of its spikes.
      outside: per run bool ``[P]``: whether any site is outside its band at each probe.
      steps: per run ``[P]``, steps of its probes.
      first_steps: per run, from which on spikes and excursions can be found; spikes before are
        not counted.
      last_steps: per run, one past the last step.
      lookback_steps: how long before the onset an excursion counts; the onset's own step does.
      n_rotations: rotations drawn.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n_events = n_led = 0
    null = np.zeros(n_rotations)
    leads: list[float] = []
    for run_onsets, run_outside, at, first_step, last in zip(
        onsets, outside, steps, first_steps, last_steps, strict=True
    ):
        when = np.asarray(run_onsets, int)
        when = when[when >= first_step]
        length = int(last) - first_step
        if not when.size or length < 2:
            continue
        probes = np.asarray(at)[np.asarray(run_outside, bool)]
        # The first excursion in the window before each step is the one that leads it.
        all_steps = np.arange(first_step, int(last))
        first = np.searchsorted(probes, all_steps - lookback_steps)
        led = np.zeros(length, bool)
        has = first < len(probes)
        led[has] = probes[first[has]] <= all_steps[has]
        position = when - first_step
        n_events += len(when)
        n_led += int(led[position].sum())
        leads += [float(s - probes[first[s - first_step]]) for s in when if led[s - first_step]]
        offsets = rng.integers(1, length, n_rotations)
        null += led[(position[None, :] + offsets[:, None]) % length].sum(axis=1)
    p_value = (1 + int((null >= n_led).sum())) / (1 + n_rotations) if n_events else math.nan
    return Lead(
        n_events,
        n_led,
        float(np.median(leads)) if leads else math.nan,
        float(null.mean() / n_events) if n_events else math.nan,
        p_value,
        lookback_steps,
        n_rotations,
    )


@dataclass(frozen=True)
class SpikeStudy:
    """Every spike of a record, and what led them.

    `lead` is None where the record has no moments, or where no site could be judged.
    """

    spikes: tuple[Anatomy, ...]
    rule: SpikeRule
    lead: Lead | None


@dataclass(frozen=True)
class RunSpikes:
    """The spikes of one run with what the study of all needs of it.

    `outside` (bool ``[P]``, whether any site was outside its band at each of `probe_steps`) is None
    where no site could be judged; `first_step` is the first at which a spike and a site could be,
    `last_step` is one past the last recorded one.
    """

    spikes: tuple[Anatomy, ...]
    outside: np.ndarray | None
    probe_steps: np.ndarray
    first_step: int
    last_step: int


def dissect_spikes(
    results: Records,
    rule: SpikeRule = PRESETS["olmo_core"],
    lookback_steps: int = LOOKBACK_STEPS,
) -> SpikeStudy:
    """All spikes of the training loss, each with the sites that moved before it.

    The probe sees every `every`-th step only, so a lead is known to that many steps. Where more
    sites are watched, more of them leave their bands by chance: that is what the null is for.

    Raises:
      InputError: nothing is recorded yet.
    """
    runs = [run for part in parts(results) for run in spikes_of(part, rule, lookback_steps)]
    return study_of(runs, rule, lookback_steps)


def spikes_of(
    results: Records,
    rule: SpikeRule = PRESETS["olmo_core"],
    lookback_steps: int = LOOKBACK_STEPS,
) -> list[RunSpikes]:
    """The runs of a part of a record that have a spike; see `dissect_spikes`."""
    loss = training_loss(results)
    dims = run_dims(results)
    series = loss.values.reshape(-1, loss.sizes["step"])
    values = [loss[dim].values.tolist() for dim in dims]
    labels = [dict(zip(dims, each, strict=True)) for each in itertools.product(*values)]
    found = []
    for i in np.flatnonzero(score(series, rule).n_spikes):
        run_events = events(series[i], rule)
        last_step = int(np.isfinite(series[i]).sum())
        probe_steps = results.probe["step"].values
        shifts = _shifts_of_run(results, labels[i])
        if shifts is None:
            spikes = tuple(Anatomy(labels[i], event, ()) for event in run_events)
            found.append(RunSpikes(spikes, None, probe_steps, rule.burn_in, last_step))
            continue
        sites, moved = shifts["site"].values.tolist(), shifts.transpose("step", "site").values
        deviation = excursions(moved)
        spikes = tuple(
            Anatomy(
                labels[i],
                event,
                movers_before(
                    event.onset, probe_steps, sites, moved, deviation, LEAD, lookback_steps
                ),
            )
            for event in run_events
        )
        outside = np.any(np.nan_to_num(deviation, nan=-np.inf) >= LEAD.k, axis=1)
        judged = probe_steps[np.isfinite(deviation).any(axis=1)]
        first_step = max(rule.burn_in, int(judged[0])) if judged.size else last_step
        known = np.asarray(outside) if judged.size else None
        found.append(RunSpikes(spikes, known, probe_steps, first_step, last_step))
    return found


def study_of(
    runs: Sequence[RunSpikes],
    rule: SpikeRule = PRESETS["olmo_core"],
    lookback_steps: int = LOOKBACK_STEPS,
) -> SpikeStudy:
    """The study of all runs with spikes, however many parts of a record they came from."""
    # Sorted, so that the draws do not depend on the order in which parts were read.
    judged = sorted(
        (run for run in runs if run.outside is not None), key=lambda run: repr(run.spikes[0].run)
    )
    lead = None
    if judged:
        lead = lead_of_shift(
            [[spike.event.onset for spike in run.spikes] for run in judged],
            [run.outside for run in judged if run.outside is not None],
            [run.probe_steps for run in judged],
            [run.first_step for run in judged],
            [run.last_step for run in judged],
            lookback_steps=lookback_steps,
        )
    return SpikeStudy(tuple(spike for run in runs for spike in run.spikes), rule, lead)


def _shifts_of_run(results: Records, labels: dict[str, object]) -> xr.DataArray | None:
    """Mean shift of one run's sites between probes ``(step, site)``; None without any site."""
    if not has_moments(results.probe):
        return None
    # Lists keep the run dimensions, which the shift asks for.
    one = select(results, **{dim: [value] for dim, value in labels.items()})
    mean = one.probe["mean"]
    exists = mean.notnull().any([dim for dim in mean.dims if dim != "site"])
    node = one.probe[["mean", "std"]].isel(site=exists.values)
    if not node.sizes["site"]:
        return None
    return mean_shift(one, node, "previous")["mean_shift"].squeeze(list(labels), drop=True)
