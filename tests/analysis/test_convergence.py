from __future__ import annotations

import numpy as np
import pytest
from fake_records import blank, diverge

from ici.analysis.convergence import run_steps_to_target, steps_to_target
from ici.analysis.records import Target, still_going, target_of
from ici.errors import InputError

STEPS = [0, 50, 100, 150]


def test_the_first_evaluation_that_meets_the_target():
    assert steps_to_target([0.5, 0.7, 0.8, 0.7], STEPS, 0.8) == 100
    assert steps_to_target([0.5, 0.9, 0.1, 0.9], STEPS, 0.8) == 50
    assert steps_to_target([0.9, 0.1, 0.1, 0.1], STEPS, 0.8) == 0


def test_missed_is_infinite():
    assert steps_to_target([0.5, 0.6, 0.7, 0.79], STEPS, 0.8) == np.inf
    assert steps_to_target([], [], 0.8) == np.inf


def test_lower_can_be_better():
    assert steps_to_target([3.0, 2.0, 1.0, 0.5], STEPS, 1.0, higher_is_better=False) == 100


def test_nan_does_not_meet_a_target():
    assert steps_to_target([np.nan, 0.5, np.nan, 0.9], STEPS, 0.8) == 150
    assert steps_to_target([np.nan] * 4, STEPS, 0.8, higher_is_better=False) == np.inf


def test_many_runs_at_once():
    runs = np.array([[[0, 0, 0, 1], [0, 1, 0, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]]])
    np.testing.assert_array_equal(steps_to_target(runs, STEPS, 1), [[150, 50], [0, np.inf]])


@pytest.mark.parametrize(
    ("steps", "target", "words"),
    [([0, 1], 0.5, r"\(4,\).*\(2,\)"), ([0, 5, 5, 9], 0.5, "increasing"), (STEPS, np.nan, "nan")],
)
def test_bad_input(steps: list[int], target: float, words: str):
    with pytest.raises(InputError, match=words):
        steps_to_target([0.0] * 4, steps, target)


def test_of_a_record():
    records = blank(target=0.8)
    accuracy = records.evaluation["accuracy"]
    accuracy.loc[{"norm": "batch", "lr": 0.1, "step": [10, 15, 20]}] = 0.85
    accuracy.loc[{"norm": "batch", "lr": 0.1, "seed": 1, "step": 5}] = 0.8
    met = run_steps_to_target(records).sel(depth=2)
    np.testing.assert_array_equal(met.sel(norm="batch", lr=0.1), [10, 5, 10])
    assert np.isinf(met.sel(norm="none")).all()
    assert (run_steps_to_target(records, Target("accuracy", 0.0)) == 0).all()


def test_a_diverged_run_missed_what_it_had_not_met():
    records = blank()
    run = {"norm": "none", "lr": 0.1}
    records.evaluation["accuracy"].loc[run | {"seed": 0, "step": [10, 15]}] = 0.9
    diverge(records, 12, **run, seed=0)
    diverge(records, 8, **run, seed=1)
    met = run_steps_to_target(records).sel(run).sel(depth=2)
    np.testing.assert_array_equal(met, [10, np.inf, np.inf])


def test_the_evaluation_before_the_refused_update_counts():
    records = blank()
    run = {"norm": "none", "lr": 0.1, "seed": 0}
    records.evaluation["accuracy"].loc[run | {"step": 10}] = 0.9
    diverge(records, 10, **run)
    assert run_steps_to_target(records).sel(run).item() == 10


def test_a_run_still_going_has_not_missed():
    records = blank()
    records.train = records.train.isel(step=slice(0, 10))
    records.evaluation = records.evaluation.sel(step=[0, 5, 10])
    records.evaluation["accuracy"].loc[{"norm": "none", "step": 5}] = 0.9
    diverge(records, 3, norm="batch", lr=0.1, seed=2)
    met = run_steps_to_target(records).sel(depth=2)
    assert (met.sel(norm="none") == 5).all()
    np.testing.assert_array_equal(met.sel(norm="batch", lr=0.1), [np.nan, np.nan, np.inf])


def test_a_record_without_target():
    with pytest.raises(InputError, match="target_accuracy"):
        run_steps_to_target(blank(target=None))


def test_a_target_may_be_a_loss():
    records = blank(target=None)
    records.experiment["target_loss"] = 0.5
    loss = records.evaluation["loss"]
    loss.loc[{"norm": "batch", "lr": 0.1, "step": [10, 15, 20]}] = 0.4
    loss.loc[{"norm": "batch", "lr": 0.01, "step": 20}] = 0.5
    met = run_steps_to_target(records).sel(depth=2, seed=0)
    assert float(met.sel(norm="batch", lr=0.1)) == 10
    assert float(met.sel(norm="batch", lr=0.01)) == 20
    assert np.isinf(met.sel(norm="none")).all()
    assert str(target_of(records)) == "val. loss 0.5"


def test_a_run_that_met_its_loss_and_stopped_is_not_going_on():
    records = blank(target=None)
    records.experiment |= {"target_loss": 0.5, "stop_at_target": True}
    run = {"norm": "batch", "lr": 0.1, "seed": 0, "depth": 2}
    records.train["loss"].loc[run | {"step": slice(10, None)}] = np.nan
    assert bool(still_going(records).sel(run))
    records.evaluation["loss"].loc[run | {"step": 10}] = 0.3
    assert not bool(still_going(records).sel(run))
