"""What an experiment can ask of training, and what the record then holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_run import arrays, experiment

import ici
from ici.data import Arrays, DataConfig, Dataset, Split, batch_indices
from ici.engine.group import evaluation_data, input_spec
from ici.engine.task import cross_entropy, squared_error, task_named

VOCAB, LENGTH = 11, 6


@dataclass(frozen=True)
class Counting(DataConfig):
    """Language-model data: each token is the one before plus one; a part of a row is padding."""

    def load(self):
        starts = np.random.default_rng(0).integers(2, VOCAB, 64)
        tokens = 2 + (starts[:, None] + np.arange(LENGTH + 1)) % (VOCAB - 2)
        inputs, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        inputs[::2, 4:], labels[::2, 4:] = 0, -1
        split = Split(inputs, labels)
        return Dataset(
            "counting", split, split, split, VOCAB, "tokens", VOCAB, task="language_model"
        )


class Bigrams(nnx.Module):
    def __init__(self, vocab_size, *, rngs):
        self.embed = nnx.Embed(vocab_size, 8, rngs=rngs)
        self.head = nnx.Linear(8, vocab_size, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.embed(tokens))


@dataclass(frozen=True)
class BigramConfig:
    penalty: float = 0.0

    def build(self, norm, depth, spec):
        assert spec.task == "language_model" and spec.separator == 1
        return lambda rngs: Bigrams(spec.vocab_size, rngs=rngs)

    def loss(self, spec):
        if not self.penalty:
            return None
        return lambda logits, labels: (
            cross_entropy(logits, labels) + self.penalty * jnp.mean(logits**2)
        )


def bigrams(**changes):
    settings = {"data": Counting(), "model": BigramConfig(), "norm": "none", "lr": 0.1, "seed": 0}
    return experiment(**(settings | changes))


def test_a_language_model_is_scored_over_the_tokens_that_count(tmp_path):
    results = ici.run(bigrams(target_loss=0.2, stop_at_target=True), tmp_path / "lm")
    assert results.task == "language_model"
    loss = results.evaluation.loss.squeeze().values
    assert loss[0] == pytest.approx(np.log(VOCAB), rel=0.2)
    reached = np.flatnonzero(loss <= 0.2)[0]
    assert results.evaluation.accuracy.squeeze().values[reached] == 1.0
    # Frozen there: later evaluations are blank.
    assert np.isnan(loss[reached + 1 :]).all() and reached + 1 < len(loss)


def test_totals_count_each_target_once():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    labels = jnp.asarray(rng.integers(-1, 5, (3, 4)))
    weights = jnp.asarray([1.0, 1.0, 0.0])
    loss, correct, count = task_named("language_model").totals(logits, labels, weights)
    expected = [0.0, 0, 0]
    for b in range(2):
        for t in range(4):
            if labels[b, t] >= 0:
                p = np.exp(np.asarray(logits[b, t], np.float64))
                expected[0] -= np.log(p[labels[b, t]] / p.sum())
                expected[1] += int(p.argmax() == labels[b, t])
                expected[2] += 1
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    assert (float(correct), float(count)) == (expected[1], expected[2])
    np.testing.assert_allclose(
        cross_entropy(logits[:2], labels[:2]), expected[0] / expected[2], rtol=1e-5
    )
    assert float(cross_entropy(logits, jnp.full((3, 4), -1))) == 0.0


def test_a_model_may_add_to_the_loss(tmp_path):
    plain = ici.run(bigrams(steps=10, eval_every=10), tmp_path / "plain")
    punished = ici.run(
        bigrams(model=BigramConfig(penalty=3.0), steps=10, eval_every=10), tmp_path / "punished"
    )
    assert punished.train.loss[..., 0] > plain.train.loss[..., 0]
    # Evaluation is the task's loss alone: equal where the weights are.
    np.testing.assert_array_equal(plain.evaluation.loss[..., 0], punished.evaluation.loss[..., 0])


def regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6)).astype(np.float32)
    y = (x @ rng.normal(size=(6, 2))).astype(np.float32)
    return Arrays(
        train=(x[:64], y[:64]), validation=(x[64:], y[64:]), task="regression", n_classes=2
    )


def test_real_targets_have_a_loss_and_no_accuracy(tmp_path):
    results = ici.run(
        experiment(data=regression(), norm="none", lr=1e-2, seed=0), tmp_path / "regression"
    )
    assert list(results.evaluation.data_vars) == ["loss"]
    loss = results.evaluation.loss.squeeze().values
    assert loss[-1] < 0.5 * loss[0]
    a, b = np.asarray([[1.0, 2.0]]), np.asarray([[0.0, 4.0]])
    assert float(squared_error(jnp.asarray(a), jnp.asarray(b))) == 2.5
    with pytest.raises(ici.InputError, match="target_accuracy is 0.5 .* wanted target_loss"):
        ici.run(experiment(data=regression(), target_accuracy=0.5), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_part_of_the_validation_split_may_do():
    e, data = experiment(eval_size=10), arrays().load()
    (examples, weights), (_, whole) = (
        evaluation_data(e, data), evaluation_data(replace(e, eval_size=None), data)
    )  # fmt: skip
    assert weights.sum() == 10 and whole.sum() == len(data.validation)
    kept = np.asarray(examples.labels)[weights == 1]
    np.testing.assert_array_equal(kept, data.validation.labels[:10])
    with pytest.raises(ici.InputError, match="eval_size is 0"):
        experiment(eval_size=0)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    e = experiment(
        norm="none",
        lr=1e-2,
        seed=0,
        beta1=(0.5, 0.9),
        beta2=(0.9, 0.999),
        warmup_steps=(0, 20),
        schedule="cosine",
        clip_norm=1.0,
        ema_decay=0.9,
    )
    return e, ici.run(e, tmp_path_factory.mktemp("swept") / "out")


def test_betas_and_warm_up_are_lanes(swept, tmp_path):
    e, results = swept
    assert dict(results.train.loss.sizes) == {
        "norm": 1,
        "depth": 1,
        "lr": 1,
        "warmup_steps": 2,
        "beta1": 2,
        "beta2": 2,
        "seed": 1,
        "step": 50,
    }
    alone = ici.run(
        replace(e, beta1=(0.5,), beta2=(0.999,), warmup_steps=(20,)), tmp_path / "alone"
    )
    one = results.train.loss.sel(beta1=0.5, beta2=0.999, warmup_steps=20)
    np.testing.assert_array_equal(one.squeeze(), alone.train.loss.squeeze())
    losses = results.train.loss.values.reshape(-1, 50)[:, -1]
    assert len(np.unique(losses)) == 8  # and every one of them is another run


def test_record_equals_a_plain_loop_with_the_same_settings(swept):
    e, results = swept
    dataset = e.data.load()
    model = ici.from_nnx(e.model.build("none", 2, input_spec(dataset)))
    params, state = model.init(jax.random.key(0), dataset.train.inputs[:1])
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(0.5, 0.9))
    opt_state, ema = adam.init(params), params

    @jax.jit
    def step(params, opt_state, ema, x, y, lr):
        def loss(params):
            return cross_entropy(model.apply(ici.Variables(params, state), x)[0], y)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = adam.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
        ema = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, ema, params)
        return value, params, opt_state, ema

    losses = []
    for i, rows in enumerate(batch_indices(96, e.batch_size, 0, 0, 50)):
        lr = 1e-2 * ((i + 1) / 20 if i < 20 else 0.5 * (1 + np.cos(np.pi * (i - 20) / 30)))
        x, y = dataset.train.take(rows)
        value, params, opt_state, ema = step(params, opt_state, ema, x, y, np.float32(lr))
        losses.append(float(value))
    at = {"beta1": 0.5, "beta2": 0.9, "warmup_steps": 20}
    recorded = results.train.loss.sel(at).squeeze()
    # Another program with other fusions: the same to rounding over 50 steps of this calm run.
    np.testing.assert_allclose(recorded, losses, rtol=2e-3)
    x, y = dataset.validation.inputs, dataset.validation.labels
    for name, weights in (("loss", params), ("ema_loss", ema)):
        value = cross_entropy(model.apply(ici.Variables(weights, state), x, train=False)[0], y)
        last = results.evaluation[name].sel(at).squeeze()[-1]
        np.testing.assert_allclose(last, value, rtol=2e-3)
    assert abs(float(results.evaluation.ema_loss.sel(at).squeeze()[-1]) - losses[-1]) > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta2": 0.9, "optimizer": "momentum"}, "beta2 is .0.9,. and optimizer is 'momentum'"),
        ({"beta1": 1.0}, r"beta1 is 1.0: wanted a number in \[0, 1\)"),
        ({"warmup_steps": 51}, "warmup_steps is 51 and steps is 50"),
        ({"decay_fraction": 0.0}, "decay_fraction is 0.0"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"accumulation_steps": 3}, "batch_size is 16 and is split by accumulation_steps 3"),
        ({"augment": "flop"}, "unknown augment 'flop'"),
        ({"target_loss": 1.0, "target_accuracy": 0.5}, "wanted one target"),
        ({"bias_correction": False, "optimizer": "sgd"}, "bias_correction is False"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'.*cosine"),
    ],
)
def test_bad_settings_are_told_at_birth(changes, message):
    with pytest.raises(ici.InputError, match=message):
        experiment(**changes)


@pytest.mark.slow
def test_local_statistics_are_those_of_each_devices_part(tmp_path):
    def losses(name, **changes):
        e = experiment(lr=1e-2, seed=0, steps=20, reference_every=20, **changes)
        return ici.run(e, tmp_path / name).train.loss.squeeze()

    local = losses("local", norm="batch:local=true", devices=2, data_parallel=2)
    ghost = losses("ghost", norm="batch:ghost=8", devices=1)
    whole = losses("whole", norm="batch", devices=2, data_parallel=2)
    # The same numbers in programs that add in other orders.
    np.testing.assert_allclose(local, ghost, rtol=1e-3)
    assert float(abs(whole - ghost).max()) > 1e-2


def test_a_norm_over_the_batch_needs_one(tmp_path):
    for changes, message in (
        ({"norm": "batch", "batch_size": 1}, "statistics over 1 example: wanted at least 2"),
        ({"norm": "batch", "batch_size": 4, "accumulation_steps": 4}, "over 1 example"),
        ({"norm": "batch:local=true", "batch_size": 2, "data_parallel": 2}, "on each device"),
        ({"norm": "batch:ghost=5"}, "a batch of 16: wanted ghost batches that divide it"),
    ):
        with pytest.raises(ici.InputError, match=message):
            ici.run(experiment(**changes), tmp_path / "none")
    assert not (tmp_path / "none").exists()
