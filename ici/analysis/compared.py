"""What a comparison says: its quantities, its rows, and the constants behind its verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ici.analysis.statistics import Effect

At = Literal["best", "equal"]
POWER = 0.8


@dataclass(frozen=True)
class Quantity:
    """One column of a run table that is compared.

    `better` is "higher", "lower" or "" for a quantity without a good side; `log` compares ratios.
    """

    name: str
    label: str
    better: str
    log: bool = False


@dataclass(frozen=True)
class Compared:
    """One quantity of one value against the baseline's.

    Attributes:
      quantity, setting, where: what, at which other values, at which learning rates.
      baseline, value: the labels compared.
      of_baseline, of_value: means over the seeds used; geometric ones for ratios, shares for
        diverged runs.
      effect: None where nothing can be compared; of logarithms for ratios.
      p_adjusted: Holm's, over all rows of the comparison that have a p-value.
      verdict: better, worse, lower, higher, not distinguishable, equal in every run, or why there
        is none.
      seeds_needed: on each side, to tell this difference alone at 80 % power; NaN if unknown.
      n: seeds used on each side; n_left_out: runs left out, and left_out why: a reason with its
        number each.
      n_going: runs still going that keep a row from its verdict.
    """

    quantity: Quantity
    setting: str
    where: str
    baseline: str
    value: str
    of_baseline: float
    of_value: float
    effect: Effect | None
    p_value: float
    p_adjusted: float
    verdict: str
    seeds_needed: float
    n: int
    n_left_out: int
    left_out: str = ""
    n_going: int = 0


@dataclass(frozen=True)
class Comparison:
    """All rows of a comparison, and the constants behind its verdicts."""

    dim: str
    rows: tuple[Compared, ...]
    level: float
    at: At
    n_tests: int
    paired: bool
    notes: tuple[str, ...] = ()
