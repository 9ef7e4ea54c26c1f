"""Where losses spike, across depth, learning rate and norm: ``python -m benchmarks.spikes``.

An MLP of 5, 10 and 20 blocks on movie reviews, three norms, five learning rates around the edge of
stability, three seeds: 135 runs of 1500 steps, long enough for both presets of the spike score.
Spikes, divergence and sensitivity are shown together: a rate that is too high and diverges smoothly
has no spike at all. The probe is dense, so that the first layer to move is known to five steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import ici
from benchmarks.studies import kept, markdown, parsed, studied, told, took
from ici.analysis.anatomy import Anatomy, Lead, dissect_spikes
from ici.analysis.answers import sensitivity
from ici.analysis.digest import Digest
from ici.analysis.records import training_loss
from ici.data import MovieReviews
from ici.measure.spikes import spike_score

EXPERIMENT = ici.Experiment(
    name="benchmark_spikes",
    data=MovieReviews(source="rotten_tomatoes", vocab_size=4096, max_tokens=48),
    model=ici.MLPConfig(width=64),
    norm=("none", "batch", "layer"),
    depth=(5, 10, 20),
    lr=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    seed=(0, 1, 2),
    steps=1500,
    batch_size=128,
    probe=ici.Probe(every=5),
    reference_every=100,
    eval_every=100,
)
SMOKE: dict[str, Any] = {"depth": (2,), "lr": (1e-2, 1e-1), "seed": (0, 1), "steps": 200}
COLUMNS = (
    "depth",
    "norm",
    "score olmo2, ×1e-3",
    "score olmo_core, ×1e-3",
    "spikes",
    "runs with any",
    "steps to recover",
    "never",
    "diverged",
    "led by shift",
    "by chance",
    "p",
    "lr sensitivity",
)


def main() -> None:
    """Trains, prints the table, writes it down."""
    options = parsed("spikes", __doc__)
    read, seconds = studied(EXPERIMENT, options, SMOKE)
    rows = table(read, options.out)
    lead = read.spikes.lead
    notes = [
        f"{took(read, seconds)}; over {read.n_seeds} seeds and "
        f"{read.runs.sizes['lr']} learning rates. Scores: mean over runs of the share of spike "
        "values. Spikes: events, until back counted once "
        f"({read.spikes.rule.describe()}); steps to recover: median.",
        "Led by shift: spikes before which a layer's inputs left their range within "
        "50 steps; by chance: with the spikes at 999 other sets of times.",
        "All together: " + ("no spikes to judge." if lead is None else _lead(lead)),
    ]
    told("Spikes", COLUMNS, rows, notes)
    found = {
        "columns": COLUMNS,
        "rows": rows,
        "notes": notes,
        "markdown": markdown(COLUMNS, rows) + "\n" + "\n".join(notes) + "\n",
    }
    kept("spikes", options, read, found)


def _lead(lead: Lead) -> str:
    return (
        f"{lead.n_led} of {lead.n_events} spikes led, {100 * lead.null_share:.0f} % by chance, "
        f"p = {lead.p_value:.3g}; median lead {lead.median_steps:.0f} steps."
    )


def table(read: Digest, path: Any) -> list[list[str]]:
    """A row per depth and norm."""
    results = ici.open(path)
    rows = []
    for depth in read.runs["depth"].values.tolist():
        spread = sensitivity(read, {"depth": depth})
        for norm in read.runs["norm"].values.tolist():
            group = results.group(norm, depth)
            loss = training_loss(group).values
            scores = [
                f"{1e3 * np.nanmean(score.value):.2f}" if (score.n_judged > 0).any() else "–"
                for score in (spike_score(loss, preset) for preset in ("olmo2", "olmo_core"))
            ]
            study = dissect_spikes(group)
            runs = read.runs.sel(depth=depth, norm=norm)
            ended = int(runs["diverged_at"].notnull().sum())
            rows.append(
                [
                    str(depth),
                    norm,
                    *scores,
                    *_events(study.spikes),
                    f"{ended}/{runs['diverged_at'].size}",
                    *_led(study.lead),
                    f"{np.mean(spread[norm]):.3f}" if norm in spread else "–",
                ]
            )
    return rows


def _events(spikes: tuple[Anatomy, ...]) -> list[str]:
    recovered = [s.event.recovery_steps for s in spikes if math.isfinite(s.event.recovery_steps)]
    return [
        str(len(spikes)),
        str(len({tuple(s.run.items()) for s in spikes})),
        f"{np.median(recovered):.0f}" if recovered else "–",
        str(len(spikes) - len(recovered)),
    ]


def _led(lead: Lead | None) -> list[str]:
    if lead is None or not lead.n_events:
        return ["–", "–", "–"]
    return [
        f"{lead.n_led}/{lead.n_events}",
        f"{100 * lead.null_share:.0f} %",
        f"{lead.p_value:.2g}",
    ]


if __name__ == "__main__":
    main()
