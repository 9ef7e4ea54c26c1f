import numpy as np
import pytest

from ici.data import Split
from ici.data.splits import repeated, shuffled, standardize, stratified_split

STRATA = np.repeat([0, 1, 7], [100, 50, 20])


def test_a_partition_with_the_same_share_of_each_stratum():
    rows = stratified_split(STRATA, seed=0)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(170))
    for name, expected in (("train", [80, 40, 16]), ("validation", [10, 5, 2])):
        assert [np.count_nonzero(STRATA[rows[name]] == s) for s in (0, 1, 7)] == expected


def test_fractions_are_dials():
    rows = stratified_split(STRATA, seed=0, validation=0.2, test=0.0)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [136, 34, 0]


def test_even_small_strata_reach_validation():
    rows = stratified_split(np.array([0, 0, 0, 1, 1, 1]), seed=0)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [2, 2, 2]


def test_seeds_give_other_splits_and_the_same_seed_the_same():
    first, again, other = (stratified_split(STRATA, seed)["test"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_marked_examples_stay_in_train_and_sizes_hold():
    keep = np.zeros(170, bool)
    keep[::4] = True
    rows = stratified_split(STRATA, seed=0, keep_in_train=keep)
    assert set(np.flatnonzero(keep)) <= set(rows["train"])
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [136, 17, 17]


def test_splits_are_shuffled_so_that_their_head_is_a_fair_sample():
    head = STRATA[stratified_split(STRATA, seed=0)["train"][:60]]
    # Hypergeometric: 35 of 60 expected in stratum 0, standard deviation 2.9; five of them.
    assert abs(np.count_nonzero(head == 0) - 35) < 15


def test_shuffled_keeps_the_rows():
    rows = np.arange(30) * 2
    assert sorted(shuffled(rows, 0)) == sorted(rows)
    assert shuffled(rows, 0).tolist() != rows.tolist()


def test_repeated_marks_every_copy():
    assert repeated(["a", "b", "a", "c", "c", "c"]).tolist() == [True, False] + [True] * 4
    assert repeated([]).tolist() == []


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_standardize_uses_the_training_split_only(dtype):
    rng = np.random.default_rng(0)
    x, other = rng.integers(0, 256, (500, 8)), rng.integers(0, 50, (40, 8))
    labels = np.zeros(500, np.int32)
    train, rest = standardize(Split(x.astype(dtype), labels), Split(other, labels[:40]))
    assert train.inputs.dtype == rest.inputs.dtype == np.float32
    # float32 values of order 1 from exact statistics: rounding alone separates the two.
    np.testing.assert_allclose(train.inputs, (x - x.mean()) / x.std(), atol=1e-6)
    np.testing.assert_allclose(rest.inputs, (other - x.mean()) / x.std(), atol=1e-6)


def test_standardize_leaves_constant_inputs_finite():
    (train,) = standardize(Split(np.full((5, 2), 3), np.zeros(5, np.int32)))
    assert train.inputs.tolist() == [[0.0, 0.0]] * 5
