"""Shift of one site between two snapshots: closed forms."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ici.errors import InputError
from ici.measure import Moments, shift, shift_series


def moments(mean, std, n=1000.0):
    mean, std = jnp.atleast_1d(jnp.asarray(mean, jnp.float32)), jnp.atleast_1d(jnp.float32(std))
    return Moments(jnp.float32(n), mean, jnp.square(std) * n)


def test_standard_normal_to_mean_2_std_3():
    s = shift(moments(0.0, 1.0), moments(2.0, 3.0))
    np.testing.assert_allclose(s.mean_shift, 2, rtol=1e-6)
    np.testing.assert_allclose(s.scale_shift, np.log(3), rtol=1e-6)
    np.testing.assert_allclose(s.w2, np.sqrt(8), rtol=1e-6)
    np.testing.assert_allclose(s.w2_relative, np.sqrt(8), rtol=1e-6)
    np.testing.assert_allclose(s.kl, np.log(3) + 5 / 18 - 0.5, rtol=1e-6)
    backward = -np.log(3) + (9 + 4) / 2 - 0.5
    np.testing.assert_allclose(s.kl_symmetric, np.log(3) + 5 / 18 - 0.5 + backward, rtol=1e-6)


def test_produced_by_a_layer_that_changed():
    """The same from data: a unit Gaussian site whose producer becomes 3x + 2."""
    x = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    x = (x - x.mean(0)) / x.std(0)
    summary = shift(Moments.of(jnp.asarray(x)), Moments.of(jnp.asarray(3 * x + 2))).aggregate()
    expected = {
        "mean_shift": 2,
        "scale_shift": np.log(3),
        "w2": np.sqrt(8),
        "kl": np.log(3) + 5 / 18 - 0.5,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(summary[name], value, rtol=1e-5)


def test_same_snapshot_is_exactly_zero():
    x = np.random.default_rng(1).normal(3, 7, size=(50, 20)).astype(np.float32)
    a = Moments.of(jnp.asarray(x))
    for name, value in shift(a, a).aggregate().items():
        assert value == 0, name


def test_ratios_are_in_units_of_the_first_snapshot():
    s = shift(moments(10.0, 4.0), moments(12.0, 2.0))
    np.testing.assert_allclose(s.mean_shift, 0.5, rtol=1e-6)
    np.testing.assert_allclose(s.w2_relative, np.sqrt(8) / 4, rtol=1e-6)


def test_sign_is_kept_per_feature_and_squared_in_the_aggregate():
    s = shift(moments([0.0, 0.0], [1.0, 1.0]), moments([3.0, -4.0], [1.0, 1.0]))
    assert s.mean_shift.tolist() == [3, -4]
    np.testing.assert_allclose(s.aggregate()["mean_shift"], np.sqrt(12.5), rtol=1e-6)


@pytest.mark.parametrize("where", ["before", "after", "both"])
def test_dead_features_are_counted_and_left_out(where):
    before, after = np.ones(4), np.ones(4)
    if where in ("before", "both"):
        before[2] = 0
    if where in ("after", "both"):
        after[2] = 0
    s = shift(moments(np.zeros(4), before), moments(np.ones(4), after))
    assert s.dead.tolist() == [False, False, True, False]
    assert np.isnan(s.mean_shift[2]) and np.isnan(s.kl[2]) and np.isfinite(s.w2[2])
    summary = s.aggregate()
    assert summary["dead_features"] == 1
    np.testing.assert_allclose(summary["mean_shift"], 1, rtol=1e-6)


def test_all_dead_has_no_value():
    summary = shift(moments([0.0], [0.0]), moments([1.0], [0.0])).aggregate()
    assert np.isnan(summary["mean_shift"]) and summary["dead_features"] == 1


def test_percentiles_over_features():
    displacement = np.linspace(-10, 10, 41)
    s = shift(moments(np.zeros(41), np.ones(41)), moments(displacement, np.ones(41)))
    summary = s.aggregate()
    for percent in (50, 95):
        expected = np.percentile(np.abs(displacement), percent)
        np.testing.assert_allclose(summary[f"mean_shift_p{percent}"], expected, rtol=1e-5)


def test_reference_against_a_series():
    a = moments([0.0, 0.0], [1.0, 1.0])
    series = Moments(jnp.full(3, 10.0), jnp.arange(6.0).reshape(3, 2), jnp.full((3, 2), 10.0))
    first = Moments(a.count[None], a.mean[None], a.m2[None])
    assert shift(first, series).aggregate()["mean_shift"].shape == (3,)


def test_series_against_any_snapshot():
    mean = jnp.asarray([[0.0, 1.0], [2.0, 1.0], [6.0, 0.0]])
    series = Moments(jnp.full(3, 10.0), mean, jnp.full((3, 2), 10.0) * 4)  # std 2
    assert shift_series(series).mean_shift.tolist() == [[0, 0], [1, 0], [3, -0.5]]
    assert shift_series(series, against=1).mean_shift.tolist() == [[-1, 0], [0, 0], [2, -0.5]]
    assert shift_series(series, against=-1).mean_shift[0].tolist() == [-3, 0.5]
    previous = shift_series(series, against="previous")
    assert previous.mean_shift[1:].tolist() == [[1, 0], [2, -0.5]]
    assert np.isnan(previous.mean_shift[0]).all() and not previous.dead.any()
    assert np.isnan(previous.aggregate()["mean_shift"]).tolist() == [True, False, False]
    for against in (3, "first"):
        with pytest.raises(InputError, match=f"against {against!r}: wanted 'initial'"):
            shift_series(series, against=against)
    with pytest.raises(InputError, match="of one snapshot"):
        shift_series(moments([0.0], [1.0]))


def test_bad_input():
    with pytest.raises(InputError, match="1 features to 2"):
        shift(moments([0.0], [1.0]), moments([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(InputError, match="dead_std is 0"):
        shift(moments([0.0], [1.0]), moments([0.0], [1.0]), dead_std=0)
