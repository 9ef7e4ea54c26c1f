"""Norms by name and options, in evaluation, and under what models do with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ici.adapt import Variables, from_nnx
from ici.errors import InputError
from ici.models.norms import check_norm, make_norm, makes_bias_redundant, names, parse, register
from ici.probe import Probe

ALL = {
    "none", "batch", "layer", "rms", "group", "instance", "weight", "batch_noisy", "dyt", "lp",
    "l1", "l2", "linf",
}  # fmt: skip
OVER_BATCH = ("batch", "batch:ghost=4", "batch_noisy", "l1", "linf", "lp:p=3")


def apply(name, x):
    model = from_nnx(lambda rngs: make_norm(name, x.shape[-1], rngs=rngs))
    out, state, _ = model.apply(model.init(jax.random.key(0)), jnp.asarray(x))
    return np.asarray(out), state


def test_the_names():
    assert set(names()) >= ALL


def test_batch_is_the_one_of_flax():
    norm = make_norm("batch", 4, rngs=nnx.Rngs(0))
    assert type(norm) is nnx.BatchNorm
    assert (norm.momentum, norm.epsilon, norm.use_fast_variance) == (0.9, 1e-5, False)


def test_normalised_values_have_the_stated_moments():
    x = np.random.default_rng(3).normal(2, 0.01, size=(256, 8)).astype(np.float32)
    out, state = apply("batch", x)
    variance = x.astype(np.float64).var(0)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.var(0), variance / (variance + 1e-5), rtol=1e-3)
    # running averages: 0.9 · initial + 0.1 · batch
    np.testing.assert_allclose(state["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    out, _ = apply("layer", x.T)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "p"),
    [("batch:ghost=4,momentum=0.7", None), ("l1:momentum=0.7", 1), ("linf:momentum=0.7", np.inf)],
)
def test_running_averages_serve_in_evaluation(spec, p):
    x = np.random.default_rng(3).normal(2, 3, size=(8, 5)).astype(np.float32)
    model = from_nnx(lambda rngs: make_norm(spec, 5, rngs=rngs))
    variables = model.init(jax.random.key(0))
    _, state, _ = model.apply(variables, jnp.asarray(x))
    parts = x.astype(np.float64).reshape(*((2, 4) if p is None else (1, 8)), 5)
    if p is None:
        moment = parts.var(1).mean(0)  # the mean over ghost batches
    else:
        moment = np.abs(parts[0]).mean(0) if p == 1 else np.abs(parts[0]).max(0)
    mean, moment = 0.3 * x.mean(0), 0.7 + 0.3 * moment
    np.testing.assert_allclose(state["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state["moment"], moment, rtol=1e-5)
    after = Variables(variables.params, state)
    out, unmoved, _ = model.apply(after, jnp.asarray(x), train=False)
    divisor = np.sqrt(moment + 1e-5) if p is None else moment + 1e-5
    np.testing.assert_allclose(out, (x - mean) / divisor, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, unmoved, state)


@pytest.mark.parametrize("spec", ["batch", "batch:ghost=1", "batch_noisy", "l1", "lp:p=3", "linf"])
@pytest.mark.parametrize("x", [jnp.ones((1, 3)), jnp.zeros((2, 3))])
def test_one_example_or_one_value_gives_no_nan(spec, x):
    model = from_nnx(lambda rngs: make_norm(spec, 3, rngs=rngs))
    variables = model.init(jax.random.key(0))
    out, grad = jax.value_and_grad(lambda x: jnp.sum(model.apply(variables, x)[0]))(x)
    assert np.isfinite(out) and np.isfinite(grad).all()


def test_too_few_examples_are_named():
    for spec in OVER_BATCH:
        assert parse(spec).needs_batch
        parse(spec).check_batch(8)
        with pytest.raises(InputError, match="over 1 example.*instance|1: wanted ghost"):
            parse(spec).check_batch(1)
    with pytest.raises(InputError, match="over 1 example on each device: wanted at least 2"):
        parse("batch:local=true").check_batch(1)
    with pytest.raises(InputError, match="ghost=1 would take its statistics over 1 example"):
        parse("batch:ghost=1").check_batch(8)
    with pytest.raises(InputError, match="ghost=3 and a batch of 8: wanted ghost batches that"):
        parse("batch:ghost=3").check_batch(8)
    for spec in ALL - {"batch", "batch_noisy", "lp", "l1", "l2", "linf"}:
        assert not parse(spec).needs_batch
        parse(spec).check_batch(1)
    with pytest.raises(InputError, match="batch of 8 and ghost batches of 3"):
        apply("batch:ghost=3", np.ones((8, 2), np.float32))


def test_what_cancels_a_bias():
    centring = {name for name in ALL if makes_bias_redundant(name)}
    assert centring == {"batch", "batch_noisy", "instance"}
    assert makes_bias_redundant("batch:ghost=4") and makes_bias_redundant("l1:centred=true")
    for spec in ("batch:ghost=4", "l1:centred=true", "instance", "l1", "layer"):
        norm = parse(spec)
        module = norm.layer(4, layout="image", rngs=nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(1), (8, 3, 3, 4))
        bias = jnp.arange(4.0).reshape(1, 1, 1, 4)
        same = np.allclose(module(x), module(x + bias), atol=1e-5)
        assert same == norm.makes_bias_redundant, spec


@pytest.mark.parametrize("spec", sorted(ALL))
def test_a_probe_takes_it_for_a_norm(spec):
    model = from_nnx(lambda rngs: make_norm(spec, 4, layout="image", rngs=rngs))
    x = jax.random.normal(jax.random.key(1), (8, 2, 2, 4))
    taps = model.apply(model.init(jax.random.key(0)), x, probe=Probe())[2]
    assert [site.is_norm for site in taps.watched] == [True]


def test_local_statistics_are_those_of_each_device():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    mesh = jax.make_mesh((1, 2), ("run", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    halves = np.concatenate([apply("batch", half)[0] for half in (x[:4], x[4:])])
    whole = apply("batch", x)[0]
    assert np.abs(halves - whole).max() > 0.1
    np.testing.assert_allclose(apply("batch:local=true", x)[0], whole, atol=1e-5)  # no mesh
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(apply("batch:local=true", x)[0], halves, atol=1e-5)
        np.testing.assert_allclose(apply("batch:ghost=8", x)[0], whole, atol=1e-5)
        with pytest.raises(InputError, match="batch of 8 and ghost batches of 8 on each of 2 dev"):
            apply("batch:local=true,ghost=8", x)
    assert parse("batch:local=true").is_local and not parse("batch:local=false").is_local


def test_a_users_norm():
    @register("halve")
    def halve(features, *, rngs):
        class Halve(nnx.Module):
            def __call__(self, x):
                return x / 2

        return Halve()

    assert "halve" in names()
    np.testing.assert_array_equal(apply("halve", np.ones((2, 3), np.float32))[0], 0.5)
    assert not makes_bias_redundant("halve") and makes_bias_redundant("batch")


def test_a_users_options_and_layout():
    @register("scaled", centres=True)
    def scaled(features, *, by: float = 1.0, times: int = 1, layout="vector", rngs):
        class Scaled(nnx.Module):
            def __call__(self, x):
                return x * by * times + (layout == "image")

        return Scaled()

    ones = jnp.ones((2, 1, 1, 3))
    for spec, expected in (("scaled", 2), ("scaled:by=2,times=3", 7)):
        layer = parse(spec).layer(3, layout="image", rngs=nnx.Rngs(0))
        np.testing.assert_array_equal(layer(ones), expected)
    with pytest.raises(InputError, match="unknown option of norm 'scaled' 'bye'.*'by'"):
        parse("scaled:bye=2")
    with pytest.raises(InputError, match="times is '1.5'; wanted an integer"):
        parse("scaled:times=1.5")
    assert makes_bias_redundant("scaled:by=2")


def test_specs_are_read_and_written():
    for spec in (
        "none",
        "batch:ghost=32,momentum=0.99",
        "lp:p=inf,affine=false",
        "batch:ghost=none",
    ):
        assert check_norm(spec) == spec == str(parse(spec))
    assert parse(" batch : ghost = 32 ") == parse("batch:ghost=32")
    assert hash(parse("batch:ghost=32")) == hash(parse("batch:ghost=32"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bach", "unknown norm 'bach'.*Did you mean 'batch'"),
        (None, "norm is None: wanted a name"),
        ("batch:gost=2", "unknown option of norm 'batch' 'gost'.*Did you mean 'ghost'"),
        ("batch:rngs=2", "unknown option"),
        ("batch_noisy:sigma=2", "unknown option of norm 'batch_noisy' 'sigma'.*'n_sigma'"),
        ("dyt:p=2", "unknown option of norm 'dyt' 'p'"),
        ("l1:p=2", "unknown option of norm 'l1' 'p'"),
        ("none:epsilon=1", "'none' takes no options; use 'none'"),
        ("batch:", "'' is not option=value"),
        ("batch:ghost", "'ghost' is not option=value"),
        ("batch:ghost=2,ghost=4", "'ghost=4' is twice"),
        ("batch:ghost=two", "ghost is 'two'; wanted an integer or none"),
        ("batch:ghost=0", "ghost is 0; wanted ghost >= 1"),
        ("batch:momentum=1", "momentum is 1; wanted 0 <= momentum < 1"),
        ("batch:epsilon=nan", "epsilon is nan; wanted 0 < epsilon"),
        ("batch:affine=yes", "affine is 'yes'; wanted true or false"),
        ("lp:p=0.5", "p is 0.5; wanted 1 <= p <= 8, or inf"),
        ("batch_noisy:n_sigma=0.5", "n_sigma is 0.5; wanted 1 <= n_sigma"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(InputError, match=message):
        parse(spec)


def test_features_that_do_not_fit():
    def layer(spec, features, layout):
        return parse(spec).layer(features, layout=layout, rngs=nnx.Rngs(0))

    with pytest.raises(InputError, match="groups is 5 and there are 16 channels: wanted"):
        layer("group:groups=5", 16, "image")
    with pytest.raises(InputError, match="groups is 32 and there are 48 channels"):
        layer("group", 48, "image")
    with pytest.raises(InputError, match="groups is 8 for 8 features: .* wanted groups <= 4"):
        layer("group:groups=8", 8, "vector")
    with pytest.raises(InputError, match="'instance' on a sequence"):
        layer("instance", 8, "sequence")
    with pytest.raises(InputError, match="unknown layout 'grid'"):
        layer("batch", 8, "grid")
    assert [layer("group", n, "image").groups for n in (3, 16, 64)] == [3, 16, 32]
    assert [layer("group", n, "vector").groups for n in (6, 64, 128)] == [3, 32, 32]
