"""Models for the tests of the model families."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from ici.adapt import from_nnx
from ici.engine.step import cross_entropy, gradients
from ici.models import InputSpec
from ici.probe import Probe

KEY = jax.random.key(0)


def images(height=8, width=None, channels=3, n_classes=4, **spec):
    return InputSpec((height, width or height, channels), None, n_classes, **spec)


def shapes(config, norm, depth, spec):
    """Paths and shapes of the parameters, without computing any."""
    factory = config.build(norm, depth, spec)
    module = nnx.eval_shape(lambda: factory(nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(map(str, path)): leaf.shape for path, leaf in flat}


def n_parameters(config, norm, depth, spec):
    return sum(int(np.prod(shape)) for shape in shapes(config, norm, depth, spec).values())


def built(config, norm, depth, spec):
    return from_nnx(config.build(norm, depth, spec))


def batch(spec, n=8):
    """Random images and the labels that go with them."""
    x = jax.random.normal(jax.random.key(1), (n, *spec.shape))
    return x, jax.random.randint(jax.random.key(2), (n,), 0, spec.n_classes)


def sites(model, spec):
    """Names of the default sites, as a probe meets them, without computing anything."""
    variables = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((8, *spec.shape), np.float32)
    return list(model.taps_shape(variables, x, Probe()).sites)


def output_shape(model, spec):
    """Shape of the output for a batch of 8, without computing it."""
    variables = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((8, *spec.shape), np.float32)
    return jax.eval_shape(lambda v, x: model.apply(v, x)[0], variables, x).shape


def untouched(model, spec):
    """Names of the parameters that get no gradient from a random batch."""
    x, y = batch(spec)

    @jax.jit
    def grads():
        return gradients(model, cross_entropy, model.init(KEY), (x, y)).grads

    return [name for name, grad in flat(grads()).items() if not np.any(grad)]


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(a) for p, a in leaves}


def check_shared_weights(a, b):
    """Every weight array that both have under one name and shape is the same; says how many."""
    a, b = flat(a), flat(b)
    common = [n for n in a if n.endswith("kernel") and n in b and a[n].shape == b[n].shape]
    for name in common:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    return len(common)
