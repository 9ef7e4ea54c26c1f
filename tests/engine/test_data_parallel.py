"""A batch spread over devices: everything measured is that of the whole batch, on any mesh."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
import spread
from tiny import losses

import ici
from ici.engine.lane import NEVER

pytestmark = pytest.mark.slow
# The same numbers summed in another order, over 4 updates: measured at most 5e-5 of each variable's
# largest value, by differences of nearly equal numbers (interaction, an eigenvalue's error). A
# statistic of one device's part of the batch would be off by tenths.
CLOSE = 5e-4


def assert_close(a, b):
    far = {name: d for name, d in spread.distances(a, b).items() if d > CLOSE}
    assert not far


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    probe = spread.probe(("moments", "split_moments"))
    e = spread.experiment(measure=(), lr=(1e-3,), probe=probe)
    return e, spread.run(e, folder / "out", devices=1)


@pytest.mark.parametrize(("devices", "share"), [(8, 2), (8, 8)])
def test_every_mesh_records_the_same(one, tmp_path, devices, share):
    e, expected = one
    assert_close(spread.run(e, tmp_path / "out", devices=devices, data_parallel=share), expected)


def test_every_statistic_and_measurement_is_of_the_whole_batch(tmp_path):
    # 6 runs on 2 rows of 4 devices.
    e = spread.experiment()
    expected = spread.run(e, tmp_path / "one", devices=1)
    many = spread.run(e, tmp_path / "many", data_parallel=4)
    # The tail of a Lanczos run is rounding; its eigenvalue is not.
    for record in (many, expected):
        del record["sharpness/sharpness_error"]
    assert_close(many, expected)


def test_a_language_model_with_masked_targets(tmp_path):
    e = spread.transformer(seed=(0,), measure=(), probe=spread.probe(("moments", "attention")))
    expected = spread.run(e, tmp_path / "one", devices=1)
    assert_close(spread.run(e, tmp_path / "many", data_parallel=8), expected)


def test_parts_of_a_spread_batch_equal_the_whole(tmp_path):
    # A layer norm sees one example at a time; a batch norm would see parts of 16.
    probe = spread.probe(("moments", "extremes"))
    e = spread.experiment(norm=("layer",), lr=(1e-3,), seed=(0,), measure=(), probe=probe)
    expected = spread.run(e, tmp_path / "one", devices=1)
    many = spread.run(e, tmp_path / "many", data_parallel=8, accumulation_steps=2)
    assert_close(many, expected)


def test_parts_of_a_batch_norm_are_over_all_devices(tmp_path):
    probe = spread.probe(("moments",))
    e = spread.experiment(measure=(), lr=(1e-3,), seed=(0,), accumulation_steps=2, probe=probe)
    expected = spread.run(e, tmp_path / "one", devices=1)
    assert_close(spread.run(e, tmp_path / "many", data_parallel=8), expected)


def test_streamed_images_lie_where_they_are_used(tmp_path):
    e = spread.convnet(data_parallel=4, seed=(0, 1))
    one = spread.run(e, tmp_path / "one", stream=False, devices=1, data_parallel=1)
    assert_close(spread.run(e, tmp_path / "streamed", stream=True), one)


def test_no_device_works_on_the_whole_batch():
    probe = spread.probe(("moments",))
    settings = {"lr": (1e-3,), "seed": (0,), "batch_size": 64, "reference_size": 64}
    e = spread.experiment(**settings, measure=("gradient_shift@2",), probe=probe)
    work = {}
    for share in (1, 8):
        e = replace(e, devices=share, data_parallel=share)
        programs = spread.compiled(spread.fleet_of(e), e)
        work[share] = {name: p.cost_analysis()["flops"] for name, p in programs.items()}
        assert all(("all-reduce" in p.as_text()) == (share == 8) for p in programs.values())
    for name, flops in work[8].items():
        # An eighth, and what each device does to its own copy of the weights.
        assert flops < 0.35 * work[1][name], name


def test_rows_with_unequal_work_wait_for_each_other(make_tiny):
    """Three runs on two rows: without equal turns, messages of the longer loop wait for ever."""
    lanes = [(1e-2, 0), (1e30, 0), (1e-2, 1)]
    tiny = make_tiny(lanes, n_devices=8, data_parallel=4)
    together = losses(tiny, 10)
    assert tiny.train(10, 5)[1e30, 0][2] == 1
    for lane in (lanes[0], lanes[2]):
        one = losses(make_tiny([lane]), 10)[lane]
        np.testing.assert_allclose(together[lane], one, atol=2e-4)  # ten updates of rounding


def test_a_frozen_run_keeps_its_state_while_others_walk_on(make_tiny):
    lanes = [(1e-2, 0), (1e-2, 1), (1e-3, 0), (1e-3, 1)]
    tiny = make_tiny(lanes, n_devices=8, data_parallel=4)
    tiny.train(0, 5)
    assert tiny.fleet.packing.n_active.tolist() == [2, 2]
    # Two of them stop for a reason that their states don't know: row 1 has fewer than row 0.
    object.__setattr__(tiny.fleet.packing, "n_active", np.array([2, 1]))
    before = jax.device_get(tiny.fleet.lanes)
    records = tiny.train(5, 5)
    after = jax.device_get(tiny.fleet.lanes)
    assert len(records) == 3 and all(r[2] == NEVER for r in records.values())
    frozen = 2 + 1  # second slot of row 1
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[frozen], b[frozen]), before, after)
    moved = jax.tree.map(lambda a, b: bool((a[2] != b[2]).any()), before.params, after.params)
    assert any(jax.tree.leaves(moved))


def test_sharding_wants_devices_that_share_a_run():
    with pytest.raises(ici.InputError, match="shard_params is True and data_parallel is 1"):
        spread.experiment(shard_params=True)
    e = spread.experiment(data_parallel=2)
    assert replace(e, shard_params=True).fingerprint != e.fingerprint
