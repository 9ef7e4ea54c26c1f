"""The noise floor: false alarms at the nominal rate when nothing shifts, alarms when it does."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import stats

from ici.errors import InputError
from ici.measure import Moments, SplitMoments, difference_threshold, noise_floor, shift
from ici.measure.noise_floor import _dealings

TRIALS = 1000
ALPHA = 0.05


def independent(rng):
    return rng.normal(1, 2, size=(TRIALS, 64, 4))


def sequences(rng):
    """Positions of one example have a correlation of 0.8."""
    example, position = rng.normal(size=(TRIALS, 32, 1, 4)), rng.normal(size=(TRIALS, 32, 16, 4))
    return np.sqrt(0.8) * example + np.sqrt(0.2) * position


def correlated(rng):
    """Sixteen features, every two with a correlation of 0.9."""
    shared, own = rng.normal(size=(TRIALS, 64, 1)), rng.normal(size=(TRIALS, 64, 16))
    return np.sqrt(0.9) * shared + np.sqrt(0.1) * own


def long_tails(rng):
    return rng.exponential(size=(TRIALS, 64, 4))


def measured(batches, n_groups=8, seed=0, moved=0.0, scaled=1.0):
    """Floor and shift of TRIALS pairs of batches; the second of each moved and scaled."""
    rng = np.random.default_rng(seed)
    of = jax.jit(jax.vmap(SplitMoments.into(n_groups).of))
    a = of(batches(rng).astype(np.float32))
    b = of((batches(rng) * scaled + moved).astype(np.float32))
    return noise_floor(a, b, ALPHA), shift(a.total, b.total)


def false_alarms(floor, moved, name):
    return np.abs(np.asarray(getattr(moved, name))) > getattr(floor, f"{name}_threshold")


def assert_nominal(alarms, rate=ALPHA, excess=0.0):
    """Within four binomial standard deviations of the rate: one failure in 16,000 by chance."""
    slack = 4 * np.sqrt(rate * (1 - rate) / alarms.size)
    assert abs(alarms.mean() - rate) < slack + excess, alarms.mean()


@pytest.mark.parametrize("batches", [independent, sequences, correlated, long_tails])
def test_false_alarms_come_at_the_nominal_rate(batches):
    floor, moved = measured(batches)
    by_feature = false_alarms(floor, moved, "mean_shift")
    # Correlated features alarm together: one of them has as many independent trials as all.
    assert_nominal(by_feature[:, 0])
    assert_nominal(by_feature[:, -1])
    # Group variances are not normal, and less so with long tails or few independent values.
    excess = {"independent": 0.01, "correlated": 0.01, "sequences": 0.03, "long_tails": 0.05}
    for feature in (0, -1):
        alarms = false_alarms(floor, moved, "scale_shift")[:, feature]
        assert_nominal(alarms, excess=excess[batches.__name__])
    # The p-value of a site is exact: at most alpha with probability floor(alpha·6435)/6435.
    for name in ("mean_shift_p_value", "scale_shift_p_value"):
        assert_nominal(getattr(floor, name) <= ALPHA)
        assert_nominal(getattr(floor, name) <= 0.5, rate=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("n_groups", [2, 16])
def test_coverage_with_other_numbers_of_groups(n_groups):
    # A tenth of the trials where each costs ten thousand dealings.
    part = slice(None, TRIALS if n_groups == 2 else TRIALS // 10)
    floor, moved = measured(lambda rng: independent(rng)[part], n_groups)
    assert_nominal(false_alarms(floor, moved, "mean_shift"))
    assert_nominal(false_alarms(floor, moved, "scale_shift"), excess=0.01)
    # Halves can be dealt in three ways: the actual one is the largest in a third of all cases.
    rate = ALPHA if n_groups == 16 else 1 / 3
    assert_nominal(floor.mean_shift_p_value <= rate + 1e-6, rate=rate)


def test_standard_errors_that_ignored_positions_would_be_wrong():
    """The same threshold from positions taken as independent alarms most of the time."""
    rng = np.random.default_rng(0)
    a, b = (sequences(rng).astype(np.float32).reshape(TRIALS, -1, 4) for _ in range(2))
    error = np.hypot(a.std(1), b.std(1)) / np.sqrt(a.shape[1])
    assert (np.abs(a.mean(1) - b.mean(1)) > 1.96 * error).mean() > 0.5


@pytest.mark.parametrize("batches", [independent, sequences, correlated])
def test_floor_is_the_shift_that_sampling_gives(batches):
    floor, moved = measured(batches)
    for name, rtol in (("mean_shift", 0.1), ("scale_shift", 0.15)):
        expected = np.sqrt(np.mean(np.square(np.asarray(getattr(moved, name)))))
        # One trial of a correlated feature is one number: 1000 of them know an rms to 2 %, here
        # with the spread of the estimated errors.
        np.testing.assert_allclose(np.sqrt(np.mean(getattr(floor, name) ** 2)), expected, rtol=rtol)


def test_floor_of_independent_examples_in_closed_form():
    """E[(Δμ)²] = 2σ²/N, and var(ln s) = 1/(2N) for a normal feature."""
    floor, _ = measured(independent)
    np.testing.assert_allclose(np.sqrt(np.mean(floor.mean_shift**2)), np.sqrt(2 / 64), rtol=0.05)
    np.testing.assert_allclose(np.sqrt(np.mean(floor.scale_shift**2)), np.sqrt(1 / 64), rtol=0.05)


def test_a_shift_is_found():
    floor, moved = measured(correlated, moved=0.7)
    # 0.7 σ with a standard error of 0.177 σ: t = 4 against a quantile of 2.1.
    assert false_alarms(floor, moved, "mean_shift").mean() > 0.9
    assert (floor.mean_shift_p_value <= ALPHA).mean() > 0.9
    assert_nominal(floor.scale_shift_p_value <= ALPHA)
    floor, _ = measured(lambda rng: independent(rng) - 1, scaled=1.3)
    assert (floor.scale_shift_p_value <= ALPHA).mean() > 0.9


def test_a_small_shift_of_many_features_is_found_only_together():
    rng = np.random.default_rng(3)
    of = jax.jit(jax.vmap(SplitMoments.of))
    a = of(rng.normal(size=(200, 64, 64)).astype(np.float32))
    b = of(rng.normal(0.2, 1, size=(200, 64, 64)).astype(np.float32))
    floor = noise_floor(a, b)
    alarms = false_alarms(floor, shift(a.total, b.total), "mean_shift")
    assert alarms.mean() < 0.3 and (floor.mean_shift_p_value <= ALPHA).mean() > 0.9


def test_same_batch_is_below_every_threshold():
    x = np.random.default_rng(4).normal(size=(32, 5)).astype(np.float32)
    split = SplitMoments.of(x)
    floor = noise_floor(split, split)
    assert (floor.mean_shift_threshold > 0).all()
    assert floor.mean_shift_p_value == 1 and floor.scale_shift_p_value == 1


def test_threshold_is_students():
    x = np.random.default_rng(5).normal(size=(2, 32, 5)).astype(np.float32)
    a, b = (SplitMoments.of(part) for part in x)
    floor = noise_floor(a, b, alpha=0.01)
    ratio = floor.mean_shift_threshold / floor.mean_shift
    np.testing.assert_allclose(ratio, stats.t.ppf(0.995, 14))
    recorded = difference_threshold(a.mean_standard_error, b.mean_standard_error, 8, alpha=0.01)
    np.testing.assert_allclose(recorded / np.asarray(a.total.std), floor.mean_shift_threshold)


def test_dead_features_are_left_out():
    x = np.random.default_rng(6).normal(size=(2, 32, 3)).astype(np.float32)
    a, b = (SplitMoments.of(part) for part in x)
    with_dead = x.copy()
    with_dead[0, :, 1], with_dead[1, :, 1] = 0.0, 7.0
    floor = noise_floor(*(SplitMoments.of(part) for part in with_dead))
    assert floor.dead.tolist() == [False, True, False]
    assert np.isnan(floor.mean_shift).tolist() == np.isnan(floor.scale_shift).tolist()
    kept = noise_floor(*(SplitMoments.of(part[:, [0, 2]]) for part in x))
    assert floor.mean_shift_p_value == kept.mean_shift_p_value
    for name, value in kept.aggregate().items():
        np.testing.assert_allclose(floor.aggregate()[name], value)
    constant = SplitMoments.of(np.ones((8, 2), np.float32))
    assert all(np.isnan(v) for v in noise_floor(constant, constant).aggregate().values())
    assert noise_floor(a, b).aggregate()["mean_shift"] > 0


def test_padded_sequences_keep_the_rate():
    rng = np.random.default_rng(7)
    mask = np.arange(16) < rng.integers(4, 17, size=(2, TRIALS, 64, 1))
    of = jax.jit(jax.vmap(SplitMoments.of))
    x = rng.normal(size=(2, TRIALS, 64, 1, 3)) + 0.3 * rng.normal(size=(2, TRIALS, 64, 16, 3))
    a, b = (of(part.astype(np.float32), keep) for part, keep in zip(x, mask, strict=True))
    floor = noise_floor(a, b, ALPHA)
    assert_nominal(false_alarms(floor, shift(a.total, b.total), "mean_shift"), excess=0.01)
    assert_nominal(floor.mean_shift_p_value <= ALPHA)


@pytest.mark.parametrize(("n_groups", "n"), [(2, 3), (3, 10), (8, 6435), (16, 10_000)])
def test_dealings(n_groups, n):
    signs = _dealings(n_groups)
    assert signs.shape == (n, 2 * n_groups)
    assert signs[0].tolist() == [-1] * n_groups + [1] * n_groups
    assert (signs.sum(1) == 0).all()
    if n < 10_000:
        assert len({tuple(row) for row in np.concatenate([signs, -signs])}) == 2 * n


def test_bad_input():
    a = SplitMoments.of(np.ones((16, 3), np.float32))
    with pytest.raises(InputError, match="same number of groups and features"):
        noise_floor(a, SplitMoments.into(4).of(np.ones((16, 3), np.float32)))
    with pytest.raises(InputError, match="alpha is 1.5"):
        noise_floor(a, a, alpha=1.5)
    with pytest.raises(InputError, match="1 groups"):
        difference_threshold(1.0, 1.0, 1)


def test_total_of_a_split_is_what_shift_expects():
    x = np.random.default_rng(8).normal(size=(64, 3)).astype(np.float32)
    moved = shift(SplitMoments.of(x).total, Moments.of(x))
    np.testing.assert_allclose(moved.mean_shift, 0, atol=1e-6)
