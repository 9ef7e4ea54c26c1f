"""A mask says which positions count; what it leaves out is as if it had never been there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ici.errors import InputError
from ici.measure import (
    DeadUnits,
    EffectiveRank,
    Extremes,
    HigherMoments,
    Moments,
    OutputLogits,
    Percentiles,
    SplitMoments,
    shift,
    wasserstein1,
)

POOLED = [Moments, Extremes, HigherMoments, Percentiles, DeadUnits, EffectiveRank, OutputLogits]
SHAPE = (8, 10, 3)


def values(mean=0.0, seed=0):
    return (mean + np.random.default_rng(seed).normal(size=SHAPE)).astype(np.float32)


def lengths():
    """Sentences of 4 to 10 tokens, the rest padding; the first two are padding altogether."""
    of_B = np.random.default_rng(1).integers(4, 11, size=SHAPE[0])
    of_B[:2] = 0
    return np.arange(SHAPE[1])[None] < of_B[:, None]


@pytest.mark.parametrize("filling", [0.0, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("kind", POOLED, ids=lambda k: k.__name__)
def test_padding_never_counts(kind, filling):
    mask = lengths()
    x = np.where(mask[..., None], values(), np.float32(filling))
    got = jax.jit(kind.of)(jnp.asarray(x), jnp.asarray(mask)).labelled()
    kept = kind.of(jnp.asarray(values()[mask])).labelled()
    for name, expected in kept.items():
        # Sums in another order: a few roundings of values of order 1.
        np.testing.assert_allclose(got[name], expected, rtol=2e-6, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_masked_moments_survive_a_large_mean(mean):
    mask, x = lengths(), values(mean)
    moments = Moments.of(jnp.asarray(x), jnp.asarray(mask))
    kept = x[mask].astype(np.float64)
    np.testing.assert_allclose(moments.mean, kept.mean(0), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(moments.std, kept.std(0), rtol=1e-5)
    assert moments.count == mask.sum()


@pytest.mark.parametrize("kind", [*POOLED, SplitMoments], ids=lambda k: k.__name__)
def test_a_mask_of_everything_changes_nothing(kind):
    x, mask = jnp.asarray(values()), jnp.ones(SHAPE[:-1], bool)
    for name, expected in kind.of(x).labelled().items():
        # The mean is found in another way: by rounding.
        np.testing.assert_allclose(kind.of(x, mask).labelled()[name], expected, rtol=2e-6)


@pytest.mark.parametrize("kind", [*POOLED, SplitMoments], ids=lambda k: k.__name__)
def test_a_mask_that_removes_everything_leaves_no_number_but_stays_neutral(kind):
    x = jnp.asarray(values())
    nothing = kind.of(x, jnp.zeros(SHAPE[:-1], bool))
    for name, value in nothing.labelled().items():
        assert (value == 0).all() if name == "count" else np.isnan(value).all(), name
    something = kind.of(x)
    for merged in (nothing.merge(something), something.merge(nothing)):
        jax.tree.map(np.testing.assert_array_equal, merged, something)
    for name, value in nothing.merge(nothing).labelled().items():
        assert name == "count" or np.isnan(value).all()


def test_a_shift_to_nothing_is_no_number():
    x = jnp.asarray(values())
    for value in shift(Moments.of(x), Moments.of(x, jnp.zeros(SHAPE[:-1], bool))).aggregate():
        assert value
    summary = shift(Moments.of(x), Moments.empty(3)).aggregate()
    assert np.isnan(summary["mean_shift"]) and np.isnan(summary["scale_shift"])


def test_masked_batches_merge_to_one_pass():
    x, mask = jnp.asarray(values(50)), jnp.asarray(lengths())
    for kind, rtol in ((Moments, 1e-5), (HigherMoments, 1e-4), (EffectiveRank, 1e-5)):
        parts = [kind.of(x[i : i + 2], mask[i : i + 2]) for i in range(0, 8, 2)]
        whole = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
        for name, expected in kind.of(x, mask).labelled().items():
            np.testing.assert_allclose(whole.labelled()[name], expected, rtol=rtol, atol=1e-5)


def test_split_groups_weigh_by_what_they_keep():
    x, mask = values(), lengths()
    split = SplitMoments.of(jnp.asarray(x), jnp.asarray(mask))
    kept = x[mask].astype(np.float64)
    np.testing.assert_allclose(split.total.mean, kept.mean(0), atol=1e-6)
    np.testing.assert_allclose(split.total.std, kept.std(0), rtol=1e-5)
    assert split.groups.count.tolist() == mask.sum(1).tolist()
    weights = mask.sum(1) / mask.sum()
    means = np.array([x[i][mask[i]].mean(0) if mask[i].any() else np.zeros(3) for i in range(8)])
    used = (weights > 0).sum()
    squares = np.square(weights[:, None] * (means - kept.mean(0))).sum(0) * used / (used - 1)
    np.testing.assert_allclose(split.mean_standard_error, np.sqrt(squares), rtol=1e-5)


def test_masked_wasserstein():
    a, b, mask = values(), values(seed=7), lengths()
    expected = np.abs(np.sort(a[mask], axis=0) - np.sort(b[mask], axis=0)).mean(0)
    a[~mask], b[~mask] = np.nan, np.inf
    np.testing.assert_allclose(wasserstein1(a, b, jnp.asarray(mask)), expected, rtol=1e-5)
    assert np.isnan(wasserstein1(a, b, jnp.zeros(SHAPE[:-1], bool))).all()


def test_vectors_take_a_mask_of_their_own_shape():
    moments = Moments.of(jnp.asarray([1.0, 2.0, 9.0]), jnp.asarray([True, True, False]))
    assert moments.mean.tolist() == [1.5]


@pytest.mark.parametrize("kind", [*POOLED, SplitMoments], ids=lambda k: k.__name__)
def test_bad_masks(kind):
    x = jnp.asarray(values())
    with pytest.raises(InputError, match=r"mask of shape \(8,\).*wanted \(8, 10\)"):
        kind.of(x, jnp.ones(8, bool))
    with pytest.raises(InputError, match="mask of int32: wanted bool"):
        kind.of(x, jnp.ones((8, 10), jnp.int32))
