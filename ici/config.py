"""`Experiment`: everything that defines a set of runs, validated when it is made."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ici.data import DataConfig
from ici.data import resolve as resolve_data
from ici.description import differences as differences
from ici.description import fingerprint, plain
from ici.dissect.measurements import parse_schedule
from ici.errors import InputError, unknown_name
from ici.models import ModelConfig
from ici.models import resolve as resolve_model
from ici.models.norms import check_norm
from ici.optimizers import default_learning_rates, optimizer_names, schedule_names
from ici.probe import Probe


@dataclass(frozen=True)
class Group:
    """Runs that share shapes, and so one compiled program."""

    norm: str
    depth: int

    @property
    def name(self) -> str:
        """Folder name of the group's record."""
        return f"norm={self.norm},depth={self.depth}"


@dataclass(frozen=True)
class LaneSpec:
    """The values that set one run of a group apart from the others."""

    lr: float
    weight_decay: float
    seed: int


def _grid(value: Any) -> tuple[Any, ...]:
    value = _number(value)
    values = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else value
    return tuple(_number(v) for v in values)


def _number(value: Any) -> Any:
    # NumPy's numbers become Python's: a description must be JSON.
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _has(*methods: str) -> Callable[[Any], bool]:
    # A class has them too, but was not called: it holds no settings.
    return lambda v: not isinstance(v, type) and all(callable(getattr(v, m, None)) for m in methods)


# By the first word of a field's annotation: what its values, or each of a grid, must be.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda v: isinstance(v, str)),
    "bool": ("True or False", lambda v: isinstance(v, bool)),
    "int": ("an integer", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "Probe": ("a probe, such as ici.Probe(every=10)", lambda v: isinstance(v, Probe)),
    "DataConfig": ("a data set's name, or a config such as Digits()", _has("load", "fingerprint")),
    "ModelConfig": ("a family's name, or a config such as MLPConfig()", _has("build")),
}


def _of_kind(name: str, annotation: str, value: Any) -> Any:
    """`value` as Python's own type for the field; `InputError` where it is of another kind."""
    if value is None and annotation.endswith("| None"):
        return None
    swept = annotation.startswith("tuple[")
    kind = re.split(r"\W", annotation.removeprefix("tuple["))[0]
    wanted, accepts = _KINDS[kind]
    values = _grid(value) if swept else (_number(value),)
    for each in values:
        if not accepts(each):
            shown = " ".join(repr(each).split())
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise InputError(f"{name} is {shown}: wanted {wanted}.")
    # 1 and 1.0 are one learning rate, and so one experiment.
    values = tuple(float(v) for v in values) if kind == "float" else values
    return values if swept else values[0]


@dataclass(frozen=True)
class Experiment:
    """A grid of runs on one data set with one model family.

    The fields `norm`, `depth`, `lr`, `weight_decay` and `seed` are swept: every combination is
    one run. Cadences are in training steps.

    Attributes:
      name: names the output folder.
      data: a data set's name (``ici data list``), or a data config such as ``MovieReviews()``.
      model: a model family's name, or a model config such as ``MLPConfig(width=128)``.
      norm: normalization layers.
      depth: numbers of blocks.
      lr: learning rates; None sweeps the optimizer's default grid of eight.
      weight_decay: decoupled for adamw, an L2 penalty for the others.
      seed: sets the initial weights and the order of the data.
      optimizer: sgd, momentum, adam or adamw.
      schedule: constant or warmup_cosine.
      warmup_steps: length of the learning rate's linear warm-up.
      steps: updates per run.
      batch_size: examples per update.
      probe: which layer inputs the training step measures, and how often.
      measure: heavy measurements and their cadences: "gradient_shift@100" every 100 steps,
        "sharpness" at every reference measurement. They run in programs of their own and never
        change what is trained.
      reference_size: examples in the fixed reference batch, taken from the training split.
      reference_every: steps between two measurements of the reference batch.
      eval_every: steps between two evaluations on the validation split.
      target_accuracy: validation accuracy that counts as the target, if there is one.
      stop_at_target: freeze a run once it meets the target.
      divergence_ratio: a run ends when its loss exceeds this many times its first loss.
      devices: how many devices to use; None is all.
      data_parallel: over how many of them one run's batch is spread.
      lane_width: runs that one accelerator trains side by side; None is all of its runs.

    Raises:
      InputError: on the first field that cannot be; nothing has been computed by then.
    """

    name: str = "experiment"
    data: DataConfig | str = "movie_reviews"
    model: ModelConfig | str = "mlp"
    norm: tuple[str, ...] = ("none", "batch", "layer")
    depth: tuple[int, ...] = (10,)
    lr: tuple[float, ...] | None = None
    weight_decay: tuple[float, ...] = (0.0,)
    seed: tuple[int, ...] = (0, 1, 2)
    optimizer: str = "adam"
    schedule: str = "constant"
    warmup_steps: int = 0
    steps: int = 600
    batch_size: int = 128
    probe: Probe = field(default_factory=Probe)
    measure: tuple[str, ...] = ()
    reference_size: int = 512
    reference_every: int = 50
    eval_every: int = 50
    target_accuracy: float | None = None
    stop_at_target: bool = False
    divergence_ratio: float = 1e3
    devices: int | None = None
    data_parallel: int = 1
    lane_width: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            object.__setattr__(self, "data", resolve_data(self.data))
        if isinstance(self.model, str):
            object.__setattr__(self, "model", resolve_model(self.model))
        for each in fields(self):
            value = _of_kind(each.name, str(each.type), getattr(self, each.name))
            object.__setattr__(self, each.name, value)
        self._check_names()
        self._check_grid()
        self._check_numbers()

    def _check_names(self) -> None:
        if self.name.strip() in ("", ".", "..") or "/" in self.name:
            raise InputError(
                f"name is {self.name!r}: wanted the name of a folder, without '/', such as 'mine'."
            )
        for norm in self.norm:
            check_norm(norm)
        if self.optimizer not in optimizer_names():
            raise unknown_name("optimizer", self.optimizer, optimizer_names())
        if self.schedule not in schedule_names():
            raise unknown_name("schedule", self.schedule, schedule_names())

    def _check_grid(self) -> None:
        for name in ("norm", "depth", "lr", "weight_decay", "seed"):
            values = getattr(self, name)
            if values is None:
                continue
            if not values:
                raise InputError(f"{name} is empty: wanted at least one value to run.")
            if len(set(values)) < len(values):
                raise InputError(f"{name} is {values}: wanted every value once.")
        for depth in self.depth:
            if depth < 1:
                raise InputError(f"depth is {depth}: wanted an integer >= 1.")
        for lr in self.learning_rates:
            if not (math.isfinite(lr) and lr > 0):
                raise InputError(f"lr is {lr}: wanted a finite number > 0.")
        for decay in self.weight_decay:
            if not (math.isfinite(decay) and decay >= 0):
                raise InputError(f"weight_decay is {decay}: wanted a finite number >= 0.")
        for seed in self.seed:
            if not 0 <= seed < 2**31:
                raise InputError(f"seed is {seed}: wanted an integer from 0 to 2**31 - 1.")

        if self.probe.step_part() is None:
            raise InputError(
                f"probe stats is {self.probe.stats}: all of them are for the reference batch; "
                "wanted one for the training step too, such as 'moments'."
            )

    def _check_numbers(self) -> None:
        positive = ("steps", "batch_size", "reference_size", "reference_every", "eval_every")
        for name in (*positive, "data_parallel"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: wanted an integer >= 1.")
        for name in ("devices", "lane_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: wanted an integer >= 1.")
        if self.warmup_steps < 0:
            raise InputError(f"warmup_steps is {self.warmup_steps}: wanted an integer >= 0.")
        if self.warmup_steps > self.steps:
            raise InputError(
                f"warmup_steps is {self.warmup_steps} and steps is {self.steps}: wanted a warm-up "
                "that ends within the run."
            )
        cadences = {name: getattr(self, name) for name in ("reference_every", "eval_every")}
        cadences |= {f"measure {name}@": every for name, every in self.measurements.items()}
        for name, every in cadences.items():
            if every % self.probe.every:
                raise InputError(
                    f"{name} is {every} and probe.every is {self.probe.every}: wanted a multiple "
                    "of probe.every."
                )
        if self.batch_size % self.data_parallel:
            raise InputError(
                f"batch_size is {self.batch_size} and data_parallel is {self.data_parallel}: "
                "wanted a batch that divides evenly."
            )
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise InputError(
                f"target_accuracy is {self.target_accuracy}: wanted a fraction in (0, 1]."
            )
        if self.stop_at_target and self.target_accuracy is None:
            raise InputError("stop_at_target is set without a target: set target_accuracy too.")
        if not self.divergence_ratio > 1:
            raise InputError(f"divergence_ratio is {self.divergence_ratio}: wanted > 1.")

    @property
    def measurements(self) -> dict[str, int]:
        """Heavy measurements by name, and the steps between two of each."""
        return parse_schedule(self.measure, self.reference_every)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The learning rates that are swept."""
        return default_learning_rates(self.optimizer) if self.lr is None else self.lr

    @property
    def groups(self) -> list[Group]:
        """Groups in the order in which they run."""
        return [Group(norm, depth) for depth in self.depth for norm in self.norm]

    @property
    def lane_axes(self) -> dict[str, tuple[Any, ...]]:
        """Dimensions of the lanes of every group, in storage order."""
        return {"lr": self.learning_rates, "weight_decay": self.weight_decay, "seed": self.seed}

    @property
    def lanes(self) -> list[LaneSpec]:
        """The lanes of every group, in storage order."""
        return [LaneSpec(*values) for values in itertools.product(*self.lane_axes.values())]

    def describe(self) -> dict[str, Any]:
        """The experiment as plain JSON types, with every default spelt out."""
        described: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "lr":
                value = self.learning_rates
            described[each.name] = (
                self.data.fingerprint()  # pyright: ignore[reportAttributeAccessIssue]
                if each.name == "data"
                else plain(value)
            )
        return described

    def identity(self) -> dict[str, Any]:
        """What makes this experiment a different one: `describe` without where it runs."""
        machine = ("devices", "lane_width")
        return {name: value for name, value in self.describe().items() if name not in machine}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `identity`."""
        return fingerprint(self.identity())
