import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ici.data import batch_indices
from ici.data.sampler import permutation
from ici.errors import InputError


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    epochs=st.integers(1, 4),
)
def test_each_epoch_shows_every_example_once(n, batch, seed, epochs):
    batch = min(n, batch)
    n_steps = -(-n * epochs // batch)
    flat = batch_indices(n, batch, seed, 0, n_steps).ravel()
    for epoch in range(epochs):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 40),
    first=st.integers(0, 10**9),
    cut=st.integers(0, 12),
)
def test_any_window_is_a_part_of_the_whole(n, batch, first, cut):
    batch = min(n, batch)
    whole = batch_indices(n, batch, 3, first, 12)
    assert whole.shape == (12, batch)
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole[:cut], batch_indices(n, batch, 3, first, cut))
    np.testing.assert_array_equal(whole[cut:], batch_indices(n, batch, 3, first + cut, 12 - cut))


def test_the_batch_size_only_cuts_the_same_stream():
    streams = [batch_indices(12, size, 5, 0, 36 // size).ravel() for size in (1, 3, 4, 12)]
    for stream in streams[1:]:
        np.testing.assert_array_equal(stream, streams[0])


def test_epochs_and_seeds_differ():
    orders = [tuple(permutation(50, seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)


def test_orders_are_uniform():
    # 24 orders of 4 examples over 4,800 epochs: chi-square with 23 degrees of freedom is below
    # 49.7 with probability 0.999 (and the seeds are fixed, so this never flickers).
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for epoch in range(4800):
        counts[tuple(int(i) for i in permutation(4, 0, epoch))] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 49.7


def test_the_order_is_the_one_it_has_always_been():
    """Recorded runs replay only while these stay: change them and old runs cannot be resumed."""
    expected = [[0, 2, 9, 1], [8, 5, 4, 3], [6, 7, 5, 3], [7, 8, 2, 4], [1, 0, 6, 9]]
    assert batch_indices(10, 4, 0, 0, 5).tolist() == expected


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_batches_around_the_size_of_the_data(size):
    if 1 <= size <= 8:
        assert sorted(batch_indices(8, size, 0, 0, 8).ravel()[:8]) == list(range(8))
        return
    with pytest.raises(InputError, match=f"batch_size is {size} but the data hold 8 examples"):
        batch_indices(8, size, 0, 0, 1)


def test_negative_numbers_are_refused():
    with pytest.raises(InputError, match="seed, first_step and n_steps are -1, 0 and 1"):
        batch_indices(8, 2, -1, 0, 1)
    with pytest.raises(InputError, match="are 0, -2 and 1"):
        batch_indices(8, 2, 0, -2, 1)


def test_the_result_may_be_changed_without_harm():
    batch_indices(8, 8, 0, 0, 1)[:] = -1
    assert sorted(batch_indices(8, 8, 0, 0, 1)[0]) == list(range(8))
