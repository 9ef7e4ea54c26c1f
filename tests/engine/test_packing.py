"""Which lane sits where."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ici.engine.packing import EMPTY, pack


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 8))
def test_active_lanes_are_placed_once_at_the_front_and_evenly(active, n_devices):
    active = np.array(active)
    packing = pack(active, n_devices, -(-len(active) // n_devices))
    placed = packing.lanes[packing.lanes != EMPTY]
    assert sorted(placed) == list(range(len(active)))
    slots, lanes = packing.rows()
    assert sorted(lanes) == np.flatnonzero(active).tolist()
    assert packing.n_active.sum() == active.sum()
    assert packing.n_active.max() - packing.n_active.min() <= 1
    np.testing.assert_array_equal(packing.lanes.reshape(-1)[slots], lanes)


@given(st.integers(1, 40), st.integers(1, 8), st.data())
def test_shrinking_keeps_every_active_lane_and_halves_at_least(n_lanes, n_devices, data):
    active = np.array(data.draw(st.lists(st.booleans(), min_size=n_lanes, max_size=n_lanes)))
    packing = pack(active, n_devices, None)
    assert set(np.flatnonzero(active)) <= set(packing.lanes.reshape(-1).tolist())
    full = -(-n_lanes // n_devices)
    sizes = {full}
    while max(sizes) > 0 and min(sizes) > 1:
        sizes.add(-(-min(sizes) // 2))
    assert packing.n_slots in sizes
    needed = -(-int(active.sum()) // n_devices)
    assert packing.n_slots == min(size for size in sizes if size >= max(needed, 1))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 4))
def test_moving_finds_every_lane_again(active, n_devices):
    active = np.array(active)
    old = pack(np.ones(len(active), bool), n_devices, None)
    new = pack(active, n_devices, old.n_slots)
    state = old.filled  # a lane's state is its number
    moved = state[old.position_of(new)].reshape(new.lanes.shape)
    np.testing.assert_array_equal(moved[new.lanes != EMPTY], new.lanes[new.lanes != EMPTY])
