"""Weights spread over the devices that share a run: the same run, in less memory."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
import spread
from jax.sharding import PartitionSpec as P

import ici
from ici.engine.sharding import leaf_spec


@pytest.mark.parametrize(
    ("shape", "n_devices", "spec"),
    [
        ((64, 128), 4, P(None, "data")),
        ((128, 64), 4, P("data")),
        ((64, 64), 8, P("data")),
        ((6, 1000, 64), 8, P(None, "data")),
        ((1001, 64), 8, P(None, "data")),
        ((1001, 63), 8, P()),
        ((64, 63), 8, P()),
        ((4096,), 8, P("data")),
        ((64, 128), 1, P()),
        ((), 8, P()),
        ((0, 8), 8, P()),
    ],
)
def test_the_longest_axis_that_divides(shape, n_devices, spec):
    assert leaf_spec(shape, n_devices) == spec


def weights(fleet):
    return (fleet.lanes.params, fleet.lanes.opt_state, fleet.lanes.ema)


def on_a_device(fleet):
    """Bytes of the weights and their kin that one device holds."""
    return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(weights(fleet)))


def large(fleet):
    """Shardings of the leaves of 64 × 64 and more, and there are some."""
    leaves = [a for a in jax.tree.leaves(weights(fleet)) if a[0].size >= 4096]
    assert len(leaves) >= 3
    return {a.sharding.spec for a in leaves}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "share", "changes"),
    [
        ("map", 4, {"norm": ("layer",), "accumulation_steps": 2}),
        ("vmap", 4, {"optimizer": "muon", "clip_norm": 0.5}),
    ],
)
def test_spread_weights_train_as_whole_ones(form, share, changes):
    settings = {
        "model": ici.MLPConfig(width=64), "lr": (1e-2,), "measure": ("gradient_shift@2",),
        "probe": spread.probe(("moments", "updates")), "data_parallel": share,
    }  # fmt: skip
    e = spread.experiment(**(settings | changes))
    whole, parted = (
        spread.fleet_of(replace(e, shard_params=shard), form) for shard in (False, True)
    )
    assert large(whole) == {P("run")}
    assert large(parted) == {P("run", "data")}
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, map(weights, (whole, parted))))
    small = on_a_device(parted)
    # 64 × 64 numbers are most of this network; the rest, on every device, is less than a fifth.
    assert small < (1 / share + 0.2) * on_a_device(whole)
    seen = []
    for fleet in (whole, parted):
        trained = fleet.train(0, spread.indices(e, 0, 4))
        shift = fleet.measure("gradient_shift", 4, spread.indices(e, 4, 1)[:, 0])
        seen.append(jax.device_get((weights(fleet), trained, shift, fleet.reference())))
    # The same sums in another order, of 4 updates; cotangents before a batch norm are 0 but for it.

    def close(a, b):
        atol = 2e-5 * np.nanmax(abs(b)) + 1e-8
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol)

    jax.tree.map(close, seen[1], seen[0])
    assert large(parted) == {P("run", "data")} and on_a_device(parted) == small
    assert parted._train._cache_size() == 1
    if len(e.lanes) > parted.n_devices:
        assert parted.repack(np.arange(len(e.lanes)) < 1)
        assert large(parted) == {P("run", "data")}
        assert on_a_device(parted) <= small
        parted.train(4, spread.indices(e, 4, 4))
        assert large(parted) == {P("run", "data")}


@pytest.mark.slow
def test_no_device_ever_holds_a_whole_optimizer():
    settings = {"model": ici.MLPConfig(width=128), "lr": (1e-2,), "seed": (0,), "measure": ()}
    e = spread.experiment(**settings, data_parallel=8, probe=spread.probe(("moments",)))
    taken = {}
    for shard in (False, True):
        fleet = spread.fleet_of(replace(e, shard_params=shard))
        memory = spread.compiled(fleet, e)["train"].memory_analysis()
        taken[shard] = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        hypers = fleet._slots(jax.tree.map(lambda *xs: np.stack(xs), *spread.hypers(e)))
        example = fleet.place(np.zeros((1, 6), np.float32))
        init = fleet._init.lower(fleet._n_active(), hypers, example).compile().memory_analysis()
        assert init.temp_size_in_bytes < 1.2 * on_a_device(fleet)
    # Weights and gradients are whole at some time in a step, averages and the moments of Adam not.
    assert taken[True] < 0.65 * taken[False]
