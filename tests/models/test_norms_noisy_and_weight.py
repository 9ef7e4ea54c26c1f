"""The norms that are more than a normalization: noise after it, and weights instead of values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ici.adapt import Variables, from_nnx
from ici.models.norms import make_norm, parse

KEY = jax.random.key(0)
UNITS = 4000


def noisy(spec, x, layout="vector", **mode):
    model = from_nnx(lambda rngs: make_norm(spec, x.shape[-1], layout=layout, rngs=rngs))
    out, state, _ = model.apply(model.init(KEY), x, **mode)
    return np.asarray(out, np.float64), state


def test_noise_of_a_step_is_as_stated():
    x = jnp.tile(jnp.asarray([[-1.0], [0.0], [1.0]]), (1, UNITS))
    clean = noisy("batch", x)[0]
    out = noisy("batch_noisy:r=0", x)[0]
    mu = out[1]
    sigma = (out[2] - out[1]) / clean[2]
    np.testing.assert_allclose(out[0], sigma * clean[0] + mu, atol=1e-5)
    # Uniform on [-.5, .5] and on [1, 1.25]: bounds, and means within 5 standard errors.
    assert np.abs(mu).max() <= 0.5 and sigma.min() >= 1 - 1e-5 and sigma.max() <= 1.25 + 1e-5
    assert abs(mu.mean()) < 5 * np.sqrt(1 / 12 / UNITS)
    assert abs(sigma.mean() - 1.125) < 5 * 0.25 * np.sqrt(1 / 12 / UNITS)
    np.testing.assert_allclose(mu.var(), 1 / 12, rtol=0.1)
    np.testing.assert_allclose(sigma.var(), 0.25**2 / 12, rtol=0.1)


def test_noise_of_an_example_is_as_stated():
    x = jnp.tile(jnp.asarray([[-1.0], [0.0], [1.0]]), (1, UNITS))
    clean = noisy("batch", x)[0]
    added = noisy("batch_noisy:n_mu=0,n_sigma=1", x)[0] - clean
    # m ~ U(-.1, .1) alone where the value is 0; else with (s - 1) a, s ~ N(1, .1). The variance of
    # 4000 draws has a relative standard error of 2 %.
    assert np.abs(added[1]).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(added[1].var(), 0.1**2 / 3, rtol=0.1)
    np.testing.assert_allclose(added[2].var(), 0.1**2 / 3 + 0.1**2 * clean[2, 0] ** 2, rtol=0.1)
    assert abs(np.corrcoef(added[0], added[2])[0, 1]) < 0.1  # one draw per example


def test_positions_of_an_image_share_their_noise():
    x = jax.random.normal(KEY, (4, 3, 3, 5))
    added = noisy("batch_noisy:n_sigma=1", x, "image")[0] - noisy("batch", x, "image")[0]
    a = noisy("batch", x, "image")[0]
    for example in range(4):
        for channel in range(5):
            # On a line in a: slope s - 1 and offset m of this example and channel.
            values = a[example, ..., channel].ravel()
            fit = np.polyfit(values, added[example, ..., channel].ravel(), 1)
            np.testing.assert_allclose(
                np.polyval(fit, values), added[example, ..., channel].ravel(), atol=1e-5
            )


def test_noise_changes_with_the_step_and_is_none_in_evaluation():
    x = jax.random.normal(KEY, (8, 5))
    model = from_nnx(lambda rngs: make_norm("batch_noisy", 5, rngs=rngs))
    variables = model.init(KEY)
    first, state, _ = model.apply(variables, x)
    again = model.apply(variables, x)[0]
    second = model.apply(Variables(variables.params, state), x)[0]
    np.testing.assert_array_equal(first, again)  # a function of the state
    assert np.abs(first - second).max() > 0.05
    quiet = model.apply(variables, x, train=False)[0]
    np.testing.assert_allclose(quiet, x, rtol=1e-4)  # running averages of 0 and 1


class Stacked(nnx.Module):
    """Three layers whose variables are stacked, scanned over."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def layers(rngs):
            return make_norm("batch_noisy", 5, rngs=rngs)

        self.layers = layers(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=(nnx.Carry, 0))
        def through(layer, x):
            y = layer(x)
            return y, y - x

        return through(self.layers, x)[1]


def test_layers_scanned_over_have_noise_of_their_own():
    model = from_nnx(Stacked)
    variables = model.init(KEY)
    x = jax.random.normal(KEY, (8, 5))
    added, state, _ = model.apply(variables, x)
    assert state["layers"]["noise"]["count"].tolist() == [1, 1, 1]
    assert np.abs(added[0] - added[1]).max() > 0.05 and np.abs(added[1] - added[2]).max() > 0.05
    later = model.apply(Variables(variables.params, state), x)[0]
    assert np.abs(added - later).max() > 0.05


# -- weight normalization ------------------------------------------------------------------------


def linear(norm):
    return from_nnx(lambda rngs: parse(norm).linear(3, 2, rngs=rngs))


def conv(norm):
    return from_nnx(
        lambda rngs: parse(norm).conv(3, 2, (3, 3), strides=2, padding=((1, 1), (1, 1)), rngs=rngs)
    )


INPUTS = {linear: (4, 3), conv: (2, 5, 4, 3)}


@pytest.mark.parametrize("layer", [linear, conv])
def test_weight_norm_starts_as_the_plain_layer(layer):
    x = jax.random.normal(KEY, INPUTS[layer])
    plain, normed = layer("none"), layer("weight")
    expected = plain.apply(plain.init(KEY), x)[0]
    np.testing.assert_allclose(normed.apply(normed.init(KEY), x)[0], expected, rtol=1e-5, atol=1e-6)
    plain_params, params = plain.init(KEY).params, normed.init(KEY).params
    np.testing.assert_array_equal(plain_params["kernel"], params["kernel"])
    without = parse("weight").linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
    assert without.bias is None and without(jnp.ones((1, 3))).shape == (1, 2)


def numpy_layer(params, x):
    """Output in float64, window by window."""
    kernel = np.asarray(params["kernel"], np.float64)
    flat = kernel.reshape(-1, kernel.shape[-1])
    flat = flat / np.sqrt((flat**2).sum(0) + 1e-12) * np.asarray(params["scale"], np.float64)
    x, bias = np.asarray(x, np.float64), np.asarray(params["bias"], np.float64)
    if x.ndim == 2:
        return x @ flat + bias
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (range(0, size - 2, 2) for size in padded.shape[1:3])
    return (
        np.stack(
            [
                np.stack(
                    [padded[:, i : i + 3, j : j + 3].reshape(len(x), -1) @ flat for j in columns], 1
                )
                for i in rows
            ],
            1,
        )
        + bias
    )


@pytest.mark.parametrize("layer", [linear, conv])
def test_weight_norm_against_numpy(layer):
    model, rng = layer("weight"), np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + 0.5 * rng.normal(size=a.shape).astype(np.float32), model.init(KEY).params
    )
    x = rng.normal(size=INPUTS[layer]).astype(np.float32)
    out = model.apply(Variables(params, {}), jnp.asarray(x))[0]
    expected = numpy_layer(params, x)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    weights = rng.normal(size=expected.shape)
    grads = jax.grad(
        lambda p: jnp.sum(model.apply(Variables(p, {}), x)[0] * jnp.asarray(weights, jnp.float32))
    )(params)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h = 1e-6
    for name, values in exact.items():
        for index in np.ndindex(values.shape):
            kept, sums = values[index], []
            for value in (kept + h, kept - h):
                values[index] = value
                sums.append((numpy_layer(exact, x) * weights).sum())
            values[index] = kept
            np.testing.assert_allclose(
                grads[name][index], (sums[0] - sums[1]) / (2 * h), rtol=1e-4, atol=1e-4
            )
    # Salimans & Kingma 2016, equation 3: the length of v has no effect on the output.
    along = jnp.sum(
        grads["kernel"] * params["kernel"], axis=tuple(range(params["kernel"].ndim - 1))
    )
    np.testing.assert_allclose(along, 0, atol=1e-4)
