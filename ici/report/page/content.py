"""What the page shows, as JSON: labels, sentences and packed arrays; no drawing."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ici.analysis.answers import answers
from ici.analysis.choices import best_lr
from ici.analysis.digest import Digest
from ici.analysis.outcomes import OUTCOMES
from ici.analysis.records import describe_setting, short
from ici.analysis.statistics import kaplan_meier
from ici.report.captions import captions
from ici.report.stacked import cell_settings, stacked
from ici.store.replays import (
    REPLAY_FIGURE,
    REPLAYS,
    recorded_replays,
    replay_command,
    replay_of,
    window_around,
)

MAX_SPIKES, MAX_MOVERS = 1000, 5


def pack(values: Any) -> dict[str, Any]:
    """An array as ``{shape, data}``: float32 without its lowest 8 bits (relative error 2⁻¹⁶).

    Four characters a number, whatever its size, NaN and infinities as they are.
    """
    numbers = np.ascontiguousarray(values, np.float32)
    bits = numbers.view(np.uint32).ravel()
    # Rounding must not carry a NaN over the end; and the largest numbers become infinite.
    rounded = np.where(np.isfinite(numbers.ravel()), bits + np.uint32(0x80), bits) >> np.uint32(8)
    data = rounded.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    text = base64.b64encode(np.ascontiguousarray(data).tobytes()).decode("ascii")
    return {"shape": list(numbers.shape), "data": text}


def content(digest: Digest) -> dict[str, Any]:
    """One experiment of the page.

    Arrays have the dimensions setting, norm, lr, then seed where they are per run, then their own.
    A setting is a combination of all other swept values, such as a depth.
    """
    settings = cell_settings(digest)
    runs = digest.runs
    experiment = digest.experiment
    lrs = runs["lr"].values.tolist()
    steps = int(experiment["steps"])
    return {
        "name": experiment.get("name") or digest.path.name,
        "path": str(digest.path),
        "steps": steps,
        "score": digest.score,
        "settings": [describe_setting(setting) or "all" for setting in settings],
        "norms": runs["norm"].values.tolist(),
        "lrs": lrs,
        "lrLabels": [short(lr) for lr in lrs],
        "seeds": [str(seed) for seed in runs["seed"].values.tolist()],
        "outcomes": list(OUTCOMES),
        "target": digest.runs.attrs["target"],
        "targetSource": digest.target_source,
        "site": runs.attrs["site"],
        "answers": [{"question": a.question, "sentences": a.sentences} for a in answers(digest)],
        "facts": _facts(digest),
        "bestLr": _best_positions(digest, settings, lrs),
        "runs": _runs(digest),
        "curves": {
            "steps": digest.curves["step"].values.tolist(),
            "bin": digest.curves.attrs["bin_steps"],
            "mean": pack(stacked(digest, digest.curves["mean"])),
            "peak": pack(stacked(digest, digest.curves["peak"])),
        },
        "shift": _dataset(digest, digest.shift),
        "inputs": _dataset(digest, digest.inputs),
        "gradients": _dataset(digest, digest.gradients),
        "measured": {name: _dataset(digest, each) for name, each in digest.measured.items()},
        "survival": _survival(digest, settings),
        "spikes": _spikes(digest, settings),
        "captions": _captions(digest),
    }


def _dataset(digest: Digest, dataset: xr.Dataset | None) -> dict[str, Any] | None:
    """Every variable with its own dimensions in one order, and their labels."""
    if dataset is None:
        return None
    order = [d for d in ("step", "block", "site", "multiple", "percentile") if d in dataset.dims]
    labels = {dim: dataset[dim].values.tolist() for dim in order}
    variables = {}
    for name, values in dataset.data_vars.items():
        own = [dim for dim in order if dim in values.dims]
        cells = [dim for dim in digest.cell_dims if dim in values.dims]
        packed = pack(stacked(digest, values.transpose(*cells, *own)))
        variables[str(name)] = packed | {"dims": own}
    return {"labels": labels, "variables": variables}


def _runs(digest: Digest) -> dict[str, Any]:
    runs = digest.runs
    score = digest.score
    wanted = {
        "finalLoss": "final_loss",
        "score": f"validation_{score}",
        "bestScore": f"best_validation_{score}",
        "divergedAt": "diverged_at",
        "spikes": "spikes",
        "stepsToTarget": "steps_to_target",
        "secondsToTarget": "seconds_to_target",
        "shift": "shift",
        "dead": "dead_features",
    }
    found = {key: pack(stacked(digest, runs[name])) for key, name in wanted.items() if name in runs}
    index = {name: i for i, name in enumerate(OUTCOMES)}
    outcome = np.vectorize(index.__getitem__)(stacked(digest, runs["outcome"]))
    return found | {"outcome": pack(outcome)}


def _best_positions(
    digest: Digest, settings: Sequence[dict[str, Any]], lrs: list[float]
) -> list[list[int | None]]:
    best = best_lr(digest)
    norms = digest.runs["norm"].values.tolist()
    rows = []
    for setting in settings:
        found = [float(best.sel({"norm": norm, **setting})) for norm in norms]
        rows.append([None if math.isnan(lr) else lrs.index(lr) for lr in found])
    return rows


def _survival(digest: Digest, settings: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Kaplan–Meier curves per setting and norm: at its best rate, and over all its runs."""
    if "steps_to_target" not in digest.runs:
        return None
    steps, best = digest.runs["steps_to_target"], best_lr(digest)
    ended = digest.runs["going"]
    horizon = int(digest.scores["step"].max())
    found = []
    for i, setting in enumerate(settings):
        for j, norm in enumerate(digest.runs["norm"].values.tolist()):
            lr = float(best.sel({"norm": norm, **setting}))
            of_norm = steps.sel({"norm": norm, **setting}).where(
                ~ended.sel({"norm": norm, **setting})
            )
            chosen = {"all": of_norm.values.ravel()}
            if not math.isnan(lr):
                chosen["best"] = of_norm.sel(lr=lr).values.ravel()
            for kind, times in chosen.items():
                times = times[~np.isnan(times)]
                if not len(times):
                    continue
                curve = kaplan_meier(times, horizon)
                found.append(
                    {
                        "setting": i,
                        "norm": j,
                        "kind": kind,
                        "n": len(times),
                        "met": int(np.isfinite(times).sum()),
                        "steps": np.asarray(curve.steps).tolist(),
                        "survival": pack(curve.survival),
                        "low": pack(curve.low),
                        "high": pack(curve.high),
                    }
                )
    return found


def _spikes(digest: Digest, settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    runs = digest.runs
    labels = {dim: runs[dim].values.tolist() for dim in ("norm", "lr", "seed")}
    places = {tuple(setting.items()): i for i, setting in enumerate(settings)}
    dims = [dim for dim in digest.cell_dims if dim not in ("norm", "lr")]
    # The furthest from their level, in units of the level: losses of different runs compare.
    ordered = sorted(
        digest.spikes.spikes,
        key=lambda s: -abs(s.event.height) / max(abs(s.event.level), 1e-12),
    )
    rows = []
    steps, replays = int(digest.experiment["steps"]), recorded_replays(digest.path)
    for spike in ordered[:MAX_SPIKES]:
        event = spike.event
        found = replay_of(replays, spike.run, event.onset)
        recorded = None if found is None else f"{REPLAYS}/{found.name}/{REPLAY_FIGURE}"
        window = window_around(event.onset, steps)
        place = [places[tuple((dim, spike.run[dim]) for dim in dims)]]
        place += [labels[dim].index(spike.run[dim]) for dim in ("norm", "lr", "seed")]
        movers = [
            [m.site, m.step, *(_rounded(v) for v in (m.shift, m.ratio, m.deviation))]
            for m in spike.movers[:MAX_MOVERS]
        ]
        rows.append(
            {
                "run": place,
                "onset": event.onset,
                "peak": event.peak,
                "end": event.end,
                "level": _rounded(event.level),
                "height": _rounded(event.height),
                "movers": movers,
                "replay": replay_command(digest.path, spike.run, *window),
                "recorded": recorded,
            }
        )
    lead = digest.spikes.lead
    return {
        "rows": rows,
        "total": len(ordered),
        "rule": digest.spikes.rule.describe(),
        "lead": None
        if lead is None or not lead.n_events
        else {
            "events": lead.n_events,
            "led": lead.n_led,
            "null": _rounded(lead.null_share),
            "p": _rounded(lead.p_value),
            "lookback": lead.lookback_steps,
            "median": _rounded(lead.median_steps),
        },
    }


def _rounded(value: float) -> float | None:
    """Four significant digits; JSON has no NaN and no infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _facts(digest: Digest) -> list[str]:
    experiment, environment = digest.experiment, digest.environment
    runs = digest.runs
    facts = [
        f"{runs['diverged_at'].size} runs of {experiment['steps']} steps, "
        f"{experiment.get('optimizer', '?')}, batch {experiment.get('batch_size', '?')}, "
        f"{digest.n_seeds} seed" + ("s" if digest.n_seeds != 1 else ""),
        f"reference batch: {experiment.get('reference_size', '?')} examples, measured every "
        f"{experiment.get('reference_every', '?')} steps",
        f"evaluation every {experiment.get('eval_every', '?')} steps",
    ]
    if environment:
        versions = environment.get("versions", {})
        facts.append(
            f"{environment.get('devices', '?')} × {environment.get('device_kind', '?')} "
            f"({environment.get('cpu', '?')}), jax {versions.get('jax', '?')}, "
            f"flax {versions.get('flax', '?')}"
        )
    unfinished = [digest.runs.attrs["incomplete"].rstrip(".")] if digest.not_begun else []
    return [*unfinished, *facts, *digest.notes]


def _captions(digest: Digest) -> dict[str, str]:
    """The captions of the figures, with what only a page can do."""
    found = captions(digest)
    found["phase"] += " A cell selects its norm, learning rate and setting in the other figures."
    return found
