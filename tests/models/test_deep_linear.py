"""Deep linear networks: a product of matrices, and what a norm between them changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import KEY, built, check_shared_weights, flat, images, untouched

from ici.errors import InputError
from ici.models import DeepLinearConfig, InputSpec, resolve
from ici.probe import Probe

TARGETS = InputSpec((6,), None, 3, task="regression")


def network(norm="none", depth=4, spec=TARGETS, **config):
    return built(DeepLinearConfig(**({"width": 8} | config)), norm, depth, spec)


def test_it_is_the_product_of_its_matrices():
    model = network()
    variables = model.init(KEY)
    assert all(name.endswith("kernel") for name in flat(variables.params))
    kernels = [variables.params["blocks"][i]["linear"]["kernel"] for i in range(4)]
    matrices = [np.asarray(k, np.float64) for k in (*kernels, variables.params["head"]["kernel"])]
    x = jax.random.normal(KEY, (5, 6))
    expected = np.linalg.multi_dot([np.asarray(x, np.float64), *matrices])
    np.testing.assert_allclose(model.apply(variables, x)[0], expected, rtol=1e-4, atol=1e-5)
    image = images(2, 3, channels=1)
    flattened = network(spec=image)
    out = flattened.apply(flattened.init(KEY), x.reshape(5, 2, 3, 1))[0]
    assert out.shape == (5, 4)


def test_a_norm_follows_each_hidden_layer():
    model = network("batch", depth=2)
    variables = model.init(KEY)
    x = np.asarray(jax.random.normal(KEY, (16, 6)), np.float64)
    out, _, taps = model.apply(variables, jnp.asarray(x, jnp.float32), probe=Probe())
    for i in range(2):
        z = x @ np.asarray(variables.params["blocks"][i]["linear"]["kernel"], np.float64)
        x = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
    expected = x @ np.asarray(variables.params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-4)
    order = ["linear", "norm"]
    assert list(taps) == [*(f"blocks/{i}/{layer}" for i in (0, 1) for layer in order), "head"]


def test_inits():
    wide = network(width=400, depth=2).init(KEY).params
    kernel = np.asarray(wide["blocks"][1]["linear"]["kernel"])
    np.testing.assert_allclose(kernel.std(), 1 / 20, rtol=0.02)  # 160,000 draws: 0.18 %
    orthogonal = network(width=6, init="orthogonal").init(KEY).params
    for i in range(4):
        kernel = np.asarray(orthogonal["blocks"][i]["linear"]["kernel"])
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(6), atol=1e-5)


def test_variants_share_their_weights_and_learn():
    plain = network().init(KEY).params
    for other in (network("layer"), network(depth=6), network("weight")):
        assert check_shared_weights(plain, other.init(KEY).params) == 5
    spec = InputSpec((6,), None, 3)
    assert untouched(network("batch", spec=spec), spec) == []
    assert isinstance(resolve("deep_linear"), DeepLinearConfig)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (InputSpec((12,), 100, 2), "'deep_linear' on tokens: wanted vectors or images"),
        (InputSpec((12,), 100, 100, task="language_model"), "such as 'transformer'"),
    ],
)
def test_data_that_do_not_fit(spec, message):
    with pytest.raises(InputError, match=message):
        network(spec=spec)


def test_bad_settings():
    with pytest.raises(InputError, match="width is 0"):
        DeepLinearConfig(width=0)
    with pytest.raises(InputError, match="unknown init 'identity'"):
        DeepLinearConfig(init="identity")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="depth is 0"):
        network(depth=0)
