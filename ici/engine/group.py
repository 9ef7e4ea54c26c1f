"""One group of an experiment, made ready: its program, its lanes, the shape of its record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ici.adapt import Model, Variables, from_nnx
from ici.config import Experiment, Group
from ici.data import Dataset, Split
from ici.dissect.blocks import find_blocks, update_statistics
from ici.dissect.measurements import LANDSCAPE_MULTIPLES, measurement
from ici.engine.lane import Arrays, Hyper, LaneProgram, labelled
from ici.engine.step import cross_entropy
from ici.errors import InputError
from ici.models import InputSpec
from ici.probe import Probe, Taps
from ici.store.writer import PER_FEATURE, PER_SITE, Layout, Node, Variable

MAX_CHUNK_STEPS = 100
EVAL_BATCH = 512


@dataclass(frozen=True)
class PreparedGroup:
    """A group that has been checked and can be trained."""

    group: Group
    program: LaneProgram
    layout: Layout


def chunk_steps(experiment: Experiment) -> int:
    """Steps per dispatch: the largest number up to `MAX_CHUNK_STEPS` that meets every cadence."""
    every = experiment.probe.every
    heavy = experiment.measurements.values()
    between = math.gcd(experiment.reference_every, experiment.eval_every, *heavy) // every
    fitting = [
        n for n in range(1, between + 1) if between % n == 0 and n * every <= MAX_CHUNK_STEPS
    ]
    return every * max(fitting, default=1)


def measured_at(every: int, steps: int) -> np.ndarray:
    """Steps of a measurement between updates: 0, every, 2·every, … and the end."""
    return np.unique(np.append(np.arange(0, steps, every), steps))


def input_spec(dataset: Dataset) -> InputSpec:
    """What the model is told of the data."""
    return InputSpec(dataset.train.inputs.shape[1:], dataset.vocab_size, dataset.n_classes)


def hypers(experiment: Experiment) -> list[Hyper]:
    """The lanes' hyperparameters, in storage order."""
    return [
        Hyper(
            lr=np.float32(lane.lr),  # pyright: ignore[reportArgumentType]
            weight_decay=np.float32(lane.weight_decay),  # pyright: ignore[reportArgumentType]
            seed=np.int32(lane.seed),  # pyright: ignore[reportArgumentType]
            order=np.int32(experiment.seed.index(lane.seed)),  # pyright: ignore[reportArgumentType]
        )
        for lane in experiment.lanes
    ]


def reference_inputs(experiment: Experiment, dataset: Dataset) -> np.ndarray:
    """The fixed reference batch: evenly spaced training examples, the same for every run."""
    n_train = len(dataset.train.labels)
    size = min(experiment.reference_size, n_train)
    return dataset.train.inputs[np.linspace(0, n_train - 1, size).astype(int)]


def evaluation_batches(split: Split) -> tuple[Arrays, np.ndarray]:
    """A split as batches ``[n, B, ...]`` and the weights that blank out the filling."""
    n_examples = len(split.labels)
    size = min(EVAL_BATCH, n_examples)
    n_batches = -(-n_examples // size)
    index = np.arange(n_batches * size)
    weights = (index < n_examples).astype(np.float32).reshape(n_batches, size)
    index = np.minimum(index, n_examples - 1).reshape(n_batches, size)
    return Arrays(split.inputs[index], split.labels[index]), weights  # pyright: ignore[reportArgumentType]


def prepare(experiment: Experiment, group: Group, dataset: Dataset) -> PreparedGroup:
    """Checks a group against the data and lays out its record, without computing anything.

    Raises:
      InputError: the model cannot take the data, or the probe selects nothing.
    """
    n_train = len(dataset.train.labels)
    if experiment.batch_size > n_train:
        raise InputError(
            f"batch_size is {experiment.batch_size} and {dataset.name} has {n_train} training "
            "examples: wanted a batch no larger than the data."
        )
    if "moments" not in experiment.probe.kinds:
        raise InputError(
            f"probe stats is {experiment.probe.stats}: the record's shifts want 'moments' too."
        )
    try:
        model = from_nnx(
            experiment.model.build(group.norm, group.depth, input_spec(dataset))  # pyright: ignore[reportAttributeAccessIssue]
        )
        layout = _layout(experiment, model, dataset)
    except InputError:
        raise
    except Exception as error:
        shape = (experiment.batch_size, *dataset.train.inputs.shape[1:])
        raise InputError(
            f"{type(experiment.model).__name__} with norm {group.norm!r} and depth {group.depth} "
            f"cannot take inputs {shape} {dataset.train.inputs.dtype}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}: correct the model."
        ) from error
    program = LaneProgram(
        model=model,
        loss=cross_entropy,
        optimizer=experiment.optimizer,
        schedule=experiment.schedule,
        warmup_steps=experiment.warmup_steps,
        steps=experiment.steps,
        probe=experiment.probe,
        divergence_ratio=experiment.divergence_ratio,
        shard_batch=experiment.data_parallel > 1,
    )
    return PreparedGroup(group, program, layout)


def _variables(taps: Taps) -> dict[str, Variable]:
    """What is recorded of a probe's taps: per site, or per site and feature."""
    shapes = jax.eval_shape(labelled, taps)
    return {
        name: Variable(PER_FEATURE if next(iter(sites.values())).ndim else PER_SITE)
        for name, sites in shapes.items()
    }


def _of_blocks(
    probe: Probe, model: Model, variables: Variables, inputs: Any
) -> dict[str, Variable]:
    if not probe.kinds_at("block"):
        return {}
    blocks, params = find_blocks(model, variables, inputs), variables.params
    statistics = jax.eval_shape(
        lambda p: [s.labelled() for s in update_statistics(probe, blocks, p, p, p).values()], params
    )
    return {
        name: Variable(("block",) if value.ndim else ())
        for labelled_ in statistics
        for name, value in labelled_.items()
    }


def _layout(experiment: Experiment, model: Model, dataset: Dataset) -> Layout:
    inputs = jax.ShapeDtypeStruct(
        (experiment.batch_size, *dataset.train.inputs.shape[1:]), dataset.train.inputs.dtype
    )
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), inputs)
    taps = model.taps_shape(variables, inputs, experiment.probe)
    on_reference = _variables(taps)
    cheap = experiment.probe.step_part()
    assert cheap is not None, "an experiment's probe has statistics for every step"
    probed = dict(on_reference)
    if cheap is not experiment.probe:
        probed = _variables(model.taps_shape(variables, inputs, cheap))
    probed |= _of_blocks(cheap, model, variables, inputs)
    if experiment.probe.cotangents:
        probed |= {name: Variable(PER_FEATURE) for name in ("cotangent_mean", "cotangent_std")}
    axes: dict[str, tuple[Any, ...]] = {}
    if experiment.measurements or experiment.probe.kinds_at("block"):
        low, high, n = LANDSCAPE_MULTIPLES
        multiples = np.geomspace(low, high, n).tolist()
        axes = {"block": find_blocks(model, variables, inputs).names, "multiple": tuple(multiples)}
    steps, chunk = experiment.steps, chunk_steps(experiment)
    every = experiment.probe.every
    nodes: dict[str, Any] = {
        "train": Node(np.arange(steps), chunk, {"loss": Variable(), "grad_norm": Variable()}),
        "probe": Node(np.arange(0, steps, every), chunk // every, probed),
        "reference": Node(measured_at(experiment.reference_every, steps), 1, on_reference),
        "evaluation": Node(
            measured_at(experiment.eval_every, steps),
            1,
            {"loss": Variable(), "accuracy": Variable()},
        ),
        "runs": Node(np.array([steps]), 1, {"diverged_at": Variable()}),
    }
    for name, cadence in experiment.measurements.items():
        dims = measurement(name).dims
        # Of the update that follows: there is none after the last step.
        nodes[name] = Node(
            np.arange(0, steps, cadence), 1, {key: Variable(value) for key, value in dims.items()}
        )
    return Layout(experiment.lane_axes, taps.sites, taps.features, nodes, axes)
