"""Targets set by the record, and steps, examples and seconds to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from fake_records import FakeRecords, blank, diverge

import ici
from ici.analysis.convergence import (
    chosen_target,
    examples_to_target,
    run_steps_to_target,
    seconds_to_target,
    target_from_best,
)
from ici.analysis.digest import digest
from ici.analysis.records import Target
from ici.store.manifest import GroupEntry, Manifest
from ici.store.writer import GroupWriter, Layout, Node, Variable

INF, NAN = np.inf, np.nan


def best(values: list[list[float]]) -> xr.DataArray:
    """Best evaluations ``[lr, seed]``."""
    return xr.DataArray(values, dims=("lr", "seed"))


def test_the_best_settings_median_seed_sets_the_target():
    scores = best([[0.5, 0.6, 0.9], [0.7, 0.71, 0.72], [0.1, 0.2, 0.99]])
    assert target_from_best(scores, "accuracy") == Target("accuracy", 0.71)
    # Of losses the lowest median, 0.2.
    assert target_from_best(scores, "loss") == Target("loss", 0.2)


def test_a_setting_of_which_a_seed_diverged_sets_no_target():
    scores = best([[0.5, 0.6, 0.7], [0.9, 0.9, NAN]])
    assert target_from_best(scores, "accuracy") == Target("accuracy", 0.6)
    assert target_from_best(best([[NAN, 0.9], [0.9, NAN]]), "accuracy") is None


def test_settings_of_every_dimension_count():
    scores = xr.DataArray(np.full((2, 2, 2, 3), 0.5), dims=("norm", "depth", "lr", "seed"))
    scores[1, 0, 1] = [0.8, 0.7, 0.9]
    assert target_from_best(scores, "accuracy") == Target("accuracy", 0.8)
    # Wherever the seeds are stored.
    assert target_from_best(scores.transpose("seed", ...), "accuracy") == Target("accuracy", 0.8)


def test_the_experiments_own_target_goes_first():
    found, source = chosen_target(blank(target=0.8), best([[0.9]]))
    assert found == Target("accuracy", 0.8) and source == "set by the experiment"
    records = blank(target=None)
    found, source = chosen_target(records, best([[0.9]]))
    assert found == Target("accuracy", 0.9) and source.startswith("set by the record")
    assert chosen_target(records) == (None, "none")
    found, source = chosen_target(records, best([[NAN]]))
    assert found is None and "diverged" in source


def learning(task: str = "classification") -> FakeRecords:
    """Scores rise by 0.1 an evaluation, to 0.4 plus a hundredth of the seed at the larger lr."""
    records = blank(target=None)
    records.task = task
    variable = "accuracy" if task == "classification" else "loss"
    scores = records.evaluation[variable]
    step = scores["step"] / 5 * 0.1
    rises = step * (scores["lr"] == 0.1) + scores["seed"] / 100 * (scores["lr"] == 0.1)
    value = rises if variable == "accuracy" else 3.0 - rises
    scores[:] = (value + xr.zeros_like(scores)).transpose(*scores.dims).values
    return records


def test_a_digest_of_a_record_without_target_derives_one():
    found = digest(learning())
    assert found.target is not None and found.target.variable == "accuracy"
    assert found.target.value == pytest.approx(0.41)
    assert found.target_source.startswith("set by the record")
    assert found.runs.attrs["target"] == "41% acc."
    steps = found.runs["steps_to_target"].sel(lr=0.1, norm="none", depth=2)
    np.testing.assert_array_equal(steps, [INF, 20, 20])
    assert np.isinf(found.runs["steps_to_target"].sel(lr=0.01)).all()


def test_a_derived_target_of_a_regression_is_a_loss():
    found = digest(learning("regression"))
    assert found.target is not None and found.target.variable == "loss"
    assert found.target.value == pytest.approx(2.59)
    steps = found.runs["steps_to_target"].sel(lr=0.1, norm="none", depth=2)
    np.testing.assert_array_equal(steps, [INF, 20, 20])


def test_no_target_where_every_setting_lost_a_seed():
    records = learning()
    for norm in ("none", "batch"):
        for lr in (0.01, 0.1):
            diverge(records, 10, norm=norm, lr=lr, seed=1)
    found = digest(records)
    assert found.target is None and "steps_to_target" not in found.runs
    assert found.runs.attrs["target"] is None and "diverged" in found.target_source


def test_examples_are_steps_times_the_batch():
    records = blank()
    steps = xr.DataArray([0.0, 10.0, INF, NAN])
    np.testing.assert_array_equal(examples_to_target(steps, records), [0, 1280, INF, NAN])


def test_records_without_times_have_no_seconds():
    steps = run_steps_to_target(blank(target=0.0))
    assert seconds_to_target(steps, blank()).isnull().all()


def timed(folder: Path, seconds: dict[tuple[str, int], float | None]) -> ici.Results:
    """A record of two runs per group that meet their target at steps 10 and never."""
    experiment = {
        "name": "timed",
        "norm": list(dict.fromkeys(norm for norm, _ in seconds)),
        "depth": list(dict.fromkeys(depth for _, depth in seconds)),
        "lr": [0.1],
        "seed": [0, 1],
        "steps": 20,
        "batch_size": 32,
        "target_accuracy": 0.5,
    }
    manifest = Manifest(experiment, "print", "digest", {})
    manifest.write(folder)
    scores = np.array([[0.1, 0.6, 0.6], [0.1, 0.2, 0.3]], np.float32)
    at = np.array([0, 10, 20])
    for (norm, depth), step_s in seconds.items():
        nodes = {
            "train": Node(np.arange(20), 20, {"loss": Variable()}),
            "reference": Node(at, 1, {}),
            "evaluation": Node(at, 3, {"loss": Variable(), "accuracy": Variable()}),
            "runs": Node(np.array([20]), 1, {"diverged_at": Variable()}),
        }
        layout = Layout({"lr": (0.1,), "seed": (0, 1)}, ("head",), (2,), nodes)
        name = f"norm={norm},depth={depth}"
        writer = GroupWriter(folder, manifest, name, GroupEntry(norm, depth, {}), layout)
        writer.write("train", {"loss": np.ones((2, 20), np.float32)})
        writer.write("evaluation", {"loss": scores, "accuracy": scores})
        writer.write("runs", {"diverged_at": np.full((2, 1), NAN, np.float32)}, first=0)
        writer.entry.run_step_s = step_s
        writer.commit()
    return ici.open(folder)


def test_seconds_are_those_of_the_runs_own_group(tmp_path: Path):
    times = {("none", 2): 0.5, ("batch", 2): 2.0, ("none", 4): None, ("batch", 4): 1.0}
    results = timed(tmp_path, times)
    steps = run_steps_to_target(results)
    found = seconds_to_target(steps, results)
    for (norm, depth), step_s in times.items():
        of_group = found.sel(norm=norm, depth=depth, lr=0.1)
        expected = [NAN, NAN] if step_s is None else [10 * step_s, INF]
        np.testing.assert_array_equal(of_group, expected)
