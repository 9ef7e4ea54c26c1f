"""What a probe sees of modules as people write them, and what it must not change."""

from __future__ import annotations

import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import nnx

from ici.adapt import Variables, from_linen, from_nnx
from ici.errors import InputError
from ici.measure import Moments
from ici.probe import Probe

KEY = jax.random.key(0)
X = zoo.data()


def equal(a, b, **tolerance):
    check = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda p, q: check(p, q, **tolerance), a, b)


class Pair(nnx.Module):
    """Two linear layers; `between` joins them in its subclasses."""

    def __init__(self, *, rngs):
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.b = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.b(self.a(x))


class LinenPair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="b")(nn.Dense(4, name="a")(x))


def pair(module=Pair):
    model = from_nnx(lambda rngs: module(rngs=rngs))
    return model, model.init(KEY)


def linen(module):
    model = from_linen(module)
    return model, model.init(KEY, X)


# -- what is seen ------------------------------------------------------------------------------


class Flagged(Pair):
    def __call__(self, x, train=None, use_running_average=None):
        assert train is not use_running_average
        return self.b(self.a(x)) * (2.0 if train else 3.0)


class Training(Pair):
    def __call__(self, x, *, is_training, deterministic=False):
        return super().__call__(x) * (2.0 if is_training and not deterministic else 3.0)


@pytest.mark.parametrize("module", [Flagged, Training])
@pytest.mark.parametrize("train", [True, False])
def test_mode_keywords_are_filled_in_with_and_without_a_probe(module, train):
    model, variables = pair(module)
    plain = model.apply(variables, X, train=train)[0]
    watched, _, taps = model.apply(variables, X, train=train, probe=Probe())
    equal(plain, watched)
    assert taps.sites == ("a", "b")
    by_hand = pair()[0].apply(variables, X)[0] * (2.0 if train else 3.0)
    equal(plain, by_hand, rtol=1e-6)


def test_a_trace_in_one_thread_leaves_modules_of_another_alone():
    model, variables = pair(Training)
    expected = model.apply(variables, X, train=True)[0]
    seen = []

    class Spawns(Training):
        def __call__(self, x, *, is_training):
            # The class of `model` is being watched right now, by this trace.
            work = threading.Thread(target=lambda: seen.append(model.apply(variables, X)[0]))
            work.start()
            work.join()
            return self.inner(x, is_training=is_training)

        def __init__(self, *, rngs):
            self.inner = Training(rngs=rngs)

    watched, its = pair(Spawns)
    taps = watched.apply(its, X, probe=Probe(select="*"))[2]
    assert taps.sites == ("Spawns", "inner", "inner/a", "inner/b")
    assert len(seen) >= 1
    equal(seen[-1], expected)


def test_inputs_given_by_keyword_count():
    class Keyword(Pair):
        def __call__(self, x):
            return self.b(inputs=self.a(inputs=x))

    class LinenKeyword(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="b")(inputs=nn.Dense(4, name="a")(inputs=x))

    for module, keyword in (
        (pair, pair(Keyword)),
        (lambda: linen(LinenPair()), linen(LinenKeyword())),
    ):
        model, variables = module()
        out, _, taps = model.apply(variables, X, probe=Probe())
        other, _, other_taps = keyword[0].apply(variables, X, probe=Probe())
        equal(out, other)
        assert other_taps.sites == taps.sites == ("a", "b")
        equal(taps["b"], other_taps["b"])


@pytest.mark.parametrize("make", [pair, lambda: linen(LinenPair())])
def test_numpy_inputs_are_arrays_too(make):
    model, variables = make()
    taps = model.apply(variables, np.asarray(X), probe=Probe())[2]
    assert taps.sites == ("a", "b")
    equal(taps["a"], Moments.of(X))


def test_default_selection_is_weights_and_norms():
    class Counter(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            self.calls[...] += 1
            return x

    class Mixed(Pair):
        def __init__(self, *, rngs):
            super().__init__(rngs=rngs)
            self.counter = Counter()
            self.norm = nnx.LayerNorm(4, use_bias=False, use_scale=False, rngs=rngs)

        def __call__(self, x):
            return self.b(self.norm(self.counter(self.a(x))))

    model, variables = pair(Mixed)
    assert model.apply(variables, X, probe=Probe())[2].sites == ("a", "norm", "b")


def test_several_statistics_side_by_side():
    model, variables = pair()
    taps = model.apply(variables, X, probe=Probe(stats=("extremes", "moments")))[2]
    assert len(taps) == 2 and list(taps) == ["a", "b"]
    assert taps["a"] is taps.stat("extremes")["a"]
    equal(taps["a"].maximum, X.max(axis=0))
    equal(taps.stat("moments")["a"], Moments.of(X))
    assert taps.cotangents == {} and taps.features == (4, 4)


def test_taps_of_evaluation_are_of_evaluation():
    model = from_nnx(lambda rngs: zoo.Chain(dropout=0.5, rngs=rngs))
    variables = model.init(KEY)
    probe = Probe(select="head")
    still = model.apply(variables, X, train=False, probe=probe)[2]
    # Running averages at 0 and 1, no dropout: three layers of relu(W x), not normalised.
    hidden = X
    for block in variables.params["blocks"].values():
        hidden = jax.nn.relu(hidden @ block["linear"]["kernel"] / jnp.sqrt(1 + 1e-5))
    equal(still["head"], Moments.of(hidden), rtol=1e-4, atol=1e-5)


# -- what is left alone ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pair, lambda: linen(LinenPair())])
def test_not_finite_values_are_measured_like_others(make):
    model, variables = make()
    params = jax.tree.map(jnp.copy, variables.params)
    params["a"]["kernel"] = params["a"]["kernel"].at[0, 1].set(jnp.nan)
    probe = Probe(stats=("moments", "extremes"))
    out, _, taps = model.apply(Variables(params, variables.state), X, probe=probe)
    assert np.isfinite(taps["a"].std).all()
    assert np.isnan(taps["b"].std).tolist() == [False, True, False, False]
    assert taps.stat("extremes")["b"].nonfinite_fraction.tolist() == [0, 1, 0, 0]
    assert np.isnan(out).all()


def test_apply_changes_neither_variables_nor_module():
    built = []

    def build(rngs):
        built.append(zoo.Chain(dropout=0.5, rngs=rngs))
        return built[-1]

    model = from_nnx(build)
    variables = model.init(KEY)
    before = jax.tree.map(jnp.copy, variables)
    mean = np.asarray(built[-1].blocks[0].norm.mean[...])
    _, state, _ = model.apply(variables, X, probe=Probe())
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before, variables)
    assert all(jax.tree.leaves(same))
    equal(built[-1].blocks[0].norm.mean[...], mean)
    assert (state["blocks"][0]["norm"]["mean"] != mean).any()
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)


@pytest.mark.parametrize("make", [pair, lambda: linen(LinenPair())])
def test_shapes_without_computing(make):
    model, variables = make()
    probe = Probe(stats=("extremes", "moments"))
    shapes = model.taps_shape(jax.eval_shape(lambda: variables), X, probe)
    taps = model.apply(variables, X, probe=probe)[2]
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(
        lambda a: (a.shape, a.dtype), taps
    )


# -- Linen modules and their collections -------------------------------------------------------


def test_parameters_with_partitioning_metadata():
    kernel_init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    model, variables = linen(nn.Sequential([nn.Dense(3, kernel_init=kernel_init), nn.Dense(2)]))
    assert model.apply(variables, X, probe=Probe())[2].sites == ("layers_0", "layers_1")


def test_batchnorm_that_always_uses_the_batch_can_be_evaluated():
    class Always(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(x)

    model, variables = linen(Always())
    out, state, _ = model.apply(variables, X, train=False)
    equal(out, model.apply(variables, X)[0])
    equal(state["collections"], variables.state["collections"])


def test_what_a_module_sows_does_not_pile_up():
    class Sows(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("losses", "activity", jnp.sum(jnp.square(x)))
            return nn.Dense(2)(x)

    model, variables = linen(Sows())
    _, state, _ = model.apply(variables, X)
    assert jax.tree.structure(state) == jax.tree.structure(variables.state)


# -- errors ------------------------------------------------------------------------------------


def test_variables_of_another_model_with_as_many_arrays():
    model, variables = pair()
    renamed = {"a": variables.params["a"], "c": variables.params["b"]}
    with pytest.raises(InputError, match="not belong to Pair: what is given has c/bias, which"):
        model.apply(Variables(renamed, variables.state), X)


def test_names_of_layers_restored_as_text_are_refused_not_shuffled():
    model = from_nnx(lambda rngs: zoo.Chain(depth=11, rngs=rngs))
    variables = model.init(KEY)
    blocks = {str(i): block for i, block in variables.params["blocks"].items()}
    # As text, "10" sorts before "2": the blocks would change places.
    with pytest.raises(InputError, match="not belong to Chain: .*numbers of layers restored as"):
        model.apply(Variables(variables.params | {"blocks": blocks}, variables.state), X)


def test_a_module_where_a_factory_is_wanted():
    with pytest.raises(InputError, match="got a Pair: wanted a function that builds one"):
        from_nnx(Pair(rngs=nnx.Rngs(0)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": -1}, "every is -1"),
        ({"every": 2.5}, "every is 2.5"),
        ({"stats": "moments"}, "stats is 'moments'"),
        ({"select": ("a", "b")}, r"select is \('a', 'b'\).*module types"),
        ({"select": 3}, "select is 3"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        Probe(**settings)


def test_statistics_may_come_as_a_list():
    model, variables = pair()
    probe = Probe(stats=["moments"])  # pyright: ignore[reportArgumentType]
    assert jax.jit(lambda v: model.apply(v, X, probe=probe)[2])(variables).sites == ("a", "b")
