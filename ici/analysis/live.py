"""What can be said of an experiment while it runs, from new rows only and in bounded memory."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np

from ici.analysis.records import Target
from ici.measure.on_host import mean_shift_on_host
from ici.measure.spikes import PRESETS, SpikeRule
from ici.store.following import GroupLabels

N_BINS = 64
N_DIVERGENCES = 5


@dataclass(frozen=True)
class SettingState:
    """The runs of one norm, depth and learning rate.

    Attributes:
      losses: float64 ``[N_BINS]`` over the steps of a whole run: mean of the median training
        loss, nats; NaN where there is none yet.
      loss: median training loss at the last step that a run has.
      score: median of the runs' last validation scores.
      n_spikes: spike events so far, all runs together; None where no value could be judged yet.
      shift: median of the mean shift at the deepest site since step 0, over the runs that were
        still going at the newest measurement.
    """

    norm: str
    depth: int
    lr: float
    n_runs: int
    n_running: int
    n_diverged: int
    n_met: int
    losses: np.ndarray
    loss: float
    score: float
    n_spikes: int | None
    shift: float


@dataclass(frozen=True)
class GroupState:
    """One norm and depth; ``run_step_s`` is what a step of one run takes, where known."""

    norm: str
    depth: int
    step: int
    steps: int
    n_runs: int
    n_running: int
    n_diverged: int
    n_met: int
    done: bool
    settings: tuple[SettingState, ...] = ()
    deepest_site: str | None = None
    run_step_s: float | None = None

    @property
    def run_steps_left(self) -> int:
        """Steps still to be trained, over the runs that go on."""
        return 0 if self.done else self.n_running * (self.steps - self.step)


@dataclass(frozen=True)
class Divergence:
    """A run whose update was refused at `step`."""

    step: int
    run: str


class SpikeCounter:
    """Spike events of many series that arrive piece by piece; the count is that of `events`."""

    def __init__(self, n_series: int, rule: SpikeRule):
        self.rule = rule
        self.n_values = 0
        self.counts = np.zeros(n_series, np.int64)
        self.tail = np.zeros((n_series, 0))
        self.ended = np.zeros(n_series, bool)
        # The band that a series left; NaN outside an event.
        self.level, self.std = np.full((2, n_series), np.nan)

    @property
    def judged(self) -> bool:
        """Whether any value has had enough before it."""
        return self.n_values > self.rule.burn_in

    def add(self, values: np.ndarray) -> None:
        """Takes the next ``values[n_series, n]``; a series ends at its first that is not finite."""
        rule = self.rule
        joined = np.concatenate([self.tail, values], axis=1)
        for at in range(self.tail.shape[1], joined.shape[1]):
            now = joined[:, at]
            self.ended |= ~np.isfinite(now)
            self.n_values += 1
            if self.n_values <= rule.burn_in:
                continue
            with np.errstate(invalid="ignore", over="ignore"):
                inside = self._inside(now, self.level, self.std)
                self.level[inside] = np.nan
                window = joined[:, max(0, at - rule.window) : at]
                level, std = window.mean(axis=1), window.std(axis=1)
                outside = ~self.ended & np.isnan(self.level) & ~self._inside(now, level, std)
            self.counts += outside
            self.level[outside], self.std[outside] = level[outside], std[outside]
        self.tail = joined[:, max(0, joined.shape[1] - rule.window) :]

    def _inside(self, now: np.ndarray, level: np.ndarray, std: np.ndarray) -> np.ndarray:
        deviation = np.abs(now - level) if self.rule.two_sided else now - level
        left = (deviation >= self.rule.k * std) & (deviation > 0) & (std >= self.rule.min_std)
        return ~left


class GroupSoFar:
    """Takes in the rows of one group as they come."""

    def __init__(
        self,
        norm: str,
        depth: int,
        steps: int,
        labels: GroupLabels,
        target: Target | None = None,
        stops: bool = False,
        rule: SpikeRule = PRESETS["olmo_core"],
    ):
        self.norm, self.depth, self.steps, self.labels = norm, depth, steps, labels
        self.target, self.stops = target, stops
        self.rows: dict[str, int] = {}
        self.done = False
        self.run_step_s: float | None = None
        axes, n = labels.lane_axes, labels.n_lanes
        lr_axis = list(axes).index("lr")
        places = np.indices([len(values) for values in axes.values()]).reshape(len(axes), n)
        self.lanes_of_lr = [np.flatnonzero(places[lr_axis] == i) for i in range(len(axes["lr"]))]
        self.diverged_at = np.full(n, np.nan)
        self.met = np.zeros(n, bool)
        self.score, self.shift = np.full((2, n), np.nan)
        self.initial: tuple[np.ndarray, np.ndarray] | None = None
        self.spikes = SpikeCounter(n, rule)
        self.loss = np.full(len(axes["lr"]), np.nan)
        self.bin_sum, self.bin_count = np.zeros((2, len(axes["lr"]), N_BINS))

    def add_divergences(self, diverged_at: np.ndarray) -> list[Divergence]:
        """Takes ``diverged_at[n_lanes]``, NaN for never; those not known before, by step."""
        new = np.flatnonzero(np.isfinite(diverged_at) & np.isnan(self.diverged_at))
        self.diverged_at = np.asarray(diverged_at, np.float64)
        in_order = new[np.argsort(diverged_at[new], kind="stable")].tolist()
        return [Divergence(int(diverged_at[i]), self._run_name(i)) for i in in_order]

    def add_train(self, first: int, loss: np.ndarray) -> None:
        """Takes ``loss[n_lanes, n]`` of the steps from `first` on, after the divergences."""
        at = np.arange(first, first + loss.shape[1])
        # The loss at the diverging step belongs to the divergence.
        loss = np.where(at >= self.diverged_at[:, None], np.nan, loss.astype(np.float64))
        self.spikes.add(loss)
        bins = at * N_BINS // self.steps
        for i, lanes in enumerate(self.lanes_of_lr):
            medians = _median(loss[lanes])
            known = np.flatnonzero(np.isfinite(medians))
            np.add.at(self.bin_sum[i], bins[known], medians[known])
            np.add.at(self.bin_count[i], bins[known], 1)
            if known.size:
                self.loss[i] = medians[known[-1]]

    def add_scores(self, score: np.ndarray, aimed_at: np.ndarray | None = None) -> None:
        """Takes validation scores ``[n_lanes, n]``, in order, and what the target is about."""
        for column in score.T:
            self.score = np.where(np.isfinite(column), column, self.score)
        if self.target is not None and aimed_at is not None:
            value, higher = self.target.value, self.target.higher_is_better
            self.met |= ((aimed_at >= value) if higher else (aimed_at <= value)).any(axis=1)

    def add_reference(self, first: int, mean: np.ndarray, std: np.ndarray) -> None:
        """Takes the deepest site's ``mean`` and ``std``, ``[n_lanes, n, D]``."""
        if first == 0:
            self.initial = mean[:, 0], std[:, 0]
        if self.initial is not None:
            self.shift = mean_shift_on_host(*self.initial, mean[:, -1], std[:, -1])

    def finish(self) -> None:
        """Nothing more will come: drops what only that would need."""
        self.done, self.initial = True, None
        self.spikes.tail = self.spikes.tail[:, :0]

    def state(self) -> GroupState:
        """What is known by now."""
        step = self.steps if self.done else self.rows.get("train", 0)
        running = self._running(step)
        settings = [self._setting(i, running) for i in range(len(self.lanes_of_lr))]
        return GroupState(
            norm=self.norm,
            depth=self.depth,
            step=step,
            steps=self.steps,
            n_runs=len(running),
            n_running=int(running.sum()),
            n_diverged=int(np.isfinite(self.diverged_at).sum()),
            n_met=int(self.met.sum()),
            done=self.done,
            settings=tuple(settings),
            deepest_site=self.labels.sites[self.labels.deepest] if self.labels.sites else None,
            run_step_s=self.run_step_s,
        )

    def _running(self, step: int) -> np.ndarray:
        running = np.isnan(self.diverged_at) & (not self.done and step < self.steps)
        return running & ~self.met if self.stops else running

    def _setting(self, i: int, running: np.ndarray) -> SettingState:
        lanes = self.lanes_of_lr[i]
        count = self.bin_count[i]
        return SettingState(
            norm=self.norm,
            depth=self.depth,
            lr=float(self.labels.lane_axes["lr"][i]),
            n_runs=len(lanes),
            n_running=int(running[lanes].sum()),
            n_diverged=int(np.isfinite(self.diverged_at[lanes]).sum()),
            n_met=int(self.met[lanes].sum()),
            losses=np.where(count > 0, self.bin_sum[i] / np.maximum(count, 1), np.nan),
            loss=float(self.loss[i]),
            score=float(_median(self.score[lanes, None])[0]),
            n_spikes=int(self.spikes.counts[lanes].sum()) if self.spikes.judged else None,
            shift=float(_median(self.shift[lanes, None])[0]),
        )

    def _run_name(self, lane: int) -> str:
        combination = next(
            itertools.islice(itertools.product(*self.labels.lane_axes.values()), lane, None)
        )
        swept = {
            name: value
            for (name, values), value in zip(
                self.labels.lane_axes.items(), combination, strict=True
            )
            if len(values) > 1 or name in ("lr", "seed")
        }
        named = {"norm": self.norm, "depth": self.depth, **swept}
        return " ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in named.items()
        )


def _median(values: np.ndarray) -> np.ndarray:
    """Median of ``values[n, K]`` over the finite ones of n, ``[K]``; NaN where there are none."""
    n = np.isfinite(values).sum(axis=0)
    ordered = np.sort(np.where(np.isfinite(values), values, np.inf), axis=0)
    column = np.arange(values.shape[1])
    middle = (ordered[np.maximum(n - 1, 0) // 2, column] + ordered[n // 2, column]) / 2
    return np.where(n > 0, middle, np.nan)


def seconds_left(groups: tuple[GroupState, ...]) -> float | None:
    """Estimate from what a step of a run has taken, in proportion to depth for groups to come.

    None where nothing was timed yet. Compilation is not in it.
    """
    known = [g.run_step_s / max(g.depth, 1) for g in groups if g.run_step_s]
    if not known:
        return None
    per_depth = float(np.median(known))
    return sum(g.run_steps_left * (g.run_step_s or per_depth * max(g.depth, 1)) for g in groups)


def latest(kept: deque[Divergence], new: list[Divergence]) -> deque[Divergence]:
    """The last `N_DIVERGENCES` of both."""
    return deque([*kept, *new], maxlen=N_DIVERGENCES)
