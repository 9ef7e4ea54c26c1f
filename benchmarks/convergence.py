"""How fast norms converge, across depth and learning rate: ``python -m benchmarks.convergence``.

An MLP of 5, 10 and 20 blocks on movie reviews, four norms, the seven learning rates of Wortsman et
al. (2023), five seeds: 420 runs of 600 steps. The target is set the AlgoPerf way, for each depth:
the median over seeds of the best setting's best evaluation. Depths are the workloads of the
performance profile.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import ici
from benchmarks.studies import kept, markdown, parsed, studied, told, took
from ici.analysis.answers import sensitivity
from ici.analysis.choices import best_lr
from ici.analysis.convergence import steps_to_target, target_from_best
from ici.analysis.digest import Digest
from ici.analysis.records import short
from ici.analysis.sensitivity import REFERENCE_RATES, largest_stable_lr
from ici.analysis.statistics import mean_interval, profile_score, restricted_mean
from ici.data import MovieReviews

EXPERIMENT = ici.Experiment(
    name="benchmark_convergence",
    data=MovieReviews(source="rotten_tomatoes", vocab_size=4096, max_tokens=48),
    model=ici.MLPConfig(width=64),
    norm=("none", "batch", "layer", "rms"),
    depth=(5, 10, 20),
    lr=REFERENCE_RATES,
    seed=(0, 1, 2, 3, 4),
    steps=600,
    batch_size=128,
    probe=ici.Probe(stats=("moments", "updates"), every=10),
    reference_every=100,
    eval_every=20,
)
SMOKE: dict[str, Any] = {"depth": (2, 4), "lr": (1e-3, 1e-2), "seed": (0, 1), "steps": 50}
COLUMNS = (
    "depth",
    "norm",
    "best lr",
    "validation acc., %",
    "steps to target",
    "met",
    "largest stable lr",
    "lr sensitivity",
    "gradient growth at init",
)


def main() -> None:
    """Trains, prints the table, writes it down."""
    options = parsed("convergence", __doc__)
    read, seconds = studied(EXPERIMENT, options, SMOKE)
    rows, times, targets = table(read)
    scores = profile_score(times) if np.isfinite(times).any() else np.zeros(times.shape[1])
    norms = read.runs["norm"].values.tolist()
    ranked = sorted(zip(norms, scores.tolist(), strict=True), key=lambda each: -each[1])
    notes = [
        f"{took(read, seconds)}. Mean and 95 % Student t "
        f"interval of {read.n_seeds} seeds, each norm at its best rate (median best evaluation).",
        "Targets, validation accuracy: "
        + "; ".join(f"depth {depth} {100 * value:.1f} %" for depth, value in targets.items())
        + ". Steps: mean with misses counted as the whole run.",
        "Performance profile score over depths (1: fastest everywhere; r = 4): "
        + ", ".join(f"{norm} {score:.2f}" for norm, score in ranked)
        + ".",
    ]
    told("Convergence", COLUMNS, rows, notes)
    found = {
        "columns": COLUMNS,
        "rows": rows,
        "notes": notes,
        "profile_scores": dict(ranked),
        "targets": targets,
        "markdown": markdown(COLUMNS, rows) + "\n" + "\n".join(notes) + "\n",
    }
    kept("convergence", options, read, found)


def table(read: Digest) -> tuple[list[list[str]], np.ndarray, dict[int, float]]:
    """Rows of the table, mean steps to target ``[depth, norm]`` (inf where most seeds missed it),
    and the targets by depth."""
    runs, best = read.runs, best_lr(read)
    norms, lrs = runs["norm"].values.tolist(), np.sort(runs["lr"].values)
    horizon = int(read.scores["step"].max())
    rows: list[list[str]] = []
    times, targets = [], {}
    for depth in runs["depth"].values.tolist():
        target = target_from_best(
            runs[f"best_validation_{read.score}"].sel(depth=depth), "accuracy"
        )
        assert target is not None, "some setting of every depth trains"
        targets[depth] = target.value
        spread = sensitivity(read, {"depth": depth})
        times.append([])
        for norm in norms:
            lr = float(best.sel(depth=depth, norm=norm))
            ended = runs["diverged_at"].sel(depth=depth, norm=norm).notnull().sortby("lr")
            stable = float(largest_stable_lr(lrs, ended.transpose("lr", "seed").values))
            growth = _growth(read, depth, norm)
            row = [str(depth), norm]
            if math.isnan(lr):
                times[-1].append(math.inf)
                rows.append([*row, "none is stable", "–", "–", "–", short(stable), "–", growth])
                continue
            cell = {"depth": depth, "norm": norm, "lr": lr}
            scores = read.scores.sel(cell).transpose("seed", "step")
            steps = steps_to_target(scores.values, scores["step"].values, target.value)
            met = int(np.isfinite(steps).sum())
            times[-1].append(restricted_mean(steps, horizon) if 2 * met > len(steps) else math.inf)
            accuracy = mean_interval(100 * runs["validation_accuracy"].sel(cell).values)
            rows.append(
                [
                    *row,
                    short(lr),
                    f"{accuracy.estimate:.1f} [{accuracy.low:.1f}–{accuracy.high:.1f}]",
                    f"{restricted_mean(steps, horizon):.0f}",
                    f"{met}/{len(steps)}",
                    f"{short(stable)}" + ("+" if stable == lrs[-1] else "") if stable else "none",
                    str(mean_interval(spread[norm])).replace(" to ", "–"),
                    growth,
                ]
            )
    return rows, np.asarray(times), targets


def _growth(read: Digest, depth: int, norm: str) -> str:
    if read.gradients is None or "growth" not in read.gradients:
        return "–"
    first = read.gradients.isel(step=0).sel(depth=depth, norm=norm).median("lr")
    growth = float(first["growth"])
    return f"× {growth:.2f}" if math.isfinite(growth) else "–"


if __name__ == "__main__":
    main()
