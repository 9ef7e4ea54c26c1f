"""From an experiment to its record: the loop, its bookkeeping, its folder."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

import ici
from ici.adapt import Variables
from ici.data import Arrays, batch_indices
from ici.engine.group import chunk_steps, evaluation_batches, input_spec, prepare, reference_inputs
from ici.engine.step import cross_entropy, gradients
from ici.measure import Moments
from ici.store.results import open_results

WIDTH = 16


def arrays(n=160, features=6):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n).astype(np.int32)
    inputs = (rng.normal(size=(n, features)) + 2 * labels[:, None]).astype(np.float32)
    return Arrays(train=(inputs[:96], labels[:96]), validation=(inputs[96:], labels[96:]))


def experiment(**changes):
    settings = {
        "name": "tiny",
        "data": arrays(),
        "model": ici.MLPConfig(width=WIDTH),
        "norm": ("none", "batch"),
        "depth": (2,),
        "lr": (1e-3, 1e-2),
        "seed": (0, 1),
        "steps": 50,
        "batch_size": 16,
        "probe": ici.Probe(every=5),
        "reference_size": 32,
        "reference_every": 20,
        "eval_every": 10,
        "devices": 2,
    }
    return ici.Experiment(**(settings | changes))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return ici.run(experiment(), tmp_path_factory.mktemp("run") / "out")


def test_labels_and_shapes(results):
    assert results.complete
    sizes = dict(results.train.sizes)
    assert sizes == {"norm": 2, "depth": 1, "lr": 2, "seed": 2, "step": 50}
    assert results.train.norm.values.tolist() == ["none", "batch"]
    assert results.probe.step.values.tolist() == list(range(0, 50, 5))
    assert results.reference.step.values.tolist() == [0, 20, 40, 50]
    assert results.evaluation.step.values.tolist() == [0, 10, 20, 30, 40, 50]
    sites = ["blocks/0/linear", "blocks/0/norm", "blocks/1/linear", "blocks/1/norm", "head"]
    assert results.probe.site.values.tolist() == sites
    mean = results.probe["mean"]
    assert mean.dims == ("norm", "depth", "lr", "seed", "step", "site", "feature")
    # The first site has the data's 6 features, the others 16.
    assert np.isfinite(mean.sel(site="blocks/0/linear").values).sum(axis=-1).max() == 6
    assert np.isfinite(mean.sel(site="head").values).all()


def test_everything_is_there(results):
    for dataset in (results.train, results.evaluation):
        for name, values in dataset.data_vars.items():
            assert np.isfinite(values.values).all(), name
    assert np.isnan(results.runs.diverged_at.values).all()
    assert (results.probe["count"] == 16).all()
    assert (results.reference["count"] == 32).all()


def test_record_equals_a_plain_loop(results):
    """The same run written as one would by hand: no fleet, no scan, no record."""
    config = experiment()
    dataset = config.data.load()
    model = prepare(config, config.groups[1], dataset).program.model
    params, state = model.init(jax.random.key(1), dataset.train.inputs[:1])
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init(params)
    run = {"norm": "batch", "lr": 1e-2, "seed": 1, "depth": 2}
    recorded = results.train.sel(run)
    for step in range(12):
        index = batch_indices(96, 16, 1, step, 1)[0]
        batch = dataset.train.inputs[index], dataset.train.labels[index]
        if step in (0, 10):
            expected = results.evaluation.sel(run | {"step": step})
            logits, _, _ = model.apply(
                Variables(params, state), dataset.validation.inputs, train=False
            )
            loss = cross_entropy(logits, dataset.validation.labels)
            hits = (np.argmax(logits, -1) == dataset.validation.labels).mean()
            np.testing.assert_allclose(expected.loss, loss, rtol=1e-4)
            np.testing.assert_allclose(expected.accuracy, hits, atol=1e-6)
        probe = config.probe if step % 5 == 0 else None
        result = gradients(model, cross_entropy, Variables(params, state), batch, probe)
        # float32 rounding, amplified by a dozen Adam steps
        np.testing.assert_allclose(recorded.loss.sel(step=step), result.loss, rtol=2e-4)
        if result.taps is not None:
            at = results.probe.sel(run | {"step": step})
            for site, moments in result.taps.items():
                width = moments.mean.shape[-1]
                np.testing.assert_allclose(
                    at["mean"].sel(site=site)[:width], moments.mean, atol=2e-4
                )
                np.testing.assert_allclose(at["std"].sel(site=site)[:width], moments.std, atol=2e-4)
        updates, opt_state = optimizer.update(result.grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        state = result.state


def test_first_site_of_plain_vectors_never_moves_on_the_reference_batch(results):
    for name in ("mean", "std"):
        first = results.reference[name].sel(site="blocks/0/linear").isel(feature=slice(0, 6))
        assert (first == first.isel(step=0)).all()
    a = Moments.of(reference_inputs(experiment(), arrays().load()))
    np.testing.assert_allclose(first.isel(norm=0, depth=0, lr=0, seed=0, step=0), a.std, rtol=1e-5)


def test_finished_folder_is_opened_and_not_trained_again(results):
    before = (results.path / "manifest.json").stat().st_mtime_ns
    again = ici.run(experiment(), results.path, on_progress=lambda p: pytest.fail("trained"))
    assert (results.path / "manifest.json").stat().st_mtime_ns == before
    assert again.train.equals(results.train)


def test_same_experiment_twice_is_the_same_record_bitwise(results, tmp_path):
    again = ici.run(experiment(), tmp_path / "again")
    for node in ("train", "probe", "reference", "evaluation"):
        assert getattr(again, node).equals(getattr(results, node)), node


def test_other_experiment_in_the_folder_is_refused_with_the_difference(results):
    with pytest.raises(ici.InputError, match=r"another experiment.*lr: \[0.001, 0.01\] -> \[0.1\]"):
        ici.run(experiment(lr=(0.1,)), results.path)
    assert open_results(results.path).complete


def test_resume_keeps_finished_groups_and_gives_the_same_record(results, tmp_path):
    out = tmp_path / "out"

    def die_in_the_second_group(progress):
        if progress.norm == "batch" and progress.step >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ici.run(experiment(), out, on_progress=die_in_the_second_group)
    unfinished = open_results(out)
    assert not unfinished.complete
    # Readable as far as it was committed: the first group whole, the second up to the last chunk.
    losses = unfinished.train.loss
    assert np.isfinite(losses.sel(norm="none")).all()
    assert np.isfinite(losses.sel(norm="batch", step=slice(0, 9))).all()
    seen = []
    resumed = ici.run(experiment(), out, resume=True, on_progress=lambda p: seen.append(p.norm))
    assert set(seen) == {"batch"}
    for node in ("train", "probe", "reference", "evaluation"):
        assert getattr(resumed, node).equals(getattr(results, node)), node


def test_overwrite_replaces_the_record(tmp_path):
    out = tmp_path / "out"
    ici.run(experiment(norm=("none",), lr=(1e-3,), seed=(0,)), out)
    new = ici.run(experiment(norm=("none",), lr=(1e-2,), seed=(0,)), out, overwrite=True)
    assert new.train.lr.values.tolist() == [1e-2]
    assert open_results(out).train.sizes["lr"] == 1


def test_diverged_run_is_a_result(tmp_path):
    config = experiment(norm=("none",), optimizer="sgd", lr=(1e-2, 1e6), probe=ici.Probe(every=1))
    results = ici.run(config, tmp_path / "out")
    assert results.complete
    diverged = results.runs.diverged_at.sel(norm="none", depth=2)
    assert np.isfinite(diverged.sel(lr=1e6)).all()
    assert np.isnan(diverged.sel(lr=1e-2)).all()
    for seed in (0, 1):
        at = int(diverged.sel(lr=1e6, seed=seed))
        loss = results.train.loss.sel(norm="none", depth=2, lr=1e6, seed=seed)
        assert np.isfinite(loss.sel(step=slice(0, at - 1))).all()
        assert not loss.sel(step=at) <= 1e3 * loss.sel(step=0)
        assert np.isnan(loss.sel(step=slice(at + 1, None))).all()
        for dataset in (results.probe, results.reference):
            after = dataset["mean"].sel(norm="none", depth=2, lr=1e6, seed=seed)
            assert np.isnan(after.sel(step=slice(at + 1, None))).all()
    # The run beside it is the run it would have been alone.
    alone = ici.run(replace(config, lr=(1e-2,)), tmp_path / "alone")
    assert alone.train.sel(lr=1e-2).equals(results.train.sel(lr=1e-2))


def test_all_diverged_ends_early_and_completes(tmp_path):
    seen = []
    config = experiment(norm=("none",), optimizer="sgd", lr=(1e6,), steps=200)
    results = ici.run(config, tmp_path / "out", on_progress=lambda p: seen.append(p))
    assert results.complete and seen[-1].n_running == 0
    assert seen[-1].step < 200
    assert results.train.sizes["step"] == 200
    assert np.isnan(results.train.loss.sel(step=199)).all()


@pytest.mark.slow
def test_stop_at_target_freezes_a_run(tmp_path):
    config = experiment(norm=("batch",), lr=(1e-2,), target_accuracy=0.6, stop_at_target=True)
    results = ici.run(config, tmp_path / "out")
    accuracy = results.evaluation.accuracy.sel(norm="batch", depth=2, lr=1e-2)
    for seed in (0, 1):
        reached = accuracy.sel(seed=seed).dropna("step")
        met = reached.step.values[reached.values >= 0.6]
        assert len(met) == 1 and met[0] == reached.step.values[-1] < 50
        loss = results.train.loss.sel(norm="batch", depth=2, lr=1e-2, seed=seed)
        assert np.isnan(loss.sel(step=slice(int(met[0]) + 1, None))).all()


def test_weight_decay_is_a_dimension_where_it_is_swept(tmp_path):
    config = experiment(norm=("none",), lr=(1e-2,), weight_decay=(0.0, 0.1), optimizer="adamw")
    results = ici.run(config, tmp_path / "out")
    loss = results.train.loss.sel(norm="none", depth=2, lr=1e-2, seed=0)
    assert loss.dims == ("weight_decay", "step")
    assert loss.sel(weight_decay=0.0)[0] == loss.sel(weight_decay=0.1)[0]
    assert (loss.sel(weight_decay=0.0) != loss.sel(weight_decay=0.1)).any()


@pytest.mark.slow
def test_groups_of_other_depths_share_the_record(tmp_path):
    config = experiment(norm=("batch",), depth=(1, 3), lr=(1e-2,), seed=(0,))
    results = ici.run(config, tmp_path / "out")
    assert results.train.depth.values.tolist() == [1, 3]
    shallow = results.probe["mean"].sel(depth=1, site="blocks/2/linear")
    assert np.isnan(shallow).all()
    assert np.isfinite(results.probe["mean"].sel(depth=3, site="blocks/2/linear")).all()
    sites = results.probe.site.values.tolist()
    assert sites[-1] == "head" and sites.index("blocks/1/norm") < sites.index("blocks/2/linear")


def test_cotangents_are_recorded(tmp_path):
    probe = ici.Probe(every=5, cotangents=True, stats=("moments", "extremes"))
    results = ici.run(
        experiment(norm=("none",), lr=(1e-2,), seed=(0,), probe=probe), tmp_path / "out"
    )
    assert (results.probe.cotangent_std.sel(site="head") > 0).all()
    assert (
        (results.probe.maximum >= results.probe["mean"])
        .where(results.probe["mean"].notnull())
        .all()
    )
    assert "cotangent_std" not in results.reference


@pytest.mark.parametrize(
    ("cadences", "steps", "expected"),
    [
        ((10, 50, 50), 600, 50),
        ((1, 50, 20), 600, 10),
        ((5, 1000, 1000), 1000, 100),
        ((7, 49, 14), 50, 7),
        ((10, 50, 50), 60, 10),  # 50 and then 10 would be two programs
        ((1, 97, 97), 100, 97),  # but steps one by one are too many dispatches
    ],
)
def test_chunk_meets_every_cadence(cadences, steps, expected):
    every, reference_every, eval_every = cadences
    config = experiment(
        probe=ici.Probe(every=every),
        reference_every=reference_every,
        eval_every=eval_every,
        steps=steps,
    )
    assert chunk_steps(config) == expected


def test_a_chunk_of_streamed_examples_fits_its_memory():
    config = experiment(reference_every=40, eval_every=40, steps=400)
    assert chunk_steps(config) == 40
    assert chunk_steps(config, step_bytes=2**28 / 20) == 20
    assert chunk_steps(config, step_bytes=2**29) == 5  # a probed step and those up to the next


def test_evaluation_batches_hold_each_example_once():
    data = arrays().load()
    batches, weights = evaluation_batches(data.validation)
    assert weights.sum() == len(data.validation.labels)
    kept = np.asarray(batches.labels)[weights == 1]
    np.testing.assert_array_equal(kept, data.validation.labels)
    assert input_spec(data).n_features == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1000}, "batch_size is 1000.*96 training"),
        ({"probe": ici.Probe(select="nowhere")}, "matches no site.*blocks/0/linear"),
        ({"devices": 999}, "devices is 999: this process has"),
    ],
)
def test_bad_input_leaves_no_trace(tmp_path, changes, message):
    with pytest.raises(ici.InputError, match=message):
        ici.run(experiment(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ici.InputError, match="not a record of ici"):
            ici.run(experiment(), tmp_path, **flags)
    assert (tmp_path / "thesis.tex").read_text() == "chapter one"


def test_data_that_changed_is_refused(tmp_path):
    class Changing(Arrays):
        def fingerprint(self):
            return {"data": "changing"}

    out = tmp_path / "out"
    base = arrays()
    config = experiment(data=Changing(train=base.train, validation=base.validation))

    def die(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ici.run(config, out, on_progress=die)
    inputs, labels = base.train
    other = Changing(train=(inputs + 1, labels), validation=base.validation)
    with pytest.raises(ici.InputError, match="recorded on other data"):
        ici.run(experiment(data=other), out, resume=True)


def test_failure_inside_a_run_is_marked(tmp_path):
    out = tmp_path / "out"

    def fail(progress):
        raise RuntimeError("hook")

    with pytest.raises(RuntimeError, match="hook"):
        ici.run(experiment(), out, on_progress=fail)
    assert json.loads((out / "manifest.json").read_text())["status"] == "failed"
