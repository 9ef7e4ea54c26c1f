"""Heavy measurements on a schedule: recorded, labelled, and without any effect on the runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_run import experiment  # pyright: ignore[reportMissingImports]

import ici
from ici.adapt import Variables, from_nnx
from ici.data import batch_indices
from ici.dissect.measurements import Measurement, names, register_measurement
from ici.engine.group import chunk_steps, input_spec, reference_inputs
from ici.engine.step import cross_entropy, gradients

EVERYTHING = (
    "gradient_shift@5",
    "attribution@10",
    "wasserstein1@20",
    "landscape@20",
    "sharpness@20",
)


def small(**changes):
    return experiment(**({"norm": ("batch",), "steps": 40, "reference_every": 20} | changes))


def percentile_95(values):
    return np.percentile(values, 95)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return ici.run(small(measure=EVERYTHING), tmp_path_factory.mktemp("measured") / "out")


@pytest.mark.slow
def test_training_is_the_same_to_the_bit(measured, tmp_path):
    plain = ici.run(small(), tmp_path / "out")
    # Measured every 5 steps, a dispatch is one cycle of the probe; unmeasured it is two.
    assert chunk_steps(small(measure=EVERYTHING)) == 5 and chunk_steps(small()) == 10
    np.testing.assert_array_equal(measured.train.loss, plain.train.loss)
    np.testing.assert_array_equal(measured.train.grad_norm, plain.train.grad_norm)
    np.testing.assert_array_equal(measured.probe["mean"], plain.probe["mean"])
    np.testing.assert_array_equal(measured.evaluation.loss, plain.evaluation.loss)


@pytest.mark.slow
def test_labels(measured):
    assert measured.measured == tuple(entry.partition("@")[0] for entry in EVERYTHING)
    assert set(names()) >= set(measured.measured)
    shift = measured.measurement("gradient_shift")
    assert shift.block.values.tolist() == ["blocks/0/linear", "blocks/1/linear", "head"]
    assert shift.step.values.tolist() == list(range(0, 40, 5))
    matrix = measured.measurement("attribution").attribution
    assert matrix.dims[-2:] == ("block", "site")
    assert matrix.site.values.tolist() == measured.reference.site.values.tolist()
    transport = measured.measurement("wasserstein1")
    assert set(transport.data_vars) == {
        f"wasserstein1{kind}{part}" for kind in ("", "_initial") for part in ("", "_p50", "_p95")
    }
    assert transport.step.values.tolist() == [0, 20]
    assert transport.site.values.tolist() == measured.reference.site.values.tolist()
    for values in transport.values():
        assert values.dims == ("norm", "depth", "lr", "seed", "step", "site"), values.name
    along = measured.measurement("landscape").loss_along
    np.testing.assert_allclose(along.multiple.values[[0, -1]], [0.5, 4.0])
    assert measured.measurement("sharpness").sharpness.dims[-1] == "step"
    for name in measured.measured:
        for values in measured.measurement(name).values():
            assert np.isfinite(values).all(), values.name


@pytest.mark.slow
def test_the_record_holds_what_the_functions_give(measured):
    """Step 0 of one run, measured by hand with the functions that users call."""
    wanted = small()
    dataset = wanted.data.load()
    model = from_nnx(wanted.model.build("batch", 2, input_spec(dataset)))
    variables = model.init(jax.random.key(1))
    at = batch_indices(len(dataset.train.labels), 16, 1, 0, 1)[0]
    batch = jnp.asarray(dataset.train.inputs[at]), jnp.asarray(dataset.train.labels[at])
    optimizer = optax.adam(1e-2)
    grads = gradients(model, cross_entropy, variables, batch).grads
    updates, _ = optimizer.update(grads, optimizer.init(variables.params))
    after = Variables(optax.apply_updates(variables.params, updates), variables.state)
    here = dict(norm="batch", depth=2, lr=1e-2, seed=1, step=0)

    def record(name, variable):
        return measured.measurement(name)[variable].sel(here).values

    # The same numbers from another program: rounding of the update and of the sums.
    close = dict(rtol=2e-3, atol=1e-6)
    shift = ici.gradient_shift(model, cross_entropy, variables, after, batch)
    np.testing.assert_allclose(record("gradient_shift", "gradient_shift"), shift.l2, **close)
    np.testing.assert_allclose(
        record("gradient_shift", "gradient_shift_cosine"), shift.cosine, **close
    )
    reference = jnp.asarray(reference_inputs(wanted, dataset))
    matrix = ici.attribute_shift(model, variables, after, reference)
    np.testing.assert_allclose(record("attribution", "attribution"), matrix.alone, **close)
    np.testing.assert_allclose(record("attribution", "interaction"), matrix.interaction, **close)
    moved = ici.wasserstein_shift(model, variables, after, reference)
    for part, summary in (("", np.mean), ("_p50", np.median), ("_p95", percentile_95)):
        expected = [summary(np.asarray(distance)) for distance in moved.values()]
        np.testing.assert_allclose(record("wasserstein1", f"wasserstein1{part}"), expected, **close)
    along = ici.landscape(model, cross_entropy, variables, batch, 1e-2)
    np.testing.assert_allclose(record("landscape", "loss_along"), along.losses, **close)
    np.testing.assert_allclose(
        record("landscape", "effective_smoothness"), along.smoothness, **close
    )
    curved = ici.sharpness(model, cross_entropy, variables, batch)
    # Each is within its own error of an eigenvalue.
    assert abs(record("sharpness", "sharpness") - curved.value) < 2e-3 * abs(curved.value)
    np.testing.assert_allclose(
        record("sharpness", "sharpness_times_lr"),
        record("sharpness", "sharpness") * 1e-2,
        rtol=1e-6,
    )


@pytest.mark.slow
def test_nothing_is_recorded_of_a_run_that_has_ended(tmp_path):
    wild = small(optimizer="sgd", lr=(1e-2, 1e30), seed=(0,), measure=("gradient_shift@5",))
    results = ici.run(wild, tmp_path / "out")
    diverged = float(results.runs.diverged_at.sel(lr=1e30, norm="batch", depth=2, seed=0))
    assert diverged < 10
    shift = results.measurement("gradient_shift").gradient_shift.sel(lr=1e30, seed=0).squeeze()
    after = shift.sel(step=shift.step > diverged)
    assert after.size and np.isnan(after).all()
    assert np.isfinite(results.measurement("gradient_shift").gradient_shift.sel(lr=1e-2)).all()


@pytest.mark.slow
def test_depths_share_a_record(tmp_path):
    both = small(depth=(1, 2), lr=(1e-2,), seed=(0,), steps=10, measure=("gradient_shift@5",))
    shift = ici.run(both, tmp_path / "out").measurement("gradient_shift").gradient_shift
    assert shift.block.values.tolist() == ["blocks/0/linear", "blocks/1/linear", "head"]
    assert np.isnan(shift.sel(depth=1, block="blocks/1/linear")).all()
    assert np.isfinite(shift.sel(depth=2)).all()


def test_a_users_measurement(tmp_path):
    register_measurement(
        Measurement(
            "weight_norm",
            lambda at: {"weight_norm": optax.tree.norm(at.after)},
            {"weight_norm": ()},
        )
    )
    results = ici.run(small(steps=10, measure=("weight_norm@5",)), tmp_path / "out")
    assert (results.measurement("weight_norm").weight_norm > 0).all()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("gradient_shfit",), "unknown measurement 'gradient_shfit'.*gradient_shift"),
        (("sharpness@0",), "sharpness@0.*wanted name or name@steps"),
        (("sharpness@x",), "sharpness@x"),
        (("sharpness", "sharpness@20"), "names sharpness twice"),
        (("sharpness@7",), "measure sharpness@ is 7 and probe.every is 5"),
    ],
)
def test_bad_schedules(entries, message):
    with pytest.raises(ici.InputError, match=message):
        small(measure=entries)


@pytest.mark.slow
def test_asking_for_what_was_not_measured(measured):
    with pytest.raises(
        ici.InputError, match="no measurement 'weight'.*gradient_shift, attribution"
    ):
        measured.measurement("weight")


@pytest.mark.slow
def test_transport_and_attribution_beside_statistics_of_the_output(tmp_path):
    """The output is a site of the probe, but no layer's input: nothing is attributed to it."""
    probe = ici.Probe(stats=("moments", "output_logits"), every=5)
    e = small(probe=probe, measure=("attribution@20", "wasserstein1@20"), lr=1e-2, seed=0)
    results = ici.run(e, tmp_path / "out")
    attribution = results.measurement("attribution").attribution.squeeze()
    assert attribution.site.values[-1] == "output"
    assert np.isnan(attribution.sel(site="output")).all()
    assert np.isfinite(attribution.sel(site="head")).all()
    transport = results.measurement("wasserstein1")
    since_start = transport.wasserstein1_initial.squeeze().sel(site="head")
    assert float(since_start.sel(step=0)) == 0.0 and float(since_start.sel(step=20)) > 0
    assert (transport.wasserstein1.squeeze().isel(site=0) == 0).all()  # the data never move
    for name in ("wasserstein1", "wasserstein1_initial"):
        low, high = transport[f"{name}_p50"], transport[f"{name}_p95"]
        assert bool((low <= high).where(low.notnull(), True).all())
