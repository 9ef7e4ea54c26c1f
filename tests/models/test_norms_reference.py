"""Every norm against float64 NumPy written apart from it, forward and backward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ici.adapt import Variables, from_nnx
from ici.models.norms import make_norm

EPS = 1e-5
SHAPES = {"vector": (6, 4), "sequence": (4, 3, 4), "image": (4, 2, 3, 4)}
EVERYWHERE = (
    "none", "batch", "batch:affine=false", "batch:epsilon=0.1", "batch:ghost=2", "batch:local=true",
    "l1", "l2", "linf", "lp:p=3", "lp:p=2,centred=true", "linf:centred=true,ghost=2", "layer",
    "layer:affine=false", "rms", "rms:epsilon=0.1", "group:groups=2", "dyt", "dyt:alpha=2",
    "batch_noisy:n_mu=0,n_sigma=1,r=0",
)  # fmt: skip
IN_IMAGES = ("instance", "instance:affine=false", "group:groups=4", "layer:per_position=true",
             "rms:per_position=true", "group:groups=2,per_position=true")  # fmt: skip
ELSEWHERE = ("batch", "batch:ghost=2", "lp:p=3", "layer", "rms", "group:groups=2", "dyt")
CASES = [(spec, "image") for spec in EVERYWHERE + IN_IMAGES]
CASES += [(spec, layout) for layout in ("vector", "sequence") for spec in ELSEWHERE]


def slabs(name, options, shape, layout):
    """Index sets: the values in each are normalised together."""
    together = np.zeros(shape, int)
    example = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    channel = np.arange(shape[-1])
    position = np.arange(np.prod(shape[1:-1], dtype=int)).reshape(1, *shape[1:-1], 1)
    if name in ("batch", "batch_noisy", "lp", "l1", "l2", "linf"):
        return together + channel + 100 * (example // int(options.get("ghost", shape[0])))
    if layout == "image" and "per_position" not in options:
        position = 0
    groups = {"instance": shape[-1], "group": int(options.get("groups", 1))}.get(name, 1)
    return together + 10000 * example + 100 * position + channel // (shape[-1] // groups)


def reference(spec, layout, x, params):
    """In float64, one set of values at a time."""
    name, _, rest = spec.partition(":")
    options = dict(part.split("=") for part in rest.split(",") if part)
    if name == "none":
        return x
    if name == "dyt":
        y = np.tanh(params["alpha"] * x)
    else:
        p = {"l1": 1, "linf": np.inf, "lp": float(options.get("p", 2))}.get(name, 2)
        centred = "centred" in options or not (name[0] == "l" and name != "layer")
        eps = float(options.get("epsilon", EPS))
        which, y = slabs(name, options, x.shape, layout), np.empty_like(x)
        for slab in np.unique(which):
            values = x[which == slab]
            mean = 0 if name == "rms" else values.mean()
            size = np.abs(values - mean if centred else values)
            root = 1 if p == np.inf else 1 / p
            divisor = ((size.max() if p == np.inf else (size**p).mean()) + eps) ** root
            y[which == slab] = (values - mean) / divisor
    return y * params.get("scale", 1) + params.get("bias", 0)


def shaken(params, seed=7):
    """Parameters away from 1 and 0, so that they show."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape).astype(np.float32), params)


@pytest.mark.parametrize(("spec", "layout"), CASES)
def test_against_numpy(spec, layout):
    shape = SHAPES[layout]
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, size=shape).astype(np.float32)
    weights = rng.normal(size=shape)
    model = from_nnx(lambda rngs: make_norm(spec, shape[-1], layout=layout, rngs=rngs))
    params, state = model.init(jax.random.key(0))
    params = shaken(params)
    assert ("scale" in params) == (spec not in ("none",) and "affine=false" not in spec)

    def loss(params, x):
        out = model.apply(Variables(params, state), x)[0]
        return jnp.sum(out * jnp.asarray(weights, jnp.float32)), out

    grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, jnp.asarray(x))
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x))
    np.testing.assert_allclose(out, reference(spec, layout, exact[1], exact[0]), atol=2e-5)
    leaves, structure = jax.tree.flatten(exact)
    h = 1e-6  # float64: rounding of 1e-16 / h and curvature h² are both far below the tolerance
    for leaf, grad in zip(leaves, jax.tree.leaves(grads), strict=True):
        for index in np.ndindex(leaf.shape):
            kept, sums = leaf[index], []
            for value in (kept + h, kept - h):
                leaf[index] = value
                moved_params, moved_x = jax.tree.unflatten(structure, leaves)
                sums.append((reference(spec, layout, moved_x, moved_params) * weights).sum())
            leaf[index] = kept
            difference = (sums[0] - sums[1]) / (2 * h)
            # Sums of up to 72 float32 values of size 1.
            np.testing.assert_allclose(grad[index], difference, rtol=1e-4, atol=5e-5)


LARGE_MEAN = ("batch", "batch:ghost=256", "lp:p=2,centred=true", "batch_noisy:n_mu=0,n_sigma=1,r=0")


@pytest.mark.parametrize("spec", LARGE_MEAN)
def test_large_mean_does_not_cancel(spec):
    x = (1e4 + np.random.default_rng(4).normal(size=(512, 4))).astype(np.float32)
    model = from_nnx(lambda rngs: make_norm(spec, 4, rngs=rngs))
    out = model.apply(model.init(jax.random.key(0)), jnp.asarray(x))[0]
    # In the E[x²]−E[x]² form the variance here is off by 10 and the values come out as 0.
    np.testing.assert_allclose(np.std(out, 0), 1, rtol=4e-3)


@pytest.mark.parametrize("spec", ["layer", "group:groups=2", "instance"])
def test_large_mean_does_not_cancel_in_an_image(spec):
    x = (1e4 + np.random.default_rng(4).normal(size=(2, 16, 16, 4))).astype(np.float32)
    model = from_nnx(lambda rngs: make_norm(spec, 4, layout="image", rngs=rngs))
    out = model.apply(model.init(jax.random.key(0)), jnp.asarray(x))[0]
    np.testing.assert_allclose(np.std(out, (1, 2, 3)), 1, rtol=4e-3)


@pytest.mark.parametrize("spec", ["layer", "rms", "group:groups=2", "dyt"])
def test_a_position_of_a_sequence_sees_no_other(spec):
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    model = from_nnx(lambda rngs: make_norm(spec, 4, layout="sequence", rngs=rngs))
    variables = model.init(jax.random.key(0))
    whole = model.apply(variables, x)[0]
    np.testing.assert_allclose(model.apply(variables, x[:, :2])[0], whole[:, :2], rtol=1e-6)


@pytest.mark.parametrize("spec", ["batch:ghost=2", "l1", "group:groups=2", "dyt", "layer"])
def test_statistics_of_half_precision_are_taken_in_float32(spec):
    x = (100 + np.random.default_rng(4).normal(size=(64, 4))).astype(jnp.bfloat16)
    model = from_nnx(lambda rngs: make_norm(spec, 4, rngs=rngs))
    variables = model.init(jax.random.key(0))
    wide = model.apply(variables, jnp.asarray(x, jnp.float32))[0]
    out = model.apply(variables, jnp.asarray(x))[0]
    assert out.dtype == jnp.float32  # of its parameters
    np.testing.assert_allclose(out, wide, rtol=1e-6)
