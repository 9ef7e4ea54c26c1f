"""Models of either kind, built, and trees compared."""

from __future__ import annotations

import jax
import numpy as np
import public_models as zoo

from ici.adapt import from_linen, from_nnx

KEY = jax.random.key(0)
X = zoo.series()
FLAT = X[:, 0]


def nnx_model(module, **settings):
    model = from_nnx(lambda rngs: module(rngs=rngs, **settings))
    return model, model.init(KEY)


def linen_model(module, x=FLAT):
    model = from_linen(module)
    return model, model.init(KEY, x)


def equal(a, b, **tolerance):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, **tolerance), a, b)
