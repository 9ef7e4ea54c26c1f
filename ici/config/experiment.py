"""`Experiment`: everything that defines a set of runs, validated when it is made."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, fields
from typing import Any

from ici.config.checks import check
from ici.config.kinds import of_kind
from ici.data import DataConfig
from ici.data import resolve as resolve_data
from ici.description import differences as differences
from ici.description import fingerprint, plain
from ici.dissect.measurements import parse_schedule
from ici.models import ModelConfig
from ici.models import resolve as resolve_model
from ici.optimizers import Optimizer, betas, default_learning_rates
from ici.probe import Probe


@dataclass(frozen=True)
class Group:
    """Runs that share shapes, and so one compiled program."""

    norm: str
    depth: int

    @property
    def name(self) -> str:
        """Folder name of the group's record."""
        norm = re.sub(r"[^\w.=,+-]", "+", self.norm)
        return f"norm={norm},depth={self.depth}"


@dataclass(frozen=True)
class LaneSpec:
    """The values that set one run of a group apart from the others."""

    lr: float
    seed: int
    weight_decay: float = 0.0
    warmup_steps: int = 0
    beta1: float = 0.0
    beta2: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """A grid of runs on one data set with one model family.

    The fields that are tuples are swept: every combination is one run. All but `norm` and `depth`
    are traced values, so that sweeping them compiles nothing again. Cadences are in training
    steps.

    Attributes:
      name: names the output folder.
      data: a data set's name (``ici data list``), or a data config such as ``MovieReviews()``.
      model: a model family's name, or a model config such as ``MLPConfig(width=128)``.
      norm: normalization layers, with options behind a colon: "batch", "group:groups=8".
      depth: numbers of blocks.
      lr: learning rates; None sweeps the optimizer's default grid of eight.
      weight_decay: decoupled for adamw, lion and muon, an L2 penalty for the others.
      warmup_steps: over which the learning rate rises linearly.
      beta1: decay rate of the optimizer's average of gradients, the momentum; None is its default.
      beta2: decay rate of its average of squares; None is its default.
      seed: sets the initial weights and the order of the data.
      optimizer: sgd, momentum, nesterov, adam, adamw, lion or muon.
      bias_correction: of Adam's averages.
      clip_norm: largest global norm of the gradient; None clips none.
      decay_on: weight decay of "all" parameters, or of "matrices" only.
      schedule: of the learning rate after the warm-up: constant, cosine, linear or wsd.
      decay_fraction: share of the run over which wsd falls to 0.
      steps: updates per run.
      batch_size: examples per update.
      accumulation_steps: parts that a batch is split into, one after another, to save memory.
      ema_decay: of an exponential moving average of the weights, which is evaluated too.
      augment: what is done to training images: none, flip, crop or crop_flip.
      stream: read training batches from the host as they are needed (True), or keep the training
        split on the device (False); None streams what is larger than 1 GiB.
      probe: which layer inputs the training step measures, and how often.
      measure: heavy measurements and their cadences: "gradient_shift@100" every 100 steps,
        "sharpness" at every reference measurement. They run in programs of their own and never
        change what is trained.
      reference_size: examples in the fixed reference batch, taken from the training split.
      reference_every: steps between two measurements of the reference batch.
      eval_every: steps between two evaluations on the validation split.
      eval_size: examples of the validation split that are evaluated, its first ones; None is all.
      target_accuracy: validation accuracy that counts as the target, if there is one.
      target_loss: validation loss that counts as the target instead.
      stop_at_target: freeze a run once it meets the target.
      divergence_ratio: a run ends when its loss exceeds this many times its first loss.
      devices: how many devices to use; None is all.
      data_parallel: over how many of them one run's batch is spread.
      shard_params: spread each run's parameters, optimizer state and averaged weights over those
        devices too, to save memory.
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
    warmup_steps: tuple[int, ...] = (0,)
    beta1: tuple[float, ...] | None = None
    beta2: tuple[float, ...] | None = None
    seed: tuple[int, ...] = (0, 1, 2)
    optimizer: str = "adam"
    bias_correction: bool = True
    clip_norm: float | None = None
    decay_on: str = "all"
    schedule: str = "constant"
    decay_fraction: float = 0.2
    steps: int = 600
    batch_size: int = 128
    accumulation_steps: int = 1
    ema_decay: float | None = None
    augment: str = "none"
    stream: bool | None = None
    probe: Probe = field(default_factory=Probe)
    measure: tuple[str, ...] = ()
    reference_size: int = 512
    reference_every: int = 50
    eval_every: int = 50
    eval_size: int | None = None
    target_accuracy: float | None = None
    target_loss: float | None = None
    stop_at_target: bool = False
    divergence_ratio: float = 1e3
    devices: int | None = None
    data_parallel: int = 1
    shard_params: bool = False
    lane_width: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            object.__setattr__(self, "data", resolve_data(self.data))
        if isinstance(self.model, str):
            object.__setattr__(self, "model", resolve_model(self.model))
        for each in fields(self):
            value = of_kind(each.name, str(each.type), getattr(self, each.name))
            object.__setattr__(self, each.name, value)
        check(self)

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
        axes: dict[str, tuple[Any, ...]] = {
            "lr": self.learning_rates,
            "weight_decay": self.weight_decay,
            "warmup_steps": self.warmup_steps,
        }
        for name, default in betas(self.optimizer).items():
            chosen = getattr(self, name)
            axes[name] = (default,) if chosen is None else chosen
        return axes | {"seed": self.seed}

    @property
    def lanes(self) -> list[LaneSpec]:
        """The lanes of every group, in storage order."""
        axes = self.lane_axes
        return [
            LaneSpec(**dict(zip(axes, values, strict=True)))
            for values in itertools.product(*axes.values())
        ]

    @property
    def optimizer_settings(self) -> Optimizer:
        """What of the optimizer is the same for all lanes."""
        return Optimizer(self.optimizer, self.bias_correction, self.clip_norm, self.decay_on)  # pyright: ignore[reportArgumentType]

    def describe(self) -> dict[str, Any]:
        """The experiment as plain JSON types, with every default spelt out."""
        described: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            value = self.lane_axes.get(each.name, value)
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
