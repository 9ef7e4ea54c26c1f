"""Splits that batches do not divide: nothing is dropped, nothing counts twice, none is empty."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_run import experiment
from test_streaming import FromFile

import ici
from ici.data import Arrays, DataConfig, Dataset
from ici.engine.fleet import Fleet
from ici.engine.group import EVAL_BATCH, evaluation_data, hypers, prepare
from ici.engine.lane import Variables
from ici.models import TransformerConfig

BATCH = 8


def pairs(n_train, n_validation):
    rng = np.random.default_rng(0)
    n = n_train + n_validation
    inputs = rng.normal(size=(n, 6)).astype(np.float32)
    labels = rng.integers(0, 2, n).astype(np.int32)
    at = slice(None, n_train), slice(n_train, None)
    return {
        name: (inputs[part], labels[part])
        for name, part in zip(("train", "validation"), at, strict=True)
    }


class Files(DataConfig):
    """The same examples, the training ones behind a `StreamedSplit`."""

    def __init__(self, **of_split):
        self.of_split = of_split

    def load(self):
        split = {name: ici.data.Split(*pair) for name, pair in self.of_split.items()}
        empty = ici.data.Split(*(part[:0] for part in self.of_split["validation"]))
        train = FromFile(split["train"])
        return Dataset("files", train, split["validation"], empty, 2, "vectors")

    def fingerprint(self):
        return {"data": "files"}


def one(data, **changes):
    settings = {
        "data": data,
        "norm": ("none",),
        "lr": (1e-30,),  # a network that stays as it is
        "optimizer": "sgd",
        "seed": (3,),
        "batch_size": BATCH,
        "steps": BATCH + 1,
        "probe": ici.Probe(every=BATCH + 1),
        "reference_every": BATCH + 1,
        "eval_every": BATCH + 1,
        "devices": 1,
    }
    return experiment(**(settings | changes))


def losses(e, split):
    """Of the untrained network, one per example, and whether it is right: float64."""
    dataset = e.data.load()
    model = prepare(e, e.groups[0], dataset).program.model
    params, state = model.init(jax.random.key(e.seed[0]), split.inputs[:1])
    logits = np.asarray(
        model.apply(Variables(params, state), jnp.asarray(split.inputs), train=False)[0], np.float64
    )
    of_label = np.take_along_axis(logits, split.labels[:, None], axis=1)[:, 0]
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return log_sum - of_label, logits.argmax(axis=1) == split.labels


@pytest.mark.parametrize("source", [Arrays, Files])
@pytest.mark.parametrize("n_train", [0, 1, BATCH - 1])
def test_a_training_split_smaller_than_a_batch_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, source, n_train
):
    monkeypatch.setattr(Fleet, "__init__", lambda *args, **kwargs: pytest.fail("computed"))
    said = f"batch_size is {BATCH} and (arrays|files) has {n_train} training .*lower batch_size"
    with pytest.raises(ici.InputError, match=said if n_train else "train .*at least one"):
        ici.run(one(source(**pairs(n_train, 5))), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [Arrays, Files])
def test_an_empty_validation_split_is_refused_before_anything_is_done(tmp_path, source):
    with pytest.raises(ici.InputError, match="validation has no examples: wanted at least one"):
        ici.run(one(source(**pairs(BATCH, 0))), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("eval_size", [None, 2])
def test_an_evaluation_in_which_nothing_counts_is_refused(tmp_path, eval_size):
    """It would be 0 / 0."""
    tokens = np.random.default_rng(0).integers(2, 9, (12, 5)).astype(np.int32)
    labels = tokens.copy()
    labels[8 : 12 if eval_size is None else 10] = -1
    data = Arrays(train=(tokens[:8], labels[:8]), validation=(tokens[8:], labels[8:]))
    e = one(data, model=TransformerConfig(), norm=("layer",), eval_size=eval_size)
    with pytest.raises(ici.InputError, match=r"all labels of the [24] validation examples .* -1"):
        ici.run(e, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    if eval_size is not None:  # the next example has labels
        prepare(replace(e, eval_size=eval_size + 1), e.groups[0], data.load())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n_train", [BATCH, BATCH + 1])
def test_each_epoch_shows_every_example_once_whatever_is_left_over(tmp_path, n_train, stream):
    """b + 1 steps of b examples are b epochs of b + 1: the mean of the losses is that of all."""
    e = one(Arrays(**pairs(n_train, 1)), stream=stream)
    results = ici.run(e, tmp_path / "out")
    recorded = results.train.loss.values.ravel().astype(np.float64)
    each = losses(e, e.data.load().train)[0]
    # float32 rounds at 6e-8; a batch that lost or doubled one example of 9 is off by over 1e-3.
    np.testing.assert_allclose(recorded.mean(), each.mean(), rtol=1e-6)
    assert (np.ptp(recorded) < 1e-6) == (n_train == BATCH)
    evaluated = float(results.evaluation.loss.isel(step=0).squeeze())
    np.testing.assert_allclose(evaluated, losses(e, e.data.load().validation)[0], rtol=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, {"eval_size": EVAL_BATCH + 3}, {"data_parallel": 2, "devices": 2}]
)
@pytest.mark.parametrize("n", [1, EVAL_BATCH - 1, EVAL_BATCH, EVAL_BATCH + 1, 2 * EVAL_BATCH + 7])
def test_an_evaluation_is_the_mean_over_all_examples(n, changes):
    e = one(Arrays(**pairs(BATCH, n)), **changes)
    dataset = e.data.load()
    program = prepare(e, e.groups[0], dataset).program
    mesh = ici.engine.mesh.make_mesh(e.devices, e.data_parallel)
    reference = dataset.train.inputs
    fleet = Fleet(program, mesh, hypers(e), None, reference)
    seen = fleet.evaluate(*fleet.place(evaluation_data(e, dataset), batch_axis=1))
    loss, right = (each[: e.eval_size] for each in losses(e, dataset.validation))
    # float32 logits and sums of up to a thousand: a few 1e-7. One example too many is 1e-3.
    np.testing.assert_allclose(np.asarray(seen["loss"])[0], loss.mean(), rtol=2e-6)
    np.testing.assert_allclose(np.asarray(seen["accuracy"])[0], right.mean(), rtol=2e-7)
