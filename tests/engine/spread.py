"""Small experiments that are run with their batches on one device and on several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import ici
from ici.data import Arrays, batch_indices
from ici.dissect.measurements import names
from ici.engine.examples import Arrays as Examples
from ici.engine.fleet import Fleet
from ici.engine.group import evaluation_data, hypers, prepare, reference_inputs
from ici.engine.mesh import make_mesh
from ici.measure import statistic_names
from ici.models import ConvNetConfig, TransformerConfig
from ici.store.results import Results

TOKENS, VOCAB = 8, 12
NODES = ("train", "probe", "reference", "evaluation")


def vectors(n: int = 160, features: int = 6) -> Arrays:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n).astype(np.int32)
    inputs = (rng.normal(size=(n, features)) + 2 * labels[:, None]).astype(np.float32)
    return Arrays(train=(inputs[:96], labels[:96]), validation=(inputs[96:], labels[96:]))


def images() -> Arrays:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 8, 8, 1)).astype(np.float32), rng.integers(0, 2, 96)
    return Arrays(train=(x[:64], y[:64]), validation=(x[64:], y[64:]))


def text() -> Arrays:
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, VOCAB, (96, TOKENS + 1)).astype(np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    # Most of the targets that do not count are in the last rows: devices have unequal shares.
    targets[rng.random(targets.shape) < np.linspace(0, 0.8, 96)[:, None]] = -1
    return Arrays(
        train=(inputs[:64], targets[:64]), validation=(inputs[64:], targets[64:]), vocab_size=VOCAB
    )


def probe(stats: tuple[str, ...], **settings: Any) -> ici.Probe:
    return ici.Probe(stats=stats, every=1, cotangents=True, **settings)


def experiment(**changes: Any) -> ici.Experiment:
    """An MLP with batch norm: 6 runs, measured in every way that it can be."""
    settings = {
        "name": "spread",
        "data": vectors(),
        "model": ici.MLPConfig(width=16),
        "norm": ("batch",),
        "depth": (2,),
        "lr": (1e-3, 1e-2),
        "seed": (0, 1, 2),
        "steps": 4,
        "batch_size": 32,
        "ema_decay": 0.9,
        "probe": probe(tuple(name for name in statistic_names() if name in PLAIN)),
        "measure": tuple(f"{name}@2" for name in names() if name in HEAVY),
        "reference_size": 60,
        "reference_every": 2,
        "eval_every": 2,
        "devices": 8,
    }
    return ici.Experiment(**(settings | changes))


PLAIN = (
    "moments", "extremes", "higher_moments", "percentiles", "dead_units", "effective_rank",
    "output_logits", "split_moments", "updates",
)  # fmt: skip
HEAVY = ("gradient_shift", "attribution", "wasserstein1", "landscape", "loss_step", "sharpness")


def transformer(**changes: Any) -> ici.Experiment:
    settings = {
        "data": text(),
        "model": TransformerConfig(width=16, heads=2),
        "norm": ("layer",),
        "lr": (1e-3,),
        "probe": probe(("moments", "attention", "output_logits", "updates")),
        "measure": ("gradient_shift@2",),
        "reference_size": 32,
    }
    return experiment(**(settings | changes))


def convnet(**changes: Any) -> ici.Experiment:
    settings = {
        "data": images(),
        "model": ConvNetConfig(width=4, stages=2),
        "lr": (1e-3,),
        "seed": (0, 1),
        "augment": "crop_flip",
        "probe": probe(("moments", "split_moments")),
        "measure": (),
    }
    return experiment(**(settings | changes))


def everything(results: Results) -> dict[str, np.ndarray]:
    """Every number of a record, by ``node/variable``."""
    nodes = {name: getattr(results, name) for name in NODES}
    nodes |= {name: results.measurement(name) for name in results.measured}
    return {
        f"{node}/{name}": np.asarray(values, np.float64)
        for node, variables in nodes.items()
        for name, values in variables.items()
    }


def run(e: ici.Experiment, folder: Path, **changes: Any) -> dict[str, np.ndarray]:
    return everything(ici.run(replace(e, **changes), folder))


def distances(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of each variable, as a share of its own largest value.

    Means of cotangents before a batch norm are 0 but for rounding: below 1e-6 nothing is compared.
    """
    assert set(a) == set(b)
    found = {}
    for name, values in a.items():
        other = b[name]
        assert values.shape == other.shape
        np.testing.assert_array_equal(np.isnan(values), np.isnan(other), err_msg=name)
        scale = np.nanmax(np.abs(other), initial=1e-6)
        found[name] = float(np.nanmax(np.abs(values - other), initial=0.0) / scale)
    return found


def fleet_of(e: ici.Experiment, form: Any = None) -> Fleet:
    """The fleet of an experiment's only group."""
    dataset: Any = e.data.load()  # pyright: ignore[reportAttributeAccessIssue]
    return Fleet(
        prepare(e, e.groups[0], dataset).program,
        make_mesh(e.devices, e.data_parallel),
        hypers(e),
        Examples(dataset.train.inputs, dataset.train.labels),
        reference_inputs(e, dataset),
        form=form,
        measurements=tuple(e.measurements),
    )


def indices(e: ici.Experiment, first_step: int, n_steps: int) -> np.ndarray:
    """int32 ``[seeds, K, B]``."""
    n_train = len(e.data.load().train)  # pyright: ignore[reportAttributeAccessIssue]
    each = (batch_indices(n_train, e.batch_size, seed, first_step, n_steps) for seed in e.seed)
    return np.stack(list(each))


def compiled(fleet: Fleet, e: ici.Experiment) -> dict[str, Any]:
    """The fleet's programs, compiled for its devices."""
    dataset: Any = e.data.load()  # pyright: ignore[reportAttributeAccessIssue]
    state = (fleet._n_active(), fleet.lanes)
    step = fleet.place(np.int32(0))
    at_SKB = indices(e, 0, 2)
    programs = {
        "train": (fleet._train, (step, fleet.place(at_SKB), fleet.train_data)),
        "reference": (fleet._reference, (fleet.reference_inputs,)),
        "evaluate": (fleet._evaluate, fleet.place(evaluation_data(e, dataset), batch_axis=1)),
    }
    data = (fleet.train_data, fleet.reference_inputs)
    for name, measure in fleet._measure.items():
        programs[name] = (measure, (step, fleet.place(at_SKB[:, 0]), *data))
    return {
        name: program.lower(*state, *rest).compile() for name, (program, rest) in programs.items()
    }
