from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from fake_records import FakeRecords, blank, diverge

from ici.analysis.records import select, settings, short, still_going, training_loss
from ici.analysis.summary import (
    final_loss,
    final_shift,
    no_progress,
    over_seeds,
    run_spikes,
    summarise,
)
from ici.errors import InputError
from ici.measure.spikes import PRESETS, spike_rule

NONE_01 = {"norm": "none", "lr": 0.1}


def cell(summary: xr.Dataset, name: str, **run) -> list[float]:
    return summary[name].sel(run or NONE_01).isel(depth=0).values.tolist()


def test_over_seeds_leaves_out_what_is_missing():
    values = xr.DataArray(
        [[3.0, 1.0, 2.0], [np.nan, 5.0, 7.0], [np.nan] * 3, [1.0, np.inf, np.inf]],
        dims=("lr", "seed"),
    )
    expected = [[2, 1, 3], [6, 5, 7], [np.nan] * 3, [np.inf, 1, np.inf]]
    np.testing.assert_array_equal(over_seeds(values), expected)


def test_final_loss_is_the_mean_of_the_last_twentieth():
    records = blank(steps=60)
    records.train["loss"][:] = np.arange(60.0)
    assert (final_loss(records) == (57 + 58 + 59) / 3).all()


def test_diverged_seeds_are_counted_and_in_no_median():
    records = blank(steps=60)
    for seed, loss in ((0, 0.2), (1, 0.4), (2, 1e9)):
        records.train["loss"].loc[NONE_01 | {"seed": seed}] = loss
    records.evaluation["accuracy"].loc[NONE_01 | {"seed": 2}] = 1.0
    records.reference["mean"].loc[NONE_01 | {"seed": 2, "step": 10}] = 1e9
    diverge(records, 40, last_loss=3e38, **NONE_01, seed=2)
    summary = summarise(records)
    assert summary["n_diverged"].sel(NONE_01).item() == 1
    assert int(summary["n_diverged"].sum()) == 1
    # float32 losses
    np.testing.assert_allclose(cell(summary, "final_loss"), [0.3, 0.2, 0.4], rtol=1e-6)
    assert cell(summary, "validation_accuracy") == [0, 0, 0]
    assert cell(summary, "shift") == [0, 0, 0]


def test_all_seeds_diverged():
    records = blank(steps=200)
    for seed in (0, 1, 2):
        diverge(records, 5, **NONE_01, seed=seed)
    summary = summarise(records)
    assert summary["n_diverged"].sel(NONE_01).item() == 3
    for name in ("final_loss", "validation_accuracy", "shift"):
        assert np.isnan(cell(summary, name)).all()
    assert np.isinf(cell(summary, "steps_to_target")).all()
    assert np.isnan(summary["spikes"].sel(NONE_01).item())


def test_steps_to_target_takes_every_seed():
    records = blank()
    accuracy = records.evaluation["accuracy"]
    for seed, step in ((0, 5), (1, 15)):
        accuracy.loc[NONE_01 | {"seed": seed, "step": step}] = 0.9
    assert cell(summarise(records), "steps_to_target") == [15, 5, np.inf]
    accuracy.loc[NONE_01 | {"seed": 1}] = 0.0
    assert cell(summarise(records), "steps_to_target") == [np.inf, 5, np.inf]
    assert "steps_to_target" not in summarise(blank(target=None))


def test_a_run_still_going_leaves_open_what_it_may_change():
    records = blank(steps=40)
    for node in ("train", "evaluation", "reference", "probe"):
        dataset = getattr(records, node)
        setattr(records, node, dataset.sel(step=slice(0, 20)))
    accuracy = records.evaluation["accuracy"]
    accuracy.loc[NONE_01 | {"seed": [0, 1], "step": 20}] = 0.9
    accuracy.loc[{"norm": "batch", "lr": 0.1, "seed": 0, "step": 20}] = 0.9
    summary = summarise(records)
    assert (summary["n_going"] == 3).all()
    np.testing.assert_array_equal(cell(summary, "steps_to_target"), [20, 20, np.nan])
    batch = cell(summary, "steps_to_target", norm="batch", lr=0.1)
    np.testing.assert_array_equal(batch, [np.nan, 20, np.nan])


def test_a_run_that_stopped_at_its_target_has_ended():
    records = blank()
    records.experiment["stop_at_target"] = True
    run = NONE_01 | {"seed": 0}
    records.evaluation["accuracy"].loc[run | {"step": 10}] = 0.9
    records.train["loss"].loc[run | {"step": np.arange(11)}] = 0.25
    records.train["loss"].loc[run | {"step": np.arange(11, 20)}] = np.nan
    records.evaluation["accuracy"].loc[run | {"step": [15, 20]}] = np.nan
    assert not still_going(records).any()
    assert final_loss(records).sel(run).item() == 0.25
    assert cell(summarise(records), "validation_accuracy")[2] == np.float32(0.9)
    records.experiment["stop_at_target"] = False
    assert int(still_going(records).sum()) == 1


def test_shift_is_that_of_the_last_measurement_at_the_deepest_site():
    records = blank()
    mean = records.reference["mean"]
    mean.loc[NONE_01 | {"site": "head", "step": 10}] = 9.0
    for seed, value in ((0, 1.0), (1, 2.0), (2, 4.0)):
        mean.loc[NONE_01 | {"seed": seed, "site": "head", "step": 20}] = value
    mean.loc[NONE_01 | {"site": "blocks/0/linear", "step": 20}] = 100.0
    summary = summarise(records)
    assert summary.attrs["deepest_site"] == "head"
    assert cell(summary, "shift") == [2, 1, 4]
    other = final_shift(records, "blocks/0/linear")["mean_shift"].sel(NONE_01)
    assert (other == 100).all()


def test_seeds_whose_units_are_all_dead_are_counted():
    records = blank()
    records.reference["mean"].loc[NONE_01 | {"step": 20}] = 3.0
    records.reference["std"].loc[NONE_01 | {"seed": 1, "step": 20, "site": "head"}] = 0.0
    summary = summarise(records)
    assert summary["n_seeds_shift"].sel(NONE_01).item() == 2
    assert summary["n_seeds_dead_features"].sel(NONE_01).item() == 3
    assert summary["n_dead"].sel(NONE_01).item() == 1 and int(summary["n_dead"].sum()) == 1
    assert cell(summary, "shift") == [3, 3, 3]
    assert cell(summary, "dead_features") == [0, 0, 4]
    assert summary.attrs["n_features"] == 4


def test_no_progress_is_told_from_divergence():
    records = blank()
    loss = records.train["loss"]
    loss[:] = np.linspace(1, 0.5, 20)
    loss.loc[NONE_01 | {"seed": 0}] = 0.7
    loss.loc[NONE_01 | {"seed": 1}] = np.linspace(1, 2, 20)
    diverge(records, 10, **NONE_01, seed=2)
    assert no_progress(records).sel(NONE_01).isel(depth=0).values.tolist() == [True, True, False]
    summary = summarise(records)
    assert int(summary["n_no_progress"].sum()) == 2 and int(summary["n_diverged"].sum()) == 1


def test_spikes_are_events_of_all_seeds():
    records = spiking()
    summary = summarise(records)
    assert summary["spikes"].sel(NONE_01).item() == 3
    assert summary["spikes"].sel(norm="batch", lr=0.1).item() == 0
    assert PRESETS["olmo_core"].describe() == summary.attrs["spike_rule"]
    two = run_spikes(records, spike_rule("olmo_core", window=16)).sel(NONE_01).isel(depth=0)
    assert two.values.tolist() == [2, 1, 0]


def test_the_diverging_step_is_no_spike():
    records = spiking()
    diverge(records, 220, last_loss=1e6, norm="batch", lr=0.1, seed=0)
    assert summarise(records)["spikes"].sel(norm="batch", lr=0.1).item() == 0
    loss = training_loss(records).sel(norm="batch", lr=0.1, seed=0).isel(depth=0)
    assert loss.sel(step=219).notnull() and loss.sel(step=220).isnull()


def test_a_run_too_short_to_judge_has_no_spike_count():
    records = blank(steps=100)
    assert np.isnan(summarise(records)["spikes"]).all()


def spiking() -> FakeRecords:
    records = blank(steps=400)
    loss = records.train["loss"]
    loss[:] = 1.0 + 0.1 * (np.arange(400) % 2)
    for seed, steps in ((0, [150, 350]), (1, [300])):
        loss.loc[NONE_01 | {"seed": seed, "step": steps}] = 20.0
    return records


def test_settings_are_every_combination_of_what_is_not_compared():
    records = blank(depths=(2, 5), extra={"weight_decay": (0.0, 0.1)})
    assert settings(records) == [
        {"depth": depth, "weight_decay": decay} for depth in (2, 5) for decay in (0.0, 0.1)
    ]
    part = select(records, depth=5, weight_decay=0.1)
    assert settings(part) == [{}]
    assert set(part.runs["diverged_at"].dims) == {"norm", "lr", "seed"}
    summary = summarise(records)
    assert summary["final_loss"].dims == ("norm", "depth", "lr", "weight_decay", "over_seeds")
    assert summarise(part)["final_loss"].dims == ("norm", "lr", "over_seeds")


def test_settings_are_summarised_apart():
    records = blank(extra={"weight_decay": (0.0, 0.1)})
    records.train["loss"].loc[{"weight_decay": 0.1}] = 7.0
    losses = summarise(records)["final_loss"]
    assert (losses.sel(weight_decay=0.0) == 1).all() and (losses.sel(weight_decay=0.1) == 7).all()


@pytest.mark.parametrize(
    ("labels", "words"), [({"lr": 0.5}, r"0\.5.*0\.01, 0\.1"), ({"colour": 1}, "colour.*norm")]
)
def test_selecting_what_is_not_there(labels: dict, words: str):
    with pytest.raises(InputError, match=words):
        select(blank(), **labels)


def test_nothing_recorded_yet():
    records = blank()
    records.train = records.train.isel(step=slice(0, 0))
    with pytest.raises(InputError, match="no train step yet"):
        summarise(records)


def test_short_labels():
    values = [0.003, 0.0003, 3.16e-4, 1e-5, 0.1, 1.0, 0.0, 10, "batch"]
    expected = ["0.003", "3e-4", "3.16e-4", "1e-5", "0.1", "1", "0", "10", "batch"]
    assert [short(v) for v in values] == expected
    # Decay rates close to 1, each with its own label.
    rates = [0.9, 0.95, 0.999, 0.9995, 0.9999, 1.0]
    assert [short(v) for v in rates] == ["0.9", "0.95", "0.999", "0.9995", "0.9999", "1"]


def test_what_predicts_no_classes_is_judged_by_its_loss():
    records = blank(target=None)
    records.task = "language_model"
    records.evaluation["loss"].loc[{"norm": "batch", "step": 20}] = 0.25
    assert cell(summarise(records), "validation_loss") == [1.0, 1.0, 1.0]
    at = summarise(records)["validation_loss"].sel(norm="batch", over_seeds="median")
    assert (at == 0.25).all()
    records.task = "regression"
    records.evaluation = records.evaluation.drop_vars("accuracy")
    summary = summarise(records)
    assert "validation_accuracy" not in summary and summary.attrs["target"] is None
