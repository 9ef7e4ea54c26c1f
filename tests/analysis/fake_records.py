"""Records made by hand: exact ones for known answers, plausible ones for pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr


@dataclass
class FakeRecords:
    """What `ici.open` gives, held in memory."""

    train: xr.Dataset
    probe: xr.Dataset
    reference: xr.Dataset
    evaluation: xr.Dataset
    runs: xr.Dataset
    experiment: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("runs/fake")
    task: str = "classification"


RUN_DIMS = ("norm", "depth", "lr", "seed")


def measured_at(every: int, steps: int) -> np.ndarray:
    return np.unique(np.append(np.arange(0, steps, every), steps))


def blank(
    *,
    norms: tuple[str, ...] = ("none", "batch"),
    depths: tuple[int, ...] = (2,),
    lrs: tuple[float, ...] = (0.01, 0.1),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 20,
    sites: tuple[str, ...] = ("blocks/0/linear", "blocks/1/linear", "head"),
    width: int = 4,
    probe_every: int = 5,
    reference_every: int = 10,
    eval_every: int = 5,
    target: float | None = 0.8,
    extra: dict[str, tuple[Any, ...]] | None = None,
) -> FakeRecords:
    """A finished experiment in which nothing happens: loss 1, accuracy 0, moments (0, 1)."""
    labels: dict[str, Any] = {"norm": list(norms), "depth": list(depths), "lr": list(lrs)}
    labels |= {name: list(values) for name, values in (extra or {}).items()}
    labels["seed"] = list(seeds)
    shape = tuple(len(values) for values in labels.values())

    def node(at: np.ndarray, **variables: tuple[float, tuple[str, ...]]) -> xr.Dataset:
        sizes = {"site": len(sites), "feature": width}
        data = {
            name: (
                (*labels, "step", *dims),
                np.full((*shape, len(at), *(sizes[d] for d in dims)), value, np.float32),
            )
            for name, (value, dims) in variables.items()
        }
        coordinates = {**labels, "step": at}
        if any(dims for _, dims in variables.values()):
            coordinates["site"] = list(sites)
        return xr.Dataset(data, coordinates)

    moments = {
        "mean": (0.0, ("site", "feature")),
        "std": (1.0, ("site", "feature")),
        "count": (128.0, ("site",)),
    }
    return FakeRecords(
        train=node(np.arange(steps), loss=(1.0, ()), grad_norm=(1.0, ())),
        probe=node(np.arange(0, steps, probe_every), **moments),
        reference=node(measured_at(reference_every, steps), **moments),
        evaluation=node(measured_at(eval_every, steps), loss=(1.0, ()), accuracy=(0.0, ())),
        runs=xr.Dataset({"diverged_at": (tuple(labels), np.full(shape, np.nan))}, labels),
        experiment={
            "name": "fake",
            "norm": list(norms),
            "depth": list(depths),
            "lr": list(lrs),
            "seed": list(seeds),
            "steps": steps,
            "batch_size": 128,
            "reference_size": 512,
            "reference_every": reference_every,
            "eval_every": eval_every,
            "optimizer": "adam",
            "data": {"name": "movie_reviews"},
            "model": {"name": "mlp", "width": width},
            "target_accuracy": target,
            "stop_at_target": False,
        },
    )


def diverge(records: FakeRecords, step: int, last_loss: float = np.inf, **run: Any) -> None:
    """Ends the runs at these labels as the engine does: NaN after the refused update."""
    records.runs["diverged_at"].loc[run] = step
    loss = records.train["loss"]
    loss.loc[{**run, "step": step}] = last_loss
    for node in (records.train, records.probe, records.reference, records.evaluation):
        after = node["step"].values[node["step"].values > step]
        for variable in node.data_vars.values():
            variable.loc[{**run, "step": after}] = np.nan


def drop_site(records: FakeRecords, norm: str, site: str) -> None:
    """A site that the networks with this norm do not have."""
    for node in (records.probe, records.reference):
        for variable in node.data_vars.values():
            variable.loc[{"norm": norm, "site": site}] = np.nan


def plausible(
    *,
    norms: tuple[str, ...] = ("none", "batch", "layer"),
    lrs: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 600,
    n_layers: int = 10,
    width: int = 128,
    **more: Any,
) -> FakeRecords:
    """Runs that look like the real ones: networks without norm drift, spike, die and diverge."""
    sites = tuple(f"blocks/{i}/{part}" for i in range(n_layers) for part in ("linear", "norm"))
    records = blank(
        norms=norms,
        depths=(n_layers,),
        lrs=lrs,
        seeds=seeds,
        steps=steps,
        sites=(*sites, "head"),
        width=width,
        probe_every=10,
        reference_every=50,
        eval_every=50,
        target=0.75,
        **more,
    )
    rng = np.random.default_rng(0)
    level = np.arange(2 * n_layers + 1) / (2 * n_layers)
    for norm in norms:
        tame = {"none": 0.0, "batch": 1.0, "layer": 0.6}.get(norm, 0.5)
        for lr in lrs:
            for seed in seeds:
                run = {"norm": norm, "lr": lr, "seed": seed}
                _fill_losses(records, run, tame, rng)
                _fill_moments(records.probe, run, tame, level, seed)
                _fill_moments(records.reference, run, tame, level, seed)
                if norm == "none" and lr >= 0.03:
                    step = int(rng.integers(3, steps // 6))
                    if lr > 0.03 or seed == 1:
                        diverge(records, step, last_loss=1e6, **run)
        if norm == "none":
            for i in range(n_layers):
                drop_site(records, "none", f"blocks/{i}/norm")
    return records


def _fill_losses(records: FakeRecords, run: dict[str, Any], tame: float, rng: Any) -> None:
    step = records.train["step"].values
    speed = run["lr"] * (2.0 if tame else 1.0) * 8
    decay = np.exp(-np.minimum(speed, 0.05) * step)
    floor = 0.25 + 0.15 * max(0.0, np.log10(run["lr"] / 3e-3)) ** 2
    loss = floor + (0.72 - floor) * decay + rng.normal(0, 0.03, len(step))
    if tame < 0.5 and run["lr"] >= 1e-2:
        for onset in rng.integers(20, len(step) - 20, 3):
            loss[onset : onset + 12] += 20 * rng.random() * np.exp(-np.arange(12) / 3)
    records.train["loss"].loc[run] = np.maximum(loss, 0.02)
    at = records.evaluation["step"].values
    accuracy = 0.5 + 0.3 * (1 - np.exp(-np.minimum(speed, 0.05) * at)) - 0.1 * (floor - 0.25)
    records.evaluation["accuracy"].loc[run] = accuracy + rng.normal(0, 0.01, len(at))


def _fill_moments(
    node: xr.Dataset, run: dict[str, Any], tame: float, level: np.ndarray, seed: int
) -> None:
    at = node["step"].values / 600.0
    n_sites, width = node.sizes["site"], node.sizes["feature"]
    rng = np.random.default_rng(seed)
    unit_SD = rng.normal(0, 1, (n_sites, width))
    growth = (1.2 - tame) * run["lr"] * 300 * level[:, None] ** 2
    time = at[:, None, None] ** 0.7
    mean = 0.4 * unit_SD + np.sin(6 * time) * growth * 0.4 * unit_SD[::-1] + growth * time * 0.3
    std = np.abs(0.7 + 0.15 * unit_SD) * np.exp(np.minimum(growth * time, 2.5) * 0.6)
    if tame == 1.0:
        std = np.full_like(mean, 0.58) + 0.05 * unit_SD * (1 + time)
    node["mean"].loc[run] = mean
    node["std"].loc[run] = np.abs(std)
