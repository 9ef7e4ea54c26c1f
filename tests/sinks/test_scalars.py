"""What sinks are told: names, steps and values."""

from __future__ import annotations

import numpy as np
import pytest

import ici
from ici.measure.on_host import mean_shift_on_host
from ici.sinks.scalars import Rows, Scalars, taken
from ici.sinks.sink import about


def experiment(**changes):
    settings = dict(
        data="synthetic", norm=("none", "batch"), depth=(1,), lr=(0.01, 0.1), seed=(0, 1)
    )
    return ici.Experiment(**(settings | {"steps": 40} | changes))


def scalars(tmp_path, **changes):
    return Scalars(about(experiment(**changes), tmp_path))


def train(steps, loss):
    return Rows("batch", 1, "train", np.asarray(steps), {"loss": np.asarray(loss, np.float32)})


def test_series_are_named_by_what_was_swept(tmp_path):
    names = [s.name for s in about(experiment(), tmp_path).series]
    assert len(set(names)) == len(names) == 8
    assert names[0] == "norm=none/lr=0.01/seed=0" and names[-1] == "norm=batch/lr=0.1/seed=1"
    swept = experiment(depth=(1, 2), weight_decay=(0.0, 0.1), norm=("group:groups=2",), lr=(3e-4,))
    names = [s.name for s in about(swept, tmp_path).series]
    assert len(set(names)) == 8
    assert names[0] == "norm=group+groups=2/depth=1/lr=0.0003/seed=0/weight_decay=0"


def test_lanes_are_those_of_the_experiment(tmp_path):
    made = experiment(weight_decay=(0.0, 0.1))
    for series in about(made, tmp_path).groups["none", 1]:
        (lane,) = series.lanes
        spec = made.lanes[lane]
        assert {"lr": spec.lr, "seed": spec.seed, "weight_decay": spec.weight_decay}.items() <= (
            series.settings.items()
        )


def test_many_runs_become_medians_of_norm_depth_and_lr(tmp_path):
    facts = about(experiment(seed=tuple(range(17))), tmp_path)
    assert facts.medians and [s.name for s in facts.groups["batch", 1]] == [
        "norm=batch/lr=0.01",
        "norm=batch/lr=0.1",
    ]
    assert not about(experiment(seed=tuple(range(16))), tmp_path).medians  # 64 runs
    loss = np.arange(34.0)[:, None]
    loss[20] = np.nan  # a run that has ended has no say
    found = list(Scalars(facts).of(train([3], loss)))
    assert found == [
        ("norm=batch/lr=0.01", 3, {"loss": 8.0}),
        ("norm=batch/lr=0.1", 3, {"loss": 25.5}),
    ]


def test_train_rows_become_means_at_the_last_step_of_each_bin(tmp_path):
    turned = scalars(tmp_path, steps=250)  # 3 steps a point, for at most 100 points
    loss = np.tile(np.arange(10.0), (4, 1))
    loss[1] = np.nan
    loss[2, 4:] = np.nan
    loss[3, 1] = np.inf
    by_series = {}
    for series, step, values in turned.of(train(np.arange(10) + 50, loss)):
        by_series.setdefault(series, []).append((step, values["loss"]))
    assert by_series == {
        "norm=batch/lr=0.01/seed=0": [(52, 1.0), (55, 4.0), (58, 7.0), (59, 9.0)],
        "norm=batch/lr=0.1/seed=0": [(52, 1.0), (55, 3.0)],
        "norm=batch/lr=0.1/seed=1": [(52, 1.0), (55, 4.0), (58, 7.0), (59, 9.0)],
    }


def test_a_divergence_is_told_once_at_its_step(tmp_path):
    turned = scalars(tmp_path)

    def runs(step, *diverged_at):
        values = np.array(diverged_at, np.float32)[:, None]
        return list(turned.of(Rows("none", 1, "runs", np.array([step]), {"diverged_at": values})))

    nan = np.nan
    assert runs(10, nan, nan, nan, nan) == []
    assert runs(20, nan, 12, nan, nan) == [("norm=none/lr=0.01/seed=1", 12, {"diverged": 1.0})]
    assert runs(30, nan, 12, 25, nan) == [("norm=none/lr=0.1/seed=0", 25, {"diverged": 1.0})]
    assert runs(40, nan, 12, 25, nan) == []


def snapshots(rng, n_lanes=4, n_sites=3, width=5):
    mean, std = rng.normal(size=(2, n_lanes, 1, n_sites, width)).astype(np.float32)
    std = np.abs(std) + 0.1
    mean[:, :, 0, 3:], std[:, :, 0, 3:] = np.nan, np.nan  # a narrower site
    return {"mean": mean, "std": std}


def test_shifts_are_those_of_the_shift_measure(tmp_path):
    turned, rng = scalars(tmp_path), np.random.default_rng(0)
    before, now = snapshots(rng), snapshots(rng)
    now["std"][:, :, 1, 0] = 0.0  # dead
    for name in now:
        now[name][2] = np.nan  # ended
    assert turned.of(Rows("none", 1, "reference", np.array([0]), before)) is not None
    list(turned.of(Rows("none", 1, "reference", np.array([0]), before)))
    found = {s: v for s, _, v in turned.of(Rows("none", 1, "reference", np.array([20]), now))}
    assert len(found) == 3
    for lane, series in enumerate(turned.about.groups["none", 1]):
        if lane == 2:
            continue
        per_site = []
        for site, width in enumerate((3, 5, 5)):
            a, b = (
                ici.Moments(
                    np.ones(()),  # pyright: ignore
                    part["mean"][lane, 0, site, :width],
                    part["std"][lane, 0, site, :width] ** 2,
                )
                for part in (before, now)
            )
            per_site.append(float(ici.shift(a, b).aggregate()["mean_shift"]))
        wanted = {"deepest": per_site[-1], "median": np.median(per_site), "largest": max(per_site)}
        for name, value in wanted.items():
            # The measure computes in float32.
            assert found[series.name][f"shift/{name}"] == pytest.approx(value, rel=1e-5)


def test_no_shift_without_the_first_measurement(tmp_path):
    turned, rng = scalars(tmp_path), np.random.default_rng(0)
    assert not list(turned.of(Rows("none", 1, "reference", np.array([20]), snapshots(rng))))
    # That of another group is not taken for it.
    list(turned.of(Rows("none", 1, "reference", np.array([0]), snapshots(rng))))
    assert not list(turned.of(Rows("batch", 1, "reference", np.array([20]), snapshots(rng))))


def test_a_shift_of_nothing_is_zero_and_of_the_unmeasured_nan():
    mean, std = np.array([[1.0, 2.0, np.nan]]), np.array([[1.0, 0.5, np.nan]])
    assert mean_shift_on_host(mean, std, mean, std) == 0.0
    assert np.isnan(mean_shift_on_host(mean, std, mean * np.nan, std * np.nan))
    assert np.isnan(mean_shift_on_host(mean, std * 0, mean, std * 0))
    # A feature without spread before is left out.
    assert mean_shift_on_host(*np.array([[0, 0], [0, 1], [5, 2], [1, 1]])) == 2.0
    # One spread to the side; a wider spread is no mean shift.
    assert mean_shift_on_host(mean, std, mean + std, std) == pytest.approx(1.0)
    assert mean_shift_on_host(mean, std, mean, 2 * std) == 0


def test_only_what_is_shown_is_kept_waiting():
    big = {"mean": np.zeros((1, 1, 2, 3)), "std": np.zeros((1, 1, 2, 3)), "p50": np.zeros(9)}
    kept = taken(Rows("none", 1, "reference", np.array([0]), big))
    assert kept is not None and set(kept.values) == {"mean", "std"}
    assert taken(Rows("none", 1, "probe", np.array([0]), big)) is None
