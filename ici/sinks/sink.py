"""What a sink is, and what it is told about an experiment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ici.config import Experiment
from ici.store.places import Place

# Above so many runs a sink gets medians over the seeds: dashboards drown in more curves.
MAX_SINGLE_RUNS = 64


class Sink(Protocol):
    """Where the scalars of an experiment go while it runs.

    All methods are called from one background thread, in this order. What they raise ends the
    sink and not the run; while they wait, the run goes on.

    >>> class Lines:
    ...     def start(self, about):
    ...         self.file = open(about.folder / "scalars.jsonl", "w")
    ...
    ...     def log(self, series, step, values):
    ...         print(json.dumps({"series": series, "step": step, **values}), file=self.file)
    ...
    ...     def finish(self):
    ...         self.file.close()
    """

    def start(self, about: About) -> None:
        """Called once, before the first values."""
        ...

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        """Takes finite `values` by name of one `series` (a run, or a median of runs).

        The steps of a series increase within ``loss``, ``evaluation/…`` and the like, each.
        """
        ...

    def finish(self) -> None:
        """Called once, after the last values, also those of a run that was interrupted."""
        ...


@dataclass(frozen=True)
class Series:
    """One curve of a group: a run, or the median over several.

    Attributes:
      name: such as ``norm=batch/lr=0.01/seed=0``; also a relative path.
      settings: what sets its runs apart from those of other series.
      lanes: places of its runs among those of the group.
    """

    name: str
    settings: dict[str, Any]
    lanes: tuple[int, ...]


@dataclass(frozen=True)
class About:
    """An experiment, for sinks.

    Attributes:
      name: of the experiment.
      folder: of the record.
      experiment: `Experiment.describe`.
      groups: the series of each norm and depth.
      medians: whether series are medians over runs of one norm, depth and learning rate, which
        they are above `MAX_SINGLE_RUNS` runs.
      steps: updates per run.
    """

    name: str
    folder: Place
    experiment: dict[str, Any]
    groups: dict[tuple[str, int], tuple[Series, ...]]
    medians: bool
    steps: int

    @property
    def series(self) -> tuple[Series, ...]:
        """Those of all groups."""
        return tuple(series for group in self.groups.values() for series in group)


def are_medians(experiment: Experiment) -> bool:
    """Whether sinks get medians instead of every run: there are more than `MAX_SINGLE_RUNS`."""
    return len(experiment.groups) * len(experiment.lanes) > MAX_SINGLE_RUNS


def about(experiment: Experiment, folder: Place) -> About:
    """What sinks are told of `experiment`, whose record is in `folder`."""
    medians = are_medians(experiment)
    lanes = [asdict(lane) for lane in experiment.lanes]
    kept = {"lr"} if medians else {"lr", "seed"}
    if not medians:
        kept |= {name for name in lanes[0] if len({lane[name] for lane in lanes}) > 1}
    groups = {}
    for group in experiment.groups:
        found: dict[str, Series] = {}
        for i, lane in enumerate(lanes):
            settings: dict[str, Any] = {"norm": group.norm, "depth": group.depth}
            settings |= {name: value for name, value in lane.items() if name in kept}
            name = _name(settings, with_depth=len(experiment.depth) > 1)
            others = found[name].lanes if name in found else ()
            found[name] = Series(name, settings, (*others, i))
        groups[group.norm, group.depth] = tuple(found.values())
    return About(experiment.name, folder, experiment.describe(), groups, medians, experiment.steps)


def _name(settings: dict[str, Any], with_depth: bool) -> str:
    parts = []
    for name, value in settings.items():
        if name != "depth" or with_depth:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            text = re.sub(r"[^\w.=,+-]", "+", text)  # no slash: it would end a folder's name
            parts.append(f"{name}={text}")
    return "/".join(parts)
