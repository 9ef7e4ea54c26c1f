"""One group of an experiment, made ready: its program, its lanes, the shape of its record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from ici.adapt import Model, Variables, from_nnx
from ici.config import Experiment, Group
from ici.data import Dataset, Split, StreamedSplit
from ici.data.dataset import IGNORED, SEPARATOR
from ici.dissect.blocks import find_blocks, update_statistics
from ici.dissect.measurements import LANDSCAPE_MULTIPLES, measurement
from ici.engine.examples import Arrays
from ici.engine.lane import Hyper, LaneProgram, labelled
from ici.engine.task import task_named
from ici.errors import InputError
from ici.models import InputSpec, norms
from ici.probe import Probe, Taps
from ici.store.writer import PER_FEATURE, PER_SITE, Layout, Node, Variable

MAX_CHUNK_STEPS = 100
# What a split may take on the device, and what the examples of a chunk of steps may where it does
# not stay there.
MAX_SPLIT_BYTES, MAX_CHUNK_BYTES = 2**30, 2**28
EVAL_BATCH = 512


@dataclass(frozen=True)
class PreparedGroup:
    """A group that has been checked and can be trained."""

    group: Group
    program: LaneProgram
    layout: Layout


def is_streamed(experiment: Experiment, dataset: Dataset) -> bool:
    """Whether training batches come from the host, chunk by chunk."""
    if isinstance(dataset.train, StreamedSplit):
        if experiment.stream is False:
            raise InputError(
                f"stream is False and {dataset.name} is read from files: wanted stream None or "
                "True, or stream=False in the data set's own settings."
            )
        return True
    too_large = dataset.train.n_bytes > MAX_SPLIT_BYTES
    return too_large if experiment.stream is None else experiment.stream


def chunk_steps(experiment: Experiment, step_bytes: float = 0.0) -> int:
    """Steps per dispatch: the largest number up to `MAX_CHUNK_STEPS` that meets every cadence.

    With `step_bytes`, the examples of one step, also one whose examples fit `MAX_CHUNK_BYTES`. A
    number that divides the steps is preferred, down to a fifth of that one: a shorter last chunk
    is a program of its own, to be compiled.
    """
    every = experiment.probe.every
    heavy = experiment.measurements.values()
    between = math.gcd(experiment.reference_every, experiment.eval_every, *heavy) // every
    most = MAX_CHUNK_STEPS if not step_bytes else min(MAX_CHUNK_STEPS, MAX_CHUNK_BYTES / step_bytes)
    fitting = [n for n in range(1, between + 1) if between % n == 0 and n * every <= most]
    largest = max(fitting, default=1)
    even = [n for n in fitting if experiment.steps % (n * every) == 0 and 5 * n >= largest]
    return every * max(even, default=largest)


def streamed_step_bytes(experiment: Experiment, dataset: Dataset) -> float:
    """Bytes of the examples of one step, for all seeds; 0 where the split is on the device."""
    if not is_streamed(experiment, dataset):
        return 0.0
    per_example = dataset.train.n_bytes / max(len(dataset.train), 1)
    return per_example * experiment.batch_size * len(experiment.seed)


def measured_at(every: int, steps: int) -> np.ndarray:
    """Steps of a measurement between updates: 0, every, 2·every, … and the end."""
    return np.unique(np.append(np.arange(0, steps, every), steps))


def input_spec(dataset: Dataset) -> InputSpec:
    """What the model is told of the data."""
    return InputSpec(
        dataset.train.example_shape,
        dataset.vocab_size,
        dataset.n_classes,
        dataset.task,
        SEPARATOR if dataset.task == "language_model" else None,
    )


def hypers(experiment: Experiment) -> list[Hyper]:
    """The lanes' hyperparameters, in storage order."""
    return [
        Hyper.of(**asdict(lane), order=experiment.seed.index(lane.seed))
        for lane in experiment.lanes
    ]


def reference_inputs(experiment: Experiment, dataset: Dataset) -> np.ndarray:
    """The fixed reference batch: evenly spaced training examples, the same for every run."""
    n_train = len(dataset.train)
    size = min(experiment.reference_size, n_train)
    return dataset.train.take(np.linspace(0, n_train - 1, size).astype(int))[0]


def evaluation_data(experiment: Experiment, dataset: Dataset) -> tuple[Arrays, np.ndarray]:
    """What is evaluated, in batches: of many small examples, or of as many as in training."""
    split = _evaluated(experiment, dataset)
    is_small = dataset.task != "language_model" and dataset.input_kind != "images"
    return evaluation_batches(split, EVAL_BATCH if is_small else experiment.batch_size)


def _evaluated(experiment: Experiment, dataset: Dataset) -> Split:
    split, size = dataset.validation, experiment.eval_size
    return split if size is None else Split(split.inputs[:size], split.labels[:size])


def evaluation_batches(split: Split, batch_size: int = EVAL_BATCH) -> tuple[Arrays, np.ndarray]:
    """A split as batches ``[n, B, ...]`` and the weights that blank out the filling."""
    n_examples = len(split)
    size = min(batch_size, EVAL_BATCH, n_examples)
    n_batches = -(-n_examples // size)
    index = np.arange(n_batches * size)
    weights = (index < n_examples).astype(np.float32).reshape(n_batches, size)
    index = np.minimum(index, n_examples - 1).reshape(n_batches, size)
    return Arrays(split.inputs[index], split.labels[index]), weights  # pyright: ignore[reportArgumentType]


def _check_data(experiment: Experiment, group: Group, dataset: Dataset) -> None:
    """Raises `InputError` where the experiment asks of the data what they do not have."""
    n_train = len(dataset.train)
    if experiment.batch_size > n_train:
        raise InputError(
            f"batch_size is {experiment.batch_size} and {dataset.name} has {n_train} training "
            "examples: wanted a batch no larger than the data; lower batch_size, or give more."
        )
    if dataset.task == "language_model":
        evaluated = _evaluated(experiment, dataset).labels
        if not (evaluated > IGNORED).any():
            raise InputError(
                f"all labels of the {len(evaluated)} validation examples of {dataset.name} that "
                f"are evaluated are {IGNORED}: wanted one that counts; mend them, or eval_size."
            )
    if "moments" not in experiment.probe.kinds:
        raise InputError(
            f"probe stats is {experiment.probe.stats}: the record's shifts want 'moments' too."
        )
    if experiment.target_accuracy is not None and not task_named(dataset.task).has_accuracy:
        raise InputError(
            f"target_accuracy is {experiment.target_accuracy} and {dataset.name} has real "
            "targets: wanted target_loss."
        )
    if experiment.augment != "none" and dataset.input_kind != "images":
        raise InputError(
            f"augment is {experiment.augment!r} and {dataset.name} holds {dataset.input_kind}: "
            "wanted images, or augment 'none'."
        )
    is_streamed(experiment, dataset)
    norm = norms.parse(group.norm.partition("+")[0])
    seen = experiment.batch_size // experiment.accumulation_steps
    norm.check_batch(seen // experiment.data_parallel if norm.is_local else seen)


def prepare(experiment: Experiment, group: Group, dataset: Dataset) -> PreparedGroup:
    """Checks a group against the data and lays out its record, without computing anything.

    Raises:
      InputError: the model cannot take the data, or the probe selects nothing.
    """
    _check_data(experiment, group, dataset)
    spec, task = input_spec(dataset), task_named(dataset.task)
    try:
        model = from_nnx(
            experiment.model.build(group.norm, group.depth, spec)  # pyright: ignore[reportAttributeAccessIssue]
        )
        own_loss = getattr(experiment.model, "loss", None)
        program = LaneProgram(
            model=model,
            loss=(own_loss(spec) if own_loss else None) or task.loss,
            task=task,
            optimizer=experiment.optimizer_settings,
            **{name: getattr(experiment, name) for name in _SHARED},
        )
        layout = _layout(experiment, program, dataset)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        shape = (experiment.batch_size, *dataset.train.example_shape)
        raise InputError(
            f"{type(experiment.model).__name__} with norm {group.norm!r} and depth {group.depth} "
            f"cannot take inputs {shape} {dataset.train.dtype}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}: correct the model."
        ) from error
    return PreparedGroup(group, program, layout)


# Fields that an experiment and a group's program have in common.
_SHARED = (
    "steps",
    "probe",
    "schedule",
    "decay_fraction",
    "divergence_ratio",
    "accumulation_steps",
    "ema_decay",
    "augment",
    "shard_params",
)


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


def _layout(experiment: Experiment, program: LaneProgram, dataset: Dataset) -> Layout:
    model = program.model
    inputs = jax.ShapeDtypeStruct(
        (experiment.batch_size, *dataset.train.example_shape), dataset.train.dtype
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
    steps = experiment.steps
    chunk = chunk_steps(experiment, streamed_step_bytes(experiment, dataset))
    every = experiment.probe.every
    nodes: dict[str, Any] = {
        "train": Node(np.arange(steps), chunk, {"loss": Variable(), "grad_norm": Variable()}),
        "probe": Node(np.arange(0, steps, every), chunk // every, probed),
        "reference": Node(measured_at(experiment.reference_every, steps), 1, on_reference),
        "evaluation": Node(
            measured_at(experiment.eval_every, steps),
            1,
            {name: Variable() for name in program.evaluated},
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
