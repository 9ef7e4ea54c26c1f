"""Where JAX cannot batch a primitive, the gradient shift takes one pass per block."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import ad, mlir

import ici
from ici.models import InputSpec, MLPConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import zoo

TARGETS = jnp.asarray(np.random.default_rng(3).standard_normal((16, 2)), jnp.float32)

_square = jex.core.Primitive("square_without_batching")
_square.def_impl(jnp.square)
_square.def_abstract_eval(lambda x: x)
mlir.register_lowering(_square, mlir.lower_fun(jnp.square, multiple_results=False))
ad.defjvp(_square, lambda tangent, x: 2 * x * tangent)


def unbatched_loss(out, target):
    return jnp.mean(_square.bind(out - target))


def ordinary_loss(out, target):
    return jnp.mean(jnp.square(out - target))


@pytest.fixture(scope="module")
def pair():
    model = ici.from_nnx(MLPConfig(width=8).build("none", 3, InputSpec((4,), None, 2)))
    before = model.init(jax.random.key(0), zoo.data())
    after = before._replace(params=jax.tree.map(lambda a: 1.1 * a + 0.05, before.params))
    return model, before, after


def test_the_stacked_method_says_that_it_cannot(pair):
    model, before, after = pair
    with pytest.raises(NotImplementedError, match="square_without_batching"):
        ici.gradient_shift(
            model, unbatched_loss, before, after, (zoo.data(), TARGETS), method="stacked"
        )


def test_one_pass_per_block_takes_its_place(pair):
    model, before, after = pair
    batch = zoo.data(), TARGETS
    auto = ici.gradient_shift(model, unbatched_loss, before, after, batch)
    separate = ici.gradient_shift(model, unbatched_loss, before, after, batch, method="separate")
    stacked = ici.gradient_shift(model, ordinary_loss, before, after, batch, method="stacked")
    assert auto.blocks == separate.blocks and (auto.l2[1:] > 1e-3).all()
    for field in ("l2", "relative", "cosine", "norm", "norm_shifted"):
        # The same program.
        np.testing.assert_array_equal(getattr(auto, field), getattr(separate, field))
        # The same loss with a batching rule; sums in another order.
        np.testing.assert_allclose(
            getattr(auto, field), getattr(stacked, field), rtol=1e-3, atol=1e-5
        )
