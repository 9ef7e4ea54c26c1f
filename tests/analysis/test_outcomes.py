from __future__ import annotations

import numpy as np
import pytest
from fake_records import blank, diverge

from ici.analysis.digest import digest
from ici.analysis.outcomes import (
    CAUSES,
    OUTCOMES,
    divergence_cause,
    relative_loss_step,
    run_divergence_cause,
    run_outcome,
)
from ici.analysis.summary import run_table
from ici.errors import InputError
from ici.measure.spikes import spike_rule

NONE, NOT_FINITE, RATIO, GRADIENT = CAUSES
INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("last", "cause"),
    [
        (INF, NOT_FINITE),
        (-INF, NOT_FINITE),
        (NAN, NOT_FINITE),
        (2001.0, RATIO),
        (-2001.0, RATIO),
        # As the engine does, which ends a run above the ratio and not at it.
        (2000.0, GRADIENT),
        (1.0, GRADIENT),
    ],
)
def test_the_cause_by_the_loss_of_the_refused_step(last: float, cause: str):
    losses = [2.0, 1.0, last, NAN, NAN]
    assert divergence_cause(losses, 2.0) == cause
    assert divergence_cause(losses, NAN) == NONE


def test_another_ratio():
    assert divergence_cause([2.0, 21.0], 1.0, ratio=10) == RATIO
    assert divergence_cause([2.0, 19.0], 1.0, ratio=10) == GRADIENT


def test_a_run_that_diverged_at_once():
    assert divergence_cause([INF, NAN], 0.0) == NOT_FINITE
    # Its first loss is no multiple of itself.
    assert divergence_cause([2.0, NAN], 0.0) == GRADIENT


def test_causes_of_many_runs_at_once():
    losses = np.array([[[1.0, 1.0], [1.0, INF]], [[1.0, 5e3], [NAN, NAN]]])
    at = np.array([[NAN, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(
        divergence_cause(losses, at), [[NONE, NOT_FINITE], [RATIO, NOT_FINITE]]
    )


def test_causes_of_a_record_by_label():
    records = blank()
    run = {"norm": "none", "lr": 0.1}
    diverge(records, 5, np.inf, **run, seed=0)
    diverge(records, 0, 1.0, **run, seed=1)
    diverge(records, 7, 500.0, **run, seed=2)
    causes = run_divergence_cause(records).sel(depth=2)
    assert causes.sel(run).values.tolist() == [NOT_FINITE, GRADIENT, GRADIENT]
    assert (causes.sel(norm="batch") == NONE).all()
    records.experiment["divergence_ratio"] = 100.0
    assert run_divergence_cause(records).sel(run).values[..., 2].item() == RATIO


def test_the_record_need_not_be_in_the_order_of_its_runs():
    records = blank()
    diverge(records, 5, np.inf, norm="none", lr=0.1, seed=2)
    records.train = records.train.transpose("step", "seed", "lr", "depth", "norm")
    causes = run_divergence_cause(records)
    assert causes.dims == ("norm", "depth", "lr", "seed")
    assert int((causes != NONE).sum()) == 1
    assert causes.sel(norm="none", depth=2, lr=0.1, seed=2).item() == NOT_FINITE


def test_relative_loss_step():
    np.testing.assert_allclose(
        relative_loss_step([2.0, 0.5, NAN], [3.0, INF, 1.0]), [1.5, INF, NAN]
    )
    for bad in (0.0, -1.0):
        with pytest.raises(InputError, match="wanted losses > 0"):
            relative_loss_step([1.0, bad], [1.0, 1.0])


def outcomes_of(change) -> str:
    """What a run of 20 steps gets after `change(records, run)`."""
    records = blank(norms=("none",), lrs=(0.1,), seeds=(0,), target=0.8)
    loss = records.train["loss"]
    loss[:] = np.linspace(1.0, 0.5, 20)
    change(records, {"norm": "none", "depth": 2, "lr": 0.1, "seed": 0})
    table = run_table(records, spike_rule(None, window=4, k=20.0))
    return run_outcome(table).item()


def reach(records, run) -> None:
    records.evaluation["accuracy"].loc[run | {"step": 15}] = 0.9


def spike(records, run) -> None:
    records.train["loss"].loc[run | {"step": 9}] = 9.0


def stay(records, run) -> None:
    records.train["loss"].loc[run | {"step": slice(10, None)}] = 1.0


def go_on(records, run) -> None:
    records.train["loss"].loc[run | {"step": slice(15, None)}] = np.nan


def end(records, run) -> None:
    diverge(records, 18, **run)


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ([], "trained"),
        ([reach], "reached target"),
        ([spike], "spiked"),
        ([reach, spike], "spiked"),
        ([stay], "no progress"),
        ([spike, stay], "no progress"),
        ([go_on], "still going"),
        ([reach, go_on], "still going"),
        ([stay, go_on], "still going"),
        ([end], "diverged"),
        ([reach, spike, end], "diverged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(f.__name__ for f in value),
)
def test_the_worst_that_applies(changes, outcome: str):
    def change(records, run) -> None:
        for each in changes:
            each(records, run)

    assert outcomes_of(change) == outcome and outcome in OUTCOMES


def test_without_a_target_nothing_is_reached():
    records = blank(target=None)
    records.train["loss"][:] = np.linspace(1.0, 0.5, 20)
    assert (run_outcome(run_table(records)) == "trained").all()


def test_a_digest_tells_cause_and_outcome():
    records = blank()
    diverge(records, 5, norm="none", lr=0.1, seed=1)
    runs = digest(records).runs.sel(norm="none", depth=2, lr=0.1)
    assert runs["outcome"].values.tolist() == ["no progress", "diverged", "no progress"]
    assert runs["cause"].values.tolist() == ["", NOT_FINITE, ""]
