from __future__ import annotations

import math

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge
from scipy import stats

from ici.analysis.anatomy import (
    LEAD,
    dissect_spikes,
    excursions,
    movers_before,
    spikes_of,
    study_of,
)
from ici.measure.spikes import SpikeRule, spike_rule

RULE = spike_rule(None, window=16, k=6.0)
STEPS, EVERY = 240, 10
SITES = ("data", "first", "second", "third")


def usual_shifts(n_probes: int = 24, n_sites: int = 3, seed: int = 0) -> np.ndarray:
    """Shifts that vary by a tenth about 0.1 ``[probe, site]``; there is none at the first probe."""
    logs = np.random.default_rng(seed).uniform(-0.1, 0.1, (n_probes, n_sites))
    shifts = 0.1 * np.exp(logs)
    shifts[0] = np.nan
    return shifts


def test_excursions_by_hand():
    shifts = usual_shifts()
    found = excursions(shifts)
    # The first probe has no shift, and six are needed before one is judged.
    assert np.isnan(found[:7]).all() and np.isfinite(found[7:]).all()
    logs = np.log(shifts)
    for probe in (7, 12, 23):
        before = logs[max(1, probe - 16) : probe]
        expected = (logs[probe] - before.mean(axis=0)) / before.std(axis=0)
        np.testing.assert_allclose(found[probe], expected)


def test_a_planted_excursion_is_found_where_it_is():
    shifts = usual_shifts()
    shifts[15, 1] = 10.0
    outside = excursions(shifts) >= LEAD.k
    np.testing.assert_array_equal(np.argwhere(outside), [[15, 1]])


def test_a_site_that_stands_still_is_not_judged():
    shifts = usual_shifts()
    shifts[:, 0] = 0.0
    found = excursions(shifts)
    assert np.isnan(found[:, 0]).all() and np.isfinite(found[7:, 1:]).all()


def test_pauses_and_the_end_of_a_run_are_left_out():
    # A site that pauses is judged by the probes at which it moved.
    shifts = usual_shifts()
    paused = np.insert(shifts, [12, 12, 12], 0.0, axis=0)
    np.testing.assert_allclose(np.delete(excursions(paused), [12, 13, 14], 0), excursions(shifts))
    ended = shifts.copy()
    ended[18:] = np.nan
    found = excursions(ended)
    assert np.isnan(found[18:]).all()
    np.testing.assert_array_equal(found[:18], excursions(shifts)[:18])


@pytest.mark.parametrize(("above", "outside"), [(1e-9, True), (-1e-9, False)])
def test_the_boundary_of_the_band_counts_as_outside(above: float, outside: bool):
    # Logarithms of the window alternate: mean 0, standard deviation 1.
    logs = np.tile([1.0, -1.0], 8)
    shifts = np.exp(np.concatenate([logs, [LEAD.k * (1 + above)]]))[:, None]
    deviation = excursions(shifts)
    moved = movers_before(160, np.arange(17) * 10, ["only"], shifts, deviation)
    assert bool(moved) == outside


def test_movers_by_hand():
    steps, shifts = np.arange(24) * 10, usual_shifts()
    shifts[17, 2] = 5.0
    shifts[18, 1] = 4.0
    shifts[19, 1] = 40.0
    first, second = movers_before(195, steps, ["a", "b", "c"], shifts, excursions(shifts))
    assert (first.site, first.step, second.site, second.step) == ("c", 170, "b", 180)
    # The largest shift up to the onset, over the geometric mean of the probes before.
    assert (first.shift, second.shift) == (5.0, 40.0)
    assert second.ratio == pytest.approx(40.0 / stats.gmean(shifts[2:18, 1]))
    assert second.deviation == pytest.approx(excursions(shifts)[18, 1])


def test_of_one_step_the_furthest_is_first():
    steps, shifts = np.arange(24) * 10, usual_shifts()
    shifts[18] = 2.0, 9.0, 4.0
    deviation = excursions(shifts)
    moved = movers_before(180, steps, ["a", "b", "c"], shifts, deviation)
    assert [each.deviation for each in moved] == sorted(deviation[18], reverse=True)


@pytest.mark.parametrize(("onset", "found"), [(149, False), (150, True), (200, True), (201, False)])
def test_the_lookback_holds_both_of_its_ends(onset: int, found: bool):
    steps, shifts = np.arange(24) * 10, usual_shifts()
    shifts[15, 0] = 10.0
    moved = movers_before(onset, steps, ["a", "b", "c"], shifts, excursions(shifts))
    assert bool(moved) == found


def test_what_a_site_usually_does_is_known_after_a_long_pause():
    # More probes without movement than the band remembers: the band is that of those before.
    shifts = np.concatenate([usual_shifts(12, 1), np.zeros((LEAD.window + 4, 1)), [[10.0]]])
    steps = np.arange(len(shifts)) * 10
    (moved,) = movers_before(int(steps[-1]), steps, ["only"], shifts, excursions(shifts))
    assert moved.ratio == pytest.approx(10.0 / stats.gmean(shifts[1:12, 0]))


def test_a_shift_that_is_not_recorded_is_not_the_largest():
    shifts = usual_shifts(24, 1)
    shifts[18], shifts[19] = 10.0, np.nan
    (moved,) = movers_before(195, np.arange(24) * 10, ["a"], shifts, excursions(shifts))
    assert moved.shift == 10.0


# Records.


def moving(**more) -> FakeRecords:
    """Every site but the data moves by a little between probes; losses are noisy."""
    settings = {"norms": ("none",), "lrs": (0.1,), "seeds": (0, 1)} | more
    records = blank(steps=STEPS, sites=SITES, probe_every=EVERY, reference_every=60, **settings)
    rng = np.random.default_rng(0)
    loss, mean = records.train["loss"], records.probe["mean"]
    loss[:] = rng.uniform(0.9, 1.1, loss.shape)
    moved = np.where(np.array(SITES) == "data", 0.0, 0.1)[:, None]
    # Back and forth, so that the step at every probe is as wanted.
    signs = (-1.0) ** np.arange(mean.sizes["step"])[:, None, None]
    mean[:] = moved * signs * np.exp(rng.uniform(-0.1, 0.1, (*mean.shape[:-1], 1)))
    return records


def plant(records: FakeRecords, onset: int, lead: dict[str, int], **run) -> None:
    records.train["loss"].loc[{**run, "step": [onset, onset + 1]}] = 20.0
    for site, step in lead.items():
        records.probe["mean"].loc[{**run, "site": site, "step": slice(step, None)}] += 50.0


def test_a_spike_of_a_record_and_what_led_it():
    records = moving()
    plant(records, 195, {"second": 170, "first": 180}, seed=1)
    study = dissect_spikes(records, RULE)
    (spike,) = study.spikes
    assert spike.run == {"norm": "none", "depth": 2, "lr": 0.1, "seed": 1}
    assert (spike.event.onset, spike.event.end) == (195, 197)
    assert [(each.site, each.step) for each in spike.movers] == [("second", 170), ("first", 180)]
    assert spike.lead_steps == 25
    # The step is 50 standard deviations, give or take the usual fifth.
    assert [each.shift for each in spike.movers] == pytest.approx([50, 50], abs=0.3)
    assert study.lead is not None and (study.lead.n_events, study.lead.n_led) == (1, 1)
    assert study.rule == RULE


def test_each_run_has_its_own_spikes_and_movers():
    records = moving(norms=("none", "batch"), lrs=(0.01, 0.1))
    plant(records, 150, {"third": 140}, norm="none", lr=0.1, seed=0)
    plant(records, 200, {}, norm="batch", lr=0.01, seed=1)
    found = {
        (s.run["norm"], s.run["lr"], s.run["seed"]): [each.site for each in s.movers]
        for s in dissect_spikes(records, RULE).spikes
    }
    assert found == {("none", 0.1, 0): ["third"], ("batch", 0.01, 1): []}


def test_runs_of_different_lengths():
    records = moving()
    plant(records, 150, {"third": 140}, seed=0)
    plant(records, 150, {"third": 140}, seed=1)
    diverge(records, 170, norm="none", lr=0.1, seed=1)
    found = {str(run.spikes[0].run["seed"]): run for run in spikes_of(records, RULE)}
    assert (found["0"].last_step, found["1"].last_step) == (240, 170)
    for run in found.values():
        assert run.outside is not None
        assert np.flatnonzero(run.outside).tolist() == [14]
        assert [each.site for each in run.spikes[0].movers] == ["third"]


def test_a_spike_at_the_last_step():
    records = moving()
    records.train["loss"].loc[{"seed": 0, "step": STEPS - 1}] = 20.0
    plant(records, 0, {"first": 230}, seed=0)
    records.train["loss"].loc[{"seed": 0, "step": [0, 1]}] = 1.0
    study = dissect_spikes(records, RULE)
    (spike,) = study.spikes
    assert spike.event.onset == STEPS - 1 and spike.event.recovery_steps == math.inf
    assert spike.lead_steps == 9
    assert study.lead is not None and study.lead.n_led == 1


def test_a_spike_before_the_probes_have_a_band_is_not_judged():
    records = moving()
    # Spikes are judged from step 16 on, sites from their seventh shift on, which is step 70.
    plant(records, 40, {}, seed=0)
    plant(records, 195, {"first": 190}, seed=0)
    study = dissect_spikes(records, RULE)
    assert [spike.event.onset for spike in study.spikes] == [40, 195]
    assert study.lead is not None and (study.lead.n_events, study.lead.n_led) == (1, 1)
    (run,) = spikes_of(records, RULE)
    assert run.first_step == 70


def test_no_spikes():
    study = dissect_spikes(moving(), RULE)
    assert study.spikes == () and study.lead is None


@pytest.mark.parametrize("what", ["no moments", "no probe", "data only"])
def test_spikes_of_a_record_whose_inputs_nobody_watched(what: str):
    records = moving()
    plant(records, 195, {"second": 170}, seed=1)
    if what == "no moments":
        records.probe = records.probe.drop_vars(["mean", "std"])
    elif what == "no probe":
        records.probe = records.probe.isel(step=slice(0, 0))
    else:
        records.probe = records.probe.sel(site=["data"])
    study = dissect_spikes(records, RULE)
    (spike,) = study.spikes
    assert spike.movers == () and math.isnan(spike.lead_steps)
    assert study.lead is None


def test_a_series_shorter_than_the_window_has_no_spikes():
    records = moving()
    plant(records, 100, {}, seed=0)
    assert dissect_spikes(records, SpikeRule("long", 500, 6.0, False, 500)).spikes == ()


def test_sites_that_a_norm_does_not_have_do_not_matter():
    records = moving(norms=("none", "batch"))
    records.probe["mean"].loc[{"norm": "none", "site": "second"}] = np.nan
    plant(records, 195, {"third": 180}, norm="none", seed=0)
    (spike,) = dissect_spikes(records, RULE).spikes
    assert [each.site for each in spike.movers] == ["third"]


def test_the_study_does_not_depend_on_how_runs_were_read():
    records = moving(norms=("none", "batch"))
    plant(records, 150, {"third": 140}, norm="none", seed=0)
    plant(records, 225, {"first": 190}, norm="batch", seed=1)
    whole = spikes_of(records, RULE)
    study = study_of(whole, RULE)
    assert study == dissect_spikes(records, RULE)
    assert study_of(whole[::-1], RULE).lead == study.lead
    assert study.lead is not None and study.lead.n_events == 2
