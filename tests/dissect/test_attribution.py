"""The attribution matrix: exact zeros, sums that telescope, and shifts known in advance."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ici
from ici.dissect.blocks import find_blocks
from ici.models import InputSpec, MLPConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import zoo
from test_gradient_shift import MODELS, two_steps


def matrix(name, **changes):
    model = MODELS[name]()
    before, after = two_steps(model)
    return model, before, after, ici.attribute_shift(model, before, after, zoo.data(), **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["batchnorm", "scanned", "residual", "linen scanned", "layernorm", "no norm"]
)
def test_a_block_shifts_only_what_lies_above_it(name):
    model, before, _, seen = matrix(name)
    blocks = find_blocks(model, before, zoo.data())
    assert seen.blocks == blocks.names
    for j, block in enumerate(seen.blocks):
        own = seen.sites.index(block)
        # Exactly zero up to the block's own input, for a residual network too.
        assert (seen.alone[j, : own + 1] == 0).all(), block
        assert (seen.path[j, : own + 1] == 0).all(), block
        assert (seen.alone[j, own + 1 :] > 0).all(), block


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batchnorm", "residual", "scanned"])
def test_paths_telescope_to_the_total(name):
    _, _, _, seen = matrix(name)
    for site in seen.sites:
        summed = jnp.sum(seen.path_displacement[site], axis=0)
        # Differences of float32 means of order 1 to 10 over σ, k of them.
        np.testing.assert_allclose(summed, seen.total_displacement[site], rtol=1e-4, atol=1e-5)


def test_nothing_moves_nothing_shifts():
    model = MODELS["batchnorm"]()
    before, _ = two_steps(model)
    seen = ici.attribute_shift(model, before, before, zoo.data())
    for values in seen.labelled().values():
        assert (values == 0).all()


@pytest.mark.slow
def test_one_moved_block_is_the_whole_shift():
    model = MODELS["no norm"]()
    before, after = two_steps(model)
    blocks = find_blocks(model, before, zoo.data())
    only_1 = jnp.arange(len(blocks)) == 1
    one = before._replace(params=blocks.select(only_1, after.params, before.params))
    seen = ici.attribute_shift(model, before, one, zoo.data())
    assert (seen.alone[jnp.asarray([0, 2, 3, 4])] == 0).all()
    np.testing.assert_allclose(seen.alone[1], seen.total, rtol=1e-6)
    # Sums of the same numbers with zeros, divided by σ apart.
    np.testing.assert_allclose(seen.interaction, 0, atol=1e-5)


def test_a_known_shift():
    """A first layer that adds a constant to every unit moves the next input by that constant."""
    config = MLPConfig(width=4)
    model = ici.from_nnx(config.build("none", 1, InputSpec((4,), None, 2)))
    inputs = jnp.abs(zoo.data()) + 1.0
    before = model.init(jax.random.key(0), inputs)
    eye = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    before = before._replace(params={**before.params, "blocks": {0: {"linear": eye}}})
    raised = {"kernel": jnp.eye(4), "bias": jnp.asarray([1.0, 2.0, 3.0, 4.0])}
    after = before._replace(params={**before.params, "blocks": {0: {"linear": raised}}})
    seen = ici.attribute_shift(model, before, after, inputs)
    sigma = np.asarray(inputs, np.float64).std(0)
    wanted = np.array([1.0, 2.0, 3.0, 4.0]) / sigma
    np.testing.assert_allclose(seen.displacement["head"][0], wanted, rtol=1e-5)
    np.testing.assert_allclose(seen.alone[0, -1], np.sqrt(np.mean(np.square(wanted))), rtol=1e-5)
    np.testing.assert_allclose(seen.alone_scale[0, -1], 0, atol=1e-5)
    np.testing.assert_allclose(seen.total[-1], seen.alone[0, -1], rtol=1e-6)


def test_interaction_of_two_layers():
    """y = w₂·w₁·x: moving both by δ leaves δ² unexplained by the moves one by one."""
    model = ici.from_linen(_Scalar())
    inputs = jnp.asarray([[1.0], [3.0]])  # mean 2, std 1
    before = model.init(jax.random.key(0), inputs)
    ones = jax.tree.map(jnp.ones_like, before.params)
    before = before._replace(params=ones)
    after = before._replace(params=jax.tree.map(lambda a: a + 0.5, ones))
    seen = ici.attribute_shift(model, before, after, inputs)
    assert seen.sites == ("a", "b", "c")
    # Means in σ: the input of c moves from 2 to 2·1.5² = 4.5; each layer alone moves it by 1.
    np.testing.assert_allclose(seen.total_displacement["c"], [2.5], rtol=1e-6)
    np.testing.assert_allclose(seen.displacement["c"][:, 0], [1.0, 1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(seen.interaction[-1], 0.5, rtol=1e-5)
    np.testing.assert_allclose(seen.path_displacement["c"][:, 0], [1.0, 1.5, 0.0], rtol=1e-6)


def test_dead_features_are_left_out_and_counted():
    model = MODELS["no norm"]()
    before, after = two_steps(model)
    dead = before.params["blocks"][0]["linear"]
    dead = {"kernel": dead["kernel"].at[:, 0].set(0.0), "bias": dead["bias"].at[0].set(-1.0)}
    before = before._replace(
        params={**before.params, "blocks": {**before.params["blocks"], 0: {"linear": dead}}}
    )
    seen = ici.attribute_shift(model, before, after, zoo.data())
    assert seen.dead_features[seen.sites.index("blocks/1/linear")] >= 1
    assert np.isfinite(seen.alone).all() and np.isfinite(seen.interaction).all()
    assert np.isnan(seen.displacement["blocks/1/linear"][:, 0]).all()


def test_a_probe_without_moments():
    model = MODELS["no norm"]()
    before, after = two_steps(model)
    with pytest.raises(ici.InputError, match="attribution wants 'moments'"):
        probe = ici.Probe(stats=("extremes",))
        ici.attribute_shift(model, before, after, zoo.data(), probe=probe)


def _scalar():
    import flax.linen as nn

    class Scalar(nn.Module):
        @nn.compact
        def __call__(self, x):
            for name in ("a", "b", "c"):
                x = nn.Dense(1, use_bias=False, name=name)(x)
            return x

    return Scalar


_Scalar = _scalar()
