"""A record with something in every table: two groups that differ in sites, blocks, width, ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ici.store.manifest import GroupEntry, Manifest
from ici.store.results import Results, open_results
from ici.store.writer import PER_FEATURE, PER_SITE, GroupWriter, Layout, Node, Variable

LRS, SEEDS = (0.01, 0.1), (0, 1, 2)
SITES = {"none": ("first", "head"), "batch": ("first", "norm", "head")}
WIDTHS = {"first": 4, "norm": 6, "head": 2}
BLOCKS = {"none": ("first", "head"), "batch": ("first", "norm", "head")}
MULTIPLES = (0.5, 1.0, 2.0)
DIVERGED = {"none": (-1, 7), "batch": ()}  # row of the runs, step
MEASURED = {
    "landscape": {"loss_along": ("multiple",), "effective_smoothness": ()},
    "attribution": {"attribution": ("block", "site"), "update_shift": PER_SITE},
}


def tabled(
    folder: Path,
    steps: int = 24,
    seeds: tuple[int, ...] = SEEDS,
    status: str = "done",
    committed: int | None = None,
) -> Results:
    """Writes the record, of which each node has `committed` rows if not all, and opens it."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment = {
        "name": "tabled",
        "norm": list(SITES),
        "depth": [2],
        "lr": list(LRS),
        "seed": list(seeds),
        "weight_decay": [0.0],
        "steps": steps,
        "batch_size": 8,
        "measure": [*MEASURED],
        "target_accuracy": 0.5,
        "stop_at_target": False,
    }
    manifest = Manifest(experiment, "print", "digest", {})
    rng = np.random.default_rng(0)
    for norm in SITES:
        _group(folder, manifest, norm, steps, seeds, committed, rng)
    manifest.status = status
    manifest.write(folder)
    return open_results(folder)


def _group(folder, manifest, norm, steps, seeds, committed, rng) -> None:
    moments = {n: Variable(PER_FEATURE) for n in ("mean", "std")} | {"count": Variable(PER_SITE)}
    updates = {"update_ratio": Variable(("block",)), "total_update_ratio": Variable()}
    often, seldom = np.arange(0, steps, 2), np.arange(0, steps + 1, 8)
    nodes = {
        "train": Node(np.arange(steps), 5, {"loss": Variable(), "grad_norm": Variable()}),
        "probe": Node(often, 3, moments | updates),
        "reference": Node(seldom, 1, moments),
        "evaluation": Node(seldom, 1, {"loss": Variable(), "accuracy": Variable()}),
        "runs": Node(np.array([steps]), 1, {"diverged_at": Variable()}),
    }
    for name, dims in MEASURED.items():
        variables = {key: Variable(each) for key, each in dims.items()}
        nodes[name] = Node(seldom[:-1], 1, variables)
    sites = SITES[norm]
    widths = tuple(WIDTHS[site] for site in sites)
    axes = {"block": BLOCKS[norm], "multiple": MULTIPLES}
    lanes = {"lr": LRS, "weight_decay": (0.0,), "seed": seeds}
    layout = Layout(lanes, sites, widths, nodes, axes)
    entry = GroupEntry(norm, 2, {})
    writer = GroupWriter(folder, manifest, f"norm={norm},depth=2", entry, layout)
    n = len(LRS) * len(seeds)
    diverged_at = np.full(n, np.nan)
    if DIVERGED[norm] and (committed is None or committed > DIVERGED[norm][1]):
        diverged_at[DIVERGED[norm][0]] = DIVERGED[norm][1]
    for name, node in nodes.items():
        if name == "runs":
            continue
        n_rows = len(node.steps) if committed is None else min(committed, len(node.steps))
        at = node.steps[:n_rows]
        for key, variable in node.variables.items():
            shape = (n, n_rows, *layout.extent(variable.dims))
            values = rng.lognormal(size=shape).astype(np.float32)
            if variable.dims == PER_FEATURE:
                for s, width in enumerate(widths):
                    values[:, :, s, width:] = np.nan
            values[at > diverged_at[:, None]] = np.nan
            # The loss that was refused is no number.
            if name == "train":
                values[at == diverged_at[:, None]] = np.nan
            writer.write(name, {key: values}, first=0)
        entry.rows[name] = n_rows
    writer.write("runs", {"diverged_at": diverged_at[:, None].astype(np.float32)}, first=0)
    entry.done = committed is None
    writer.commit()
