"""How long a report takes and how large it is, over the number of runs; on made-up records.

``python -m benchmarks.reports N [--figures]`` makes a record of N runs, reports it, prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import BenchmarkError
from benchmarks.rows import Row, Target
from benchmarks.sizes import Size
from ici.store.manifest import GroupEntry, Manifest
from ici.store.writer import PER_FEATURE, PER_SITE, GroupWriter, Layout, Node, Variable

STEPS, N_LAYERS, WIDTH = 600, 10, 32
# Norms, depths, learning rates and seeds of the sizes measured.
GRIDS = {
    8: (2, 1, 2, 2),
    24: (2, 1, 4, 3),
    200: (4, 2, 5, 5),
    2000: (5, 4, 10, 10),
    10000: (5, 10, 10, 20),
}
NORMS = ("none", "batch", "layer", "rms", "group")


def make_record(folder: Path, n_runs: int) -> None:
    """Runs that decay, spike, drift and diverge at random, written as the engine writes them."""
    n_norms, n_depths, n_lrs, n_seeds = GRIDS[n_runs]
    lrs, seeds = np.geomspace(1e-4, 1e-1, n_lrs).tolist(), list(range(n_seeds))
    experiment: dict[str, Any] = {
        "name": f"made_up_{n_runs}",
        "norm": list(NORMS[:n_norms]),
        "depth": list(range(2, 2 + n_depths)),
        "lr": lrs,
        "weight_decay": [0.0],
        "seed": seeds,
        "steps": STEPS,
        "batch_size": 128,
        "optimizer": "adam",
        "eval_every": 50,
        "reference_every": 50,
        "reference_size": 512,
        "target_accuracy": 0.7,
        "probe": {"every": 10},
        "stop_at_target": False,
        "divergence_ratio": 1e3,
        "measure": [],
    }
    environment = {
        "devices": 1,
        "device_kind": "cpu",
        "cpu": "made up",
        "versions": {"jax": "-", "flax": "-"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(experiment, "made up", "made up", environment, status="done")
    rng = np.random.default_rng(0)
    for norm in experiment["norm"]:
        for depth in experiment["depth"]:
            _make_group(folder, manifest, norm, depth, lrs, seeds, rng)
    manifest.status = "done"
    manifest.write(folder)


def _make_group(
    folder: Path,
    manifest: Manifest,
    norm: str,
    depth: int,
    lrs: list[float],
    seeds: list[int],
    rng: np.random.Generator,
) -> None:
    sites = tuple(f"blocks/{i}/{kind}" for i in range(N_LAYERS) for kind in ("linear", "norm"))
    sites += ("head",)
    moments = {
        "mean": Variable(PER_FEATURE),
        "std": Variable(PER_FEATURE),
        "count": Variable(PER_SITE),
    }
    between = np.arange(0, STEPS + 1, 50)
    nodes = {
        "train": Node(np.arange(STEPS), 100, {"loss": Variable(), "grad_norm": Variable()}),
        "probe": Node(np.arange(0, STEPS, 10), 10, moments),
        "reference": Node(between, 1, moments),
        "evaluation": Node(between, 1, {"loss": Variable(), "accuracy": Variable()}),
        "runs": Node(np.array([STEPS]), 1, {"diverged_at": Variable()}),
    }
    layout = Layout({"lr": lrs, "weight_decay": [0.0], "seed": seeds}, sites, (WIDTH,) * 21, nodes)
    entry = GroupEntry(norm, depth, {})
    writer = GroupWriter(folder, manifest, f"norm={norm},depth={depth}", entry, layout)
    n = len(lrs) * len(seeds)
    ended = np.where(rng.random(n) < 0.1, rng.integers(50, STEPS, n), STEPS).astype(np.float32)
    steps = np.arange(STEPS)
    loss = 0.7 * np.exp(-steps / rng.uniform(100, 800, (n, 1))) + rng.normal(0, 0.01, (n, STEPS))
    loss = np.abs(np.where(rng.random((n, STEPS)) < 1e-3, 5 * loss, loss)).astype(np.float32)
    loss[steps[None] > ended[:, None]] = np.nan
    writer.write("train", {"loss": loss, "grad_norm": loss})
    for node, at in (("probe", nodes["probe"].steps), ("reference", between)):
        for start in range(0, len(at), 10):
            rows = at[start : start + 10]
            shape = (n, len(rows), len(sites), WIDTH)
            mean = rng.normal(0, 1, shape).astype(np.float32)
            gone = rows[None] > ended[:, None]
            mean[gone] = np.nan
            std = np.abs(mean[..., ::-1]) + 0.1
            count = np.full(shape[:3], 128, np.float32)
            writer.write(node, {"mean": mean, "std": std, "count": count})
    accuracy = 0.5 + 0.3 * (1 - np.exp(-between / rng.uniform(50, 900, (n, 1))))
    accuracy = np.where(between[None] > ended[:, None], np.nan, accuracy).astype(np.float32)
    writer.write("evaluation", {"loss": 1 - accuracy, "accuracy": accuracy})
    diverged_at = np.where(ended < STEPS, ended, np.nan).astype(np.float32)
    writer.write("runs", {"diverged_at": diverged_at[:, None]}, first=0)
    writer.finish()


def timed(folder: Path, figures: bool) -> dict[str, float]:
    """Seconds, page size and peak memory of reporting the record in `folder`."""
    import ici
    from ici.analysis.digest import digest
    from ici.report.page.page import write_page

    before = _peak_mib()
    started = time.perf_counter()
    results = ici.open(folder)
    read = digest(results)
    digested = time.perf_counter()
    path = write_page(folder / "report.html", [read])
    written = time.perf_counter()
    found = {
        "digest_s": digested - started,
        "page_s": written - digested,
        "page_mib": path.stat().st_size / 2**20,
    }
    if figures:
        from ici.report.figures import draw_all

        draw_all(results, folder / "figures", None, read)
        found["figures_s"] = time.perf_counter() - written
    return found | {"peak_mib": _peak_mib(), "peak_before_mib": before}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(size: Size) -> list[Row]:
    """Time from record to page, and the page's size, at 24, 200 and 2,000 runs."""
    rows = []
    for n_runs in (
        (8,) if size.name == "smoke" else (24, 200) if not size.is_full else (24, 200, 2000)
    ):
        with tempfile.TemporaryDirectory() as folder:
            make_record(Path(folder) / "record", n_runs)
            found = [_child(Path(folder) / "record") for _ in range(1 if n_runs > 200 else 3)]
        seconds = [each["digest_s"] + each["page_s"] for each in found]
        notes = found[-1]
        rows.append(Row("report", f"record to page, {n_runs:,} runs", "s", seconds, notes=notes))
        sizes = [each["page_mib"] for each in found]
        target = Target(15, "at most")
        rows.append(Row("report", f"size of the page, {n_runs:,} runs", "MiB", sizes, target))
    return rows


def _child(folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.reports", "0", "--record", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the report failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """One record, reported in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reports", description=__doc__)
    parser.add_argument("n_runs", type=int, help=f"one of {', '.join(map(str, GRIDS))}")
    parser.add_argument("--record", type=Path, help="an existing record instead")
    parser.add_argument("--make", type=Path, help="make the record there and keep it")
    parser.add_argument("--figures", action="store_true")
    options = parser.parse_args()
    if options.record is not None:
        print(json.dumps(timed(options.record, options.figures)))
        return
    if options.make is not None:
        make_record(options.make, options.n_runs)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_record(Path(folder), options.n_runs)
        print(json.dumps(timed(Path(folder), options.figures)))


if __name__ == "__main__":
    main()
