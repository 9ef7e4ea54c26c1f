"""Measurement in loops that are written by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import nnx

import ici
from ici.errors import InputError
from ici.measure import Moments
from ici.probe import Probe

FOLDER = Path(__file__).resolve().parents[1] / "experiments/own_loop"
X = zoo.data()


def main_of(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))["main"]


def equal(a, b, **tolerance):
    check = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda p, q: check(p, q, **tolerance), a, b)


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("nnx_loop", ["layers/0", "layers/1", "layers/2", "head"]),
        (
            "linen_loop",
            [*(f"{m}_{i}" for i in range(3) for m in ("Dense", "BatchNorm")), "head"],
        ),
    ],
)
def test_a_measured_loop_trains_as_the_plain_one(name, sites, monkeypatch, capsys):
    losses, spreads = main_of(name)(steps=12)
    assert [list(seen) for seen in spreads] == [sites] * 2
    assert losses[-1] < losses[0] and f"loss {losses[0]:.3f}" in capsys.readouterr().out
    monkeypatch.setattr(ici, "watch", lambda target, _: lambda *a, **k: (target(*a, **k), None))
    # Two programs: the compiler may order their sums differently.
    np.testing.assert_allclose(main_of(name)(steps=12)[0], losses, rtol=1e-4)


def test_checkpoints_alone_show_the_shift():
    shifts = main_of("checkpoints_only")(steps=8, every=4)
    assert [list(row) for row in shifts] == [["layers/0", "layers/1", "layers/2", "head"]] * 2
    for row in shifts:
        first, *deeper = row.values()
        assert first == 0 and min(deeper) > 0.1


def test_watching_a_live_module_moves_its_state_as_a_call_does():
    watched, plain = (zoo.Chain(dropout=0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    assert ici.watch(plain, None)(X)[1] is None
    watched, plain = (zoo.Chain(dropout=0.5, rngs=nnx.Rngs(0)) for _ in range(2))
    for _ in range(2):
        out, taps = ici.watch(watched, Probe())(X)
        np.testing.assert_array_equal(out, plain(X))
        assert taps.sites[:2] == ("blocks/0/linear", "blocks/0/norm")
        equal(taps["blocks/0/linear"], Moments.of(X))

    def raw(module):
        leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(module)))
        keys = jax.dtypes.prng_key
        return [jax.random.key_data(a) if jnp.issubdtype(a.dtype, keys) else a for a in leaves]

    equal(raw(watched), raw(plain))
    before = raw(watched)
    ici.watch(nnx.clone(watched), Probe())(X)
    equal(raw(watched), before)


def test_watching_apply_returns_what_apply_returns():
    module = zoo.LinenChain()
    variables = module.init(jax.random.key(0), X)
    out, taps = ici.watch(module.apply, Probe())(variables, X, train=False)
    np.testing.assert_array_equal(out, module.apply(variables, X, train=False))
    assert taps.sites[-1] == "head" and taps.unwatched == {}
    (out, updated), taps = ici.watch(module.apply, Probe())(variables, X, mutable=["batch_stats"])
    expected, expected_updated = module.apply(variables, X, mutable=["batch_stats"])
    equal((out, updated), (expected, expected_updated))
    equal(taps["blocks_0/linear"], Moments.of(X))


def test_the_mask_is_a_function_of_what_is_called():
    class Tokens(nnx.Module):
        def __init__(self, *, rngs):
            self.embed = nnx.Embed(5, 4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, tokens):
            return self.head(self.embed(tokens))

    tokens = jnp.array([[1, 2, 0], [3, 0, 0]])
    probe = Probe(mask=lambda tokens: tokens != 0)
    assert ici.watch(Tokens(rngs=nnx.Rngs(0)), probe)(tokens)[1]["head"].count == 3


@pytest.mark.parametrize(
    "target", [zoo.LinenChain(), zoo.LinenChain().init, lambda x: x, nn.relu, zoo.Chain]
)
def test_targets_that_cannot_be_watched(target):
    with pytest.raises(InputError, match=r"watch: got .*wanted an nnx.Module, or the apply method"):
        ici.watch(target, Probe())


def test_cotangents_need_a_backward_pass_of_ours():
    with pytest.raises(InputError, match="cotangents, which leave a backward pass only through"):
        ici.watch(zoo.Chain(rngs=nnx.Rngs(0)), Probe(cotangents=True))
