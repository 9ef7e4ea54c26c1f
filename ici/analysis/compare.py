"""Comparing norms, depths, learning rates or whole experiments, seed by seed, with verdicts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from ici.analysis.alignment import at_best, comparable, finished, shared
from ici.analysis.compared import POWER, At, Compared, Comparison, Quantity
from ici.analysis.digest import Digest
from ici.analysis.records import describe_setting, short
from ici.analysis.statistics import (
    Effect,
    Interval,
    holm,
    paired_effect,
    seeds_needed,
    unpaired_effect,
)
from ici.errors import InputError


def compare(
    digest: Digest,
    dim: str,
    baseline: Any = None,
    *,
    at: At = "best",
    level: float = 0.95,
) -> Comparison:
    """Every value along a run dimension against the baseline, within each other setting.

    Args:
      digest: the experiment.
      dim: norm, depth, lr or whatever else was swept.
      baseline: a label of `dim`; None is "none" where that is a norm, else the first.
      at: ``"best"`` compares each at its own best learning rate (by the median best evaluation),
        ``"equal"`` at every learning rate. The best rate is chosen on the seeds that are compared,
        so that the values themselves are optimistic; the choice favours no side.
      level: confidence level of intervals, and of Holm's test over all rows.

    Raises:
      InputError: no such dimension or label, or a single value along it.
    """
    runs = digest.runs
    if dim not in digest.cell_dims:
        raise InputError(
            f"runs have no dimension {dim!r} to compare: wanted one of "
            f"{', '.join(digest.cell_dims)}."
        )
    labels = runs[dim].values.tolist()
    if len(labels) < 2:
        raise InputError(f"{dim} has the one value {labels[0]}: wanted two or more to compare.")
    first = "none" if dim == "norm" and "none" in labels else labels[0]
    chosen = first if baseline is None else baseline
    if chosen not in labels:
        raise InputError(f"no run has {dim} {chosen}: wanted one of {labels}.")
    return _compared(finished(runs), dim, chosen, digest, at, level, paired=True)


def compare_records(
    digests: Mapping[str, Digest],
    baseline: str | None = None,
    *,
    at: At = "best",
    level: float = 0.95,
) -> Comparison:
    """Two or more experiments over the labels that they share; pairs seeds where all have them.

    Raises:
      InputError: fewer than two experiments, other tasks, or no label in common along a dimension.
    """
    names = list(digests)
    if len(names) < 2:
        raise InputError("one experiment: wanted two or more to compare, or --compare norm.")
    comparables, notes = comparable(digests)
    first = digests[names[0]]
    seeds = [digest.runs["seed"].values.tolist() for digest in digests.values()]
    paired = all(each == seeds[0] for each in seeds)
    if not paired:
        notes.append("seeds differ: runs are compared unpaired")
    tables = []
    for runs in comparables:
        table = finished(runs) if at == "equal" else at_best(finished(runs), first.score)
        table = table.drop_vars(["cause", "outcome"], errors="ignore")
        if not paired:
            # Seeds of different runs that happen to have one number are no pair.
            table = table.assign_coords(seed=np.arange(table.sizes["seed"]))
        tables.append(table)
    tables, dropped = shared(tables, names)
    whole = xr.concat(
        tables, dim=xr.Variable("experiment", names), join="outer", combine_attrs="drop"
    )
    # Misses of the longer experiment count as many steps as the shorter one had.
    horizon = min(int(digest.scores["step"].max()) for digest in digests.values())
    whole.attrs = first.runs.attrs | {"horizon": horizon}
    chosen = names[0] if baseline is None else baseline
    if chosen not in names:
        raise InputError(f"no experiment {chosen!r}: wanted one of {', '.join(names)}.")
    found = _compared(whole, "experiment", chosen, first, at, level, paired, chosen_lr=at == "best")
    return replace(found, notes=(*found.notes, *notes, *dropped))


def quantities(runs: xr.Dataset, digest: Digest) -> list[Quantity]:
    """What of a run table is compared, in the order of interest."""
    site, target = runs.attrs.get("site"), runs.attrs.get("target")
    better = "higher" if digest.score == "accuracy" else "lower"
    wanted = [
        Quantity(f"validation_{digest.score}", f"validation {digest.score}", better),
        Quantity("final_loss", "final training loss", "lower"),
        Quantity("steps_to_target", f"steps to {target}", "lower"),
        Quantity("spikes", "spikes per run", "lower"),
        Quantity("shift", f"shift at {site}, σ", "", log=True),
    ]
    return [quantity for quantity in wanted if quantity.name in runs]


def _compared(
    runs: xr.Dataset,
    dim: str,
    baseline: Any,
    digest: Digest,
    at: At,
    level: float,
    paired: bool,
    chosen_lr: bool = False,
) -> Comparison:
    if at not in ("best", "equal"):
        raise InputError(f"at is {at!r}: wanted best or equal.")
    table = runs
    if at == "best" and dim != "lr" and not chosen_lr:
        table = at_best(runs, digest.score)
    if "diverged_share" not in table:
        table = table.assign(diverged_share=table["diverged_at"].notnull().astype(np.float64))
    horizon = runs.attrs.get("horizon", int(digest.scores["step"].max()))
    rows: list[Compared] = []
    others = [label for label in table[dim].values.tolist() if label != baseline]
    for setting in _others(table, dim):
        for label in others:
            where = _where(table, dim, (baseline, label), setting)
            for quantity in quantities(runs, digest):
                cells = [{dim: each, **setting} for each in (baseline, label)]
                pair = [_values(table, quantity, cell, horizon) for cell in cells]
                found = _row(quantity, setting, where, (baseline, label), pair, level, paired)
                rows.append(
                    replace(found, left_out=_left_out(table, quantity, cells, pair, paired))
                )
    rows += _divergence_rows(runs, dim, baseline, level)
    adjusted = holm([row.p_value for row in rows])
    final = [
        replace(row, p_adjusted=float(p), verdict=_verdict(row, float(p), level))
        for row, p in zip(rows, adjusted, strict=True)
    ]
    return Comparison(dim, tuple(final), level, at, int(np.isfinite(adjusted).sum()), paired)


def _others(table: xr.Dataset, dim: str) -> Iterator[dict[str, Any]]:
    dims = [str(d) for d in table["diverged_share"].dims if d not in (dim, "seed")]
    values = [table[d].values.tolist() for d in dims]
    for each in itertools.product(*values):
        yield dict(zip(dims, each, strict=True))


def _values(
    table: xr.Dataset, quantity: Quantity, cell: dict[str, Any], horizon: int
) -> np.ndarray:
    """A number per seed ``[seed]``, NaN where there is none; logarithms for ratios."""
    values = table[quantity.name].sel(cell).transpose("seed").values.astype(np.float64)
    if quantity.name == "steps_to_target":
        values = np.minimum(values, horizon)
    if quantity.log:
        values = np.log(np.where(values > 0, values, np.nan))
    return np.where(np.isfinite(values), values, np.nan)


def _left_out(
    table: xr.Dataset,
    quantity: Quantity,
    cells: Sequence[dict[str, Any]],
    pair: Sequence[np.ndarray],
    paired: bool,
) -> str:
    """Why runs are in no number of a row: ``3 diverged, 1 still going``; empty where all are."""
    counts: dict[str, int] = {}
    for cell, own, other in zip(cells, pair, reversed(pair), strict=True):
        runs = table[["diverged_at", "going"]].sel(cell).transpose("seed")
        chosen = "best_lr" not in table or bool(table["best_lr"].sel(cell).notnull().all())
        # Empty where a concatenation has no run.
        going = runs["going"].values.astype(np.float64) > 0
        ended = runs["diverged_at"].notnull().values
        for i in range(len(own)):
            if not np.isnan(own[i]):
                if not paired or not np.isnan(other[i]):
                    continue
                reason = "without a partner"
            elif not chosen:
                reason = "without a rate that all seeds finish"
            elif going[i]:
                reason = "still going"
            elif quantity.name == "spikes":
                reason = "too short to judge"
            else:
                reason = "diverged" if ended[i] else "without a value"
            counts[reason] = counts.get(reason, 0) + 1
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())


def _where(table: xr.Dataset, dim: str, labels: tuple[Any, Any], setting: dict[str, Any]) -> str:
    if "best_lr" not in table:
        return ""
    rates = [float(table["best_lr"].sel({dim: label, **setting})) for label in labels]
    return " and ".join("no finished lr" if math.isnan(r) else f"lr {short(r)}" for r in rates)


def _row(
    quantity: Quantity,
    setting: dict[str, Any],
    where: str,
    labels: tuple[Any, Any],
    pair: Sequence[np.ndarray],
    level: float,
    paired: bool,
) -> Compared:
    a, b = pair
    n_all = len(a) + len(b)
    if paired:
        both = ~np.isnan(a) & ~np.isnan(b)
        a, b = a[both], b[both]
    else:
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    n = min(len(a), len(b))
    effect = None
    if n:
        effect = (paired_effect if paired else unpaired_effect)(a, b, level)
    means = [float(each.mean()) if len(each) else math.nan for each in (a, b)]
    if quantity.log:
        means = [math.exp(mean) for mean in means]
    needed = math.nan
    if effect is not None and math.isfinite(effect.standardised.estimate):
        needed = seeds_needed(effect.standardised.estimate, level, POWER, paired)
    return Compared(
        quantity,
        describe_setting(setting),
        where,
        short(labels[0]),
        short(labels[1]),
        means[0],
        means[1],
        effect,
        math.nan if effect is None else effect.p_value,
        math.nan,
        "",
        needed,
        n,
        n_all - len(a) - len(b),
    )


def _divergence_rows(runs: xr.Dataset, dim: str, baseline: Any, level: float) -> list[Compared]:
    """Shares of diverged runs over all learning rates and settings: Fisher's exact test."""
    from scipy.stats import fisher_exact

    if "lr" not in runs.dims and "diverged_share" in runs:
        return []
    ended = runs["diverged_at"].notnull()

    def counts(label: Any) -> tuple[int, int]:
        return int(ended.sel({dim: label}).sum()), int(ended.sel({dim: label}).size)

    quantity = Quantity("diverged", "diverged runs", "lower")

    def going(label: Any) -> int:
        return int((runs["going"].sel({dim: label}).astype(np.float64) > 0).sum())

    k0, n0 = counts(baseline)
    rows = []
    for label in runs[dim].values.tolist():
        if label == baseline:
            continue
        k, n = counts(label)
        tested: Any = fisher_exact([[k0, n0 - k0], [k, n - k]])
        none = Interval(k / n - k0 / n0, math.nan, math.nan, n, level, "Fisher's exact test")
        same = (ended.sel({dim: label}) == ended.sel({dim: baseline})).all()
        n_going = going(baseline) + going(label)
        # Those that diverged have ended early: what has ended is no sample of what will.
        tests = runs.sizes["seed"] > 1 and not bool(same) and not n_going
        p_value = float(tested.pvalue) if tests else math.nan
        effect = Effect(none, replace(none, estimate=math.nan), p_value, False, n)
        rows.append(
            Compared(
                quantity,
                "",
                f"all learning rates, {k0}/{n0} and {k}/{n}",
                short(baseline),
                short(label),
                k0 / n0,
                k / n,
                effect,
                p_value,
                math.nan,
                "",
                math.nan,
                runs.sizes["seed"],
                0,
                n_going=n_going,
            )
        )
    return rows


def _verdict(row: Compared, p_adjusted: float, level: float) -> str:
    if row.effect is None:
        return "nothing to compare: no run of one side has a value"
    if row.n_going:
        return f"no verdict yet: {row.n_going} runs still going"
    if row.n < 2:
        return "one seed: no verdict"
    if row.of_value == row.of_baseline and math.isnan(row.p_value):
        return "equal in every run"
    if math.isnan(p_adjusted) or p_adjusted > 1 - level:
        return "not distinguishable"
    rises = row.of_value > row.of_baseline
    if not row.quantity.better:
        return "higher" if rises else "lower"
    return "better" if rises == (row.quantity.better == "higher") else "worse"
