"""A lane of a fleet is the run that it would have been alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny import losses

from ici.engine.lane import NEVER, Arrays
from ici.probe import Probe

SLOW = pytest.mark.slow
GRID = [(lr, seed) for lr in (1e-3, 1e-2, 1e-1) for seed in (0, 1)]


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("norm", "n_devices"),
    [("batch", 2), pytest.param("none", 4, marks=SLOW)]
    + [
        pytest.param(norm, n, marks=SLOW)
        for norm in ("none", "batch", "layer", "rms")
        for n in (1, 2, 4)
        if (norm, n) not in (("batch", 2), ("none", 4))
    ],
)
def test_lane_is_bitwise_the_run_alone(make_tiny, norm, n_devices):
    fleet = make_tiny(GRID, norm=norm, n_devices=n_devices)
    together = losses(fleet)
    lane = (1e-1, 1)
    alone = make_tiny([lane], norm=norm, n_devices=n_devices)
    np.testing.assert_array_equal(losses(alone)[lane], together[lane])
    assert_trees_equal(alone.states()[lane], fleet.states()[lane])


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", ["batch", pytest.param("none", marks=SLOW), pytest.param("layer", marks=SLOW)]
)
def test_device_count_does_not_change_a_bit(make_tiny, norm):
    reference = losses(make_tiny(GRID, norm=norm, n_devices=1))
    for n_devices in (2, 4):
        np.testing.assert_equal(losses(make_tiny(GRID, norm=norm, n_devices=n_devices)), reference)


def test_seed_decides_weights_and_order_and_the_rate_does_not(make_tiny):
    first = {lane: loss[0] for lane, loss in losses(make_tiny(GRID), 10).items()}
    assert first[1e-3, 0] == first[1e-1, 0]
    assert first[1e-3, 0] != first[1e-3, 1]


@pytest.mark.slow
def test_data_axis_of_eight_devices_equals_one(make_tiny):
    lane = (1e-2, 0)
    one = losses(make_tiny([lane]), 10)[lane]
    eight = losses(make_tiny([lane], n_devices=8, data_parallel=8), 10)[lane]
    # BatchNorm over a shard of 4 instead of all 32 examples would be off by tenths; sums in
    # another order are off by float32 rounding, which ten updates amplify.
    np.testing.assert_allclose(eight, one, atol=2e-4)
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-6)


@pytest.mark.slow
def test_moments_are_global_over_the_data_axis(make_tiny):
    lane = (1e-2, 0)
    one = make_tiny([lane]).train(0, 5)[lane][1]
    eight = make_tiny([lane], n_devices=8, data_parallel=8).train(0, 5)[lane][1]
    assert one["count"]["head"][0] == eight["count"]["head"][0] == 32
    # The first step's forward pass: the same numbers summed in another order.
    for name in ("mean", "std"):
        for site, value in one[name].items():
            np.testing.assert_allclose(eight[name][site], value, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("width", [None, pytest.param(2, marks=SLOW)])
def test_side_by_side_equals_one_after_another(make_tiny, width):
    one = losses(make_tiny(GRID), 10)
    side = losses(make_tiny(GRID, form="vmap", width=width), 10)
    for lane, loss in one.items():
        # Batched matrix products sum in another order; Adam at 1e-1 amplifies that fastest.
        np.testing.assert_allclose(side[lane], loss, atol=5e-3 if lane[0] == 1e-1 else 5e-4)
        np.testing.assert_allclose(side[lane][0], loss[0], rtol=1e-6)


@pytest.mark.parametrize("norm", [pytest.param("none", marks=SLOW), "batch"])
def test_probe_leaves_losses_and_parameters_alone(make_tiny, norm):
    lane = (1e-2, 0)
    watched, plain = (make_tiny([lane], norm=norm, every=every) for every in (1, 1000))
    a, b = losses(watched)[lane], losses(plain)[lane]
    np.testing.assert_array_equal(a, b)
    assert_trees_equal(watched.states(), plain.states())


@pytest.mark.parametrize("chunk", [15, pytest.param(30, marks=SLOW)])
def test_length_of_a_dispatch_does_not_matter(make_tiny, chunk):
    lane = (1e-2, 0)
    expected = losses(make_tiny([lane]), 30, 10)[lane]
    np.testing.assert_array_equal(losses(make_tiny([lane]), 30, chunk)[lane], expected)


def test_taps_are_of_every_fifth_step_and_a_last_short_cycle_counts(make_tiny):
    lane = (1e-2, 0)
    dense = make_tiny([lane], every=1).train(0, 12)[lane][1]["mean"]["head"]
    sparse = make_tiny([lane], every=5).train(0, 12)[lane][1]["mean"]["head"]
    assert dense.shape[0] == 12
    np.testing.assert_array_equal(sparse, dense[[0, 5, 10]])


def test_one_program_whatever_happens(make_tiny):
    lanes = [*GRID, (1e30, 0), (1e30, 1)]
    tiny = make_tiny(lanes, norm="none", n_devices=2)
    for first in range(0, 40, 10):
        running = [records[2] == NEVER for records in tiny.train(first, 10).values()]
        if first == 0:
            assert not all(running)
            active = np.array([lr < 1 for lr, _ in lanes])
            assert tiny.fleet.repack(active)
        tiny.fleet.reference()
    assert tiny.fleet._train._cache_size() == 1
    assert tiny.fleet._reference._cache_size() == 1


@pytest.mark.parametrize("norm", [pytest.param("none", marks=SLOW), "batch"])
def test_a_diverging_lane_keeps_its_last_good_state_and_disturbs_nobody(make_tiny, norm):
    tiny = make_tiny([*GRID, (1e30, 0)], norm=norm)
    together = losses(tiny, 30)
    alone = losses(make_tiny(GRID, norm=norm), 30)
    for lane in GRID:
        np.testing.assert_array_equal(together[lane], alone[lane])
    _, _, diverged_at = tiny.train(30, 5)[1e30, 0]
    # One update with a step of 1e30 is enough: the loss of step 1 is beyond every bound.
    assert diverged_at == 1
    assert not together[1e30, 0][1] <= 1e3 * together[1e30, 0][0]
    params, state = tiny.states()[1e30, 0]
    finite = [np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state)]
    assert all(finite)
    one_step = make_tiny([(1e30, 0)], norm=norm)
    one_step.train(0, 1)
    assert_trees_equal(params, one_step.states()[1e30, 0][0])


def test_repacking_moves_states_unchanged(make_tiny):
    lanes = [(1e30, 0), (1e30, 1), *GRID]
    tiny = make_tiny(lanes, norm="none", n_devices=2)
    tiny.train(0, 10)
    active = np.array([lr < 1 for lr, _ in lanes])
    assert tiny.fleet.repack(active)
    assert tiny.fleet.packing.n_active.tolist() == [3, 3]
    after = {lane: values[0]["loss"] for lane, values in tiny.train(10, 10).items()}
    assert set(after) == set(GRID)
    alone = losses(make_tiny(GRID, norm="none", n_devices=2), 20)
    for lane in GRID:
        np.testing.assert_array_equal(after[lane], alone[lane][10:])


@pytest.mark.slow
def test_side_by_side_fleet_shrinks_when_lanes_end(make_tiny):
    lanes = [*GRID, (1e30, 0), (1e30, 1)]
    tiny = make_tiny(lanes, norm="none", form="vmap")
    before = losses(make_tiny(lanes, norm="none", form="vmap"), 20)
    tiny.train(0, 10)
    assert not tiny.fleet.repack(np.arange(8) < 6)
    assert tiny.fleet.repack(np.arange(8) < 3)
    assert tiny.fleet.packing.n_slots == 4
    after = tiny.train(10, 10)
    assert set(after) == set(GRID[:3])
    for lane in GRID[:3]:
        np.testing.assert_allclose(after[lane][0]["loss"], before[lane][10:], atol=5e-3)


def test_learning_rate_zero_moves_nothing(make_tiny):
    lane = (0.0, 0)
    tiny = make_tiny([lane])
    before = tiny.by_lane(tiny.fleet.reference())[lane]
    tiny.train(0, 10)
    after = tiny.by_lane(tiny.fleet.reference())[lane]
    assert_trees_equal(before, after)


def test_reference_measurement_leaves_running_statistics_alone(make_tiny):
    tiny = make_tiny(GRID)
    tiny.train(0, 5)
    before = jax.device_get(tiny.fleet.lanes.state)
    tiny.fleet.reference()
    assert_trees_equal(before, jax.device_get(tiny.fleet.lanes.state))


def test_reference_is_in_training_mode(make_tiny):
    lane = (1e-2, 0)
    tiny = make_tiny([lane], probe=Probe(select="blocks/1/linear", every=5))
    tiny.train(0, 5)
    reference = tiny.by_lane(tiny.fleet.reference())[lane]
    # Behind BatchNorm and relu in training mode: at most about half of a unit Gaussian's values
    # survive. Running averages after five steps are far from the batch's own statistics.
    mean = reference["mean"]["blocks/1/linear"]
    np.testing.assert_allclose(mean.mean(), 1 / np.sqrt(2 * np.pi), atol=0.05)


def test_evaluation_counts_every_example_once(make_tiny, data: Arrays):
    lane = (1e-2, 0)
    tiny = make_tiny([lane])
    tiny.train(0, 20)
    place = tiny.fleet.place
    whole = Arrays(data.inputs[None, :100], data.labels[None, :100])
    index = np.minimum(np.arange(120), 99).reshape(3, 40)
    parts = Arrays(data.inputs[index], data.labels[index])
    weights = (np.arange(120) < 100).astype(np.float32).reshape(3, 40)
    a = tiny.fleet.evaluate(place(whole), place(np.ones((1, 100), np.float32)))
    b = tiny.fleet.evaluate(place(parts), place(weights))
    for key in ("loss", "accuracy"):
        np.testing.assert_allclose(
            tiny.by_lane(a)[lane][key], tiny.by_lane(b)[lane][key], rtol=1e-6
        )


def test_no_implicit_transfers(make_tiny):
    tiny = make_tiny(GRID, n_devices=2)
    tiny.train(0, 5)
    with jax.transfer_guard_host_to_device("disallow"):
        tiny.train(5, 5)
        tiny.fleet.reference()
