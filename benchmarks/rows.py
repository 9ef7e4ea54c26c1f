"""One row of the table: repeats, their median and spread, and the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Target:
    """A bound on the median."""

    bound: float
    kind: Literal["at least", "at most"]

    def met(self, value: float) -> bool:
        """Whether `value` is on the right side of the bound."""
        return value >= self.bound if self.kind == "at least" else value <= self.bound


@dataclass(frozen=True)
class Row:
    """A measured quantity.

    Attributes:
      benchmark: which benchmark it comes from; a name that ``--only`` takes.
      label: what is measured.
      unit: "x", "%", "s" or "run-steps/s".
      values: one per repeat, in `unit`; empty for a skipped row.
      target: what the median is held against, if anything.
      raw_s: seconds of every contestant in every repeat.
      notes: numbers that explain the row.
      skipped: why there is no measurement.
    """

    benchmark: str
    label: str
    unit: str
    values: Sequence[float] = ()
    target: Target | None = None
    raw_s: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def median(self) -> float | None:
        """Median over the repeats, None where the row was skipped."""
        return float(np.median(self.values)) if len(self.values) else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """First and third quartile over the repeats."""
        if not len(self.values):
            return None
        low, high = np.percentile(self.values, [25, 75])
        return float(low), float(high)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target, None where there is nothing to compare."""
        if self.target is None or self.median is None:
            return None
        return self.target.met(self.median)

    def describe(self) -> dict[str, Any]:
        """The row as plain JSON types."""
        quartiles = self.quartiles
        return {
            "benchmark": self.benchmark,
            "label": self.label,
            "unit": self.unit,
            "median": self.median,
            "quartile_low": quartiles and quartiles[0],
            "quartile_high": quartiles and quartiles[1],
            "target": self.target and self.target.bound,
            "target_kind": self.target and self.target.kind,
            "met": self.met,
            "skipped": self.skipped,
            "notes": self.notes,
            "values": list(self.values),
            "raw_s": self.raw_s,
        }


def ratios(
    seconds: dict[str, list[float]], slow: str, fast: str, scale: float = 1.0
) -> list[float]:
    """``scale · slow / fast`` round by round."""
    return [scale * s / f for s, f in zip(seconds[slow], seconds[fast], strict=True)]
