"""From the rows of a record to the scalars that sinks show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ici.measure.on_host import mean_shift_on_host
from ici.sinks.sink import About

POINTS_PER_RUN = 100

Scalar = tuple[str, int, dict[str, float]]
# What is taken of each node; None is all of its variables.
_TAKEN: dict[str, tuple[str, ...] | None] = {
    "train": None,
    "evaluation": None,
    "reference": ("mean", "std"),
    "runs": ("diverged_at",),
}


@dataclass(frozen=True)
class Rows:
    """Rows of one node of one group: ``values[n_lanes, n_rows, ...]`` by variable."""

    norm: str
    depth: int
    node: str
    steps: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def n_bytes(self) -> int:
        """Size of the values."""
        return sum(values.nbytes for values in self.values.values())


def taken(rows: Rows) -> Rows | None:
    """The part of `rows` that becomes scalars; None where there is none."""
    if rows.node not in _TAKEN:
        return None
    names = _TAKEN[rows.node]
    values = {k: v for k, v in rows.values.items() if names is None or k in names}
    return Rows(rows.norm, rows.depth, rows.node, rows.steps, values) if values else None


class Scalars:
    """Turns rows into scalars: ``(series, step, {name: value})``, all finite.

    Names: ``loss`` and ``grad_norm`` (means over so many steps that a run has about
    `POINTS_PER_RUN` points; at the last of them), ``evaluation/NAME``, ``shift/deepest``,
    ``shift/median`` and ``shift/largest`` (of the mean shift since step 0 over the sites) and
    ``diverged``: 1 at the step whose update was refused, or how many runs of a median have
    diverged so far. Medians are over the runs that still have a value.
    """

    def __init__(self, about: About):
        self.about = about
        self.bin_steps = -(-about.steps // POINTS_PER_RUN)
        self.group: tuple[str, int] | None = None
        # By group: those of a cluster are trained side by side.
        self.initial: dict[tuple[str, int] | None, dict[str, np.ndarray]] = {}
        self.n_diverged: dict[str, int] = {}

    def of(self, rows: Rows) -> Iterator[Scalar]:
        """The scalars of `rows`, step by step."""
        self.group = rows.norm, rows.depth
        if rows.node == "runs":
            yield from self._divergences(rows)
        elif rows.node == "reference":
            yield from self._shifts(rows)
        elif rows.node == "evaluation":
            named = {f"evaluation/{name}": values for name, values in rows.values.items()}
            yield from self._series(rows.steps, named)
        else:
            yield from self._series(*self._binned(rows))

    def _series(self, steps: np.ndarray, values: dict[str, np.ndarray]) -> Iterator[Scalar]:
        """Of ``values[n_lanes, n_rows]`` the median over the runs of each series."""
        assert self.group is not None
        for row, step in enumerate(steps.tolist()):
            for series in self.about.groups[self.group]:
                found = {}
                for name, all_lanes in values.items():
                    of_runs = all_lanes[list(series.lanes), row]
                    of_runs = of_runs[np.isfinite(of_runs)]
                    if of_runs.size:
                        found[name] = float(np.median(of_runs))
                if found:
                    yield series.name, step, found

    def _binned(self, rows: Rows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        n_rows = len(rows.steps)
        edges = np.arange(0, n_rows, self.bin_steps)
        means = {}
        for name, values in rows.values.items():
            finite = np.isfinite(values)
            total = np.add.reduceat(np.where(finite, values, 0.0).astype(np.float64), edges, axis=1)
            count = np.add.reduceat(finite.astype(np.int64), edges, axis=1)
            means[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return rows.steps[np.append(edges[1:], n_rows) - 1], means

    def _shifts(self, rows: Rows) -> Iterator[Scalar]:
        if rows.steps[0] == 0:
            self.initial[self.group] = rows.values
        # Without the first measurement (dropped, or a probe without moments) there is no shift.
        a, b = self.initial.get(self.group), rows.values
        if rows.steps[-1] == self.about.steps:
            self.initial.pop(self.group, None)
        if a is None or not {"mean", "std"} <= set(b):
            return
        shift_LRS = mean_shift_on_host(a["mean"], a["std"], b["mean"], b["std"])
        over_sites = {
            "shift/deepest": shift_LRS[..., -1],
            "shift/median": _over_sites(np.median, shift_LRS),
            "shift/largest": _over_sites(np.max, shift_LRS),
        }
        yield from self._series(rows.steps, over_sites)

    def _divergences(self, rows: Rows) -> Iterator[Scalar]:
        assert self.group is not None
        diverged_at = rows.values["diverged_at"][:, -1]
        for series in self.about.groups[self.group]:
            of_runs = diverged_at[list(series.lanes)]
            n_diverged = int(np.isfinite(of_runs).sum())
            if n_diverged > self.n_diverged.get(series.name, 0):
                self.n_diverged[series.name] = n_diverged
                at = int(rows.steps[-1]) if self.about.medians else int(of_runs[0])
                yield series.name, at, {"diverged": float(n_diverged)}


def _over_sites(summary: Callable[[np.ndarray], Any], shift_LRS: np.ndarray) -> np.ndarray:
    """``summary`` of the sites that have a shift ``[L, R]``; NaN where none has."""
    out = np.full(shift_LRS.shape[:2], np.nan)
    for place in np.ndindex(out.shape):
        known = shift_LRS[place][np.isfinite(shift_LRS[place])]
        if known.size:
            out[place] = summary(known)
    return out
