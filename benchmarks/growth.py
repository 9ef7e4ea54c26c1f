"""What large records cost: 10,000 runs of 100 sites, one large network, and many chunks of steps.

``python -m benchmarks.growth`` writes made-up records to a temporary folder, reads them back, holds
what it finds against the arithmetic of docs/scale.md, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.contestants import BenchmarkError
from ici.store import writer as store
from ici.store.chunks import MAX_CHUNK_BYTES, chunk_shape
from ici.store.manifest import GroupEntry, Manifest
from ici.store.writer import PER_FEATURE, PER_SITE, RECORDS, GroupWriter, Layout, Node, Variable

RESULTS = Path(__file__).parent / "results" / "growth.json"
GROUP = "norm=none,depth=2"
MIB = 2**20


@dataclass(frozen=True)
class Record:
    """A made-up record of one group.

    Attributes:
      n_lrs, n_seeds: learning rates and seeds; their product is the number of runs.
      n_sites, n_features: of the network.
      n_rows: probed steps.
      rows_per_write: probed steps between two dispatches.
      every: training steps between two probed ones.
      max_chunk_bytes: bound of a chunk; None for one chunk of all runs, as there was at first.
    """

    name: str
    n_lrs: int
    n_seeds: int
    n_sites: int
    n_features: int
    n_rows: int
    rows_per_write: int
    every: int = 10
    max_chunk_bytes: int | None = MAX_CHUNK_BYTES

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return self.n_lrs * self.n_seeds

    @property
    def limit(self) -> int:
        """The bound as a number."""
        return self.max_chunk_bytes or 2**62

    def layout(self) -> Layout:
        """Losses at every step, and moments of every feature at the probed ones."""
        axes = {
            "lr": tuple(np.geomspace(1e-4, 1, self.n_lrs).tolist()),
            "weight_decay": (0.0,),
            "seed": tuple(range(self.n_seeds)),
        }
        steps = np.arange(self.n_rows * self.every)
        train = {"loss": Variable(), "grad_norm": Variable()}
        probe = {
            "mean": Variable(PER_FEATURE),
            "std": Variable(PER_FEATURE),
            "count": Variable(PER_SITE),
        }
        nodes = {
            "train": Node(steps, self.rows_per_write * self.every, train),
            "probe": Node(steps[:: self.every], self.rows_per_write, probe),
            "runs": Node(np.array([len(steps)]), 1, {"diverged_at": Variable()}),
        }
        sites = tuple(f"blocks/{i}/linear" for i in range(self.n_sites))
        return Layout(axes, sites, (self.n_features,) * self.n_sites, nodes)


SWEEP = Record("10,000 runs", 10, 1000, 100, 8, 20, 10)
LARGE = Record("one large network", 1, 1, 200, 8192, 20, 10)
LONG = Record("10,000 probed steps", 8, 3, 21, 32, 10_000, 10, every=1)
# The same amounts of everything, as small as they still say something to a test.
SMALL = (
    replace(SWEEP, n_seeds=20, n_sites=10, n_rows=4, rows_per_write=2, max_chunk_bytes=4096),
    replace(LARGE, n_sites=4, n_features=128, n_rows=4, rows_per_write=2, max_chunk_bytes=2048),
    replace(LONG, n_sites=2, n_features=4, n_rows=400),
)


def expected(record: Record) -> dict[str, float]:
    """The arithmetic: chunks of data, bytes before compression, bytes of the largest chunk."""
    layout, n_chunks, largest = record.layout(), 0, 0
    for node in layout.nodes.values():
        for variable in node.variables.values():
            inner = layout.extent(variable.dims)
            n_rows = min(node.rows_per_chunk, len(node.steps))
            chunk = chunk_shape(layout.lane_shape, n_rows, inner, 4, record.limit)
            full = (*layout.lane_shape, len(node.steps), *inner)
            n_chunks += math.prod(math.ceil(n / c) for n, c in zip(full, chunk, strict=True))
            largest = max(largest, 4 * math.prod(chunk))
    return {"chunks": n_chunks, "mib": layout.n_bytes() / MIB, "chunk_mib": largest / MIB}


def write(folder: Path, record: Record) -> dict[str, float]:
    """Writes the record as the engine would; seconds and memory of that alone."""
    store.MAX_CHUNK_BYTES = record.limit
    manifest = Manifest({"norm": ["none"], "depth": [2]}, "made up", "made up", {})
    layout, rng = record.layout(), np.random.default_rng(0)
    folder.mkdir(parents=True)
    writer = GroupWriter(folder, manifest, GROUP, GroupEntry("none", 2, {}), layout)
    shape = (record.n_runs, record.rows_per_write, record.n_sites, record.n_features)
    mean = rng.standard_normal(shape, np.float32)
    probe = {"mean": mean, "std": mean, "count": np.full(shape[:3], 128, np.float32)}
    loss = rng.standard_normal((record.n_runs, record.rows_per_write * record.every), np.float32)
    before, started = resident_mib(), time.perf_counter()
    n_writes = record.n_rows // record.rows_per_write
    held: list[tuple[int, float]] = []
    for i in range(n_writes):
        writer.write("train", {"loss": loss, "grad_norm": loss})
        writer.write("probe", probe)
        writer.write("runs", {"diverged_at": np.ones((record.n_runs, 1), np.float32)}, first=0)
        writer.commit()
        held.append((i, resident_mib()))
    writer.finish()
    seconds = time.perf_counter() - started
    late = np.array(held[n_writes // 5 :])  # the first fifth warms caches and pools up
    slope = 1024 * float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(late) > 10 else math.nan
    data = [p for p in (folder / RECORDS).rglob("*") if p.is_file() and p.suffix != ".json"]
    labels = [p for p in data if p.parts[-3] in ("lr", "seed", "step", "site", "weight_decay")]
    return {
        "seconds": seconds,
        "beyond_mib": peak_mib() - before,
        "given_mib": (2 * mean.nbytes + probe["count"].nbytes + 2 * loss.nbytes) / MIB,
        "slope_kib": slope,
        "chunks": len(data) - len(labels),
        "files": sum(p.is_file() for p in folder.rglob("*")),
        "mib": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / MIB,
        "manifest_kib": (folder / "manifest.json").stat().st_size / 1024,
    }


def read(folder: Path, what: str) -> dict[str, float]:
    """Reads a run, step or site of the moments, or all losses; seconds and memory of that alone."""
    import ici

    results = ici.open(folder)
    mean = results.probe["mean"]  # with the libraries, which take 85 MiB and 0.2 s
    before, started = peak_mib(), time.perf_counter()
    if what == "losses":
        values = results.train["loss"].values
    else:
        dims = ("lr", "seed") if what == "run" else (what,)
        values = mean.sel({dim: mean[dim].values[-1] for dim in dims}).values
    seconds = time.perf_counter() - started
    if not np.isfinite(values).all():
        raise BenchmarkError(f"{what}: what was written did not come back")
    return {"seconds": seconds, "beyond_mib": peak_mib() - before, "read_mib": values.nbytes / MIB}


def resident_mib() -> float:
    """Memory that this process holds now (Linux)."""
    return _status("VmRSS")


def peak_mib() -> float:
    """The most that this process has held since its start (Linux)."""
    return _status("VmHWM")


def _status(key: str) -> float:
    # The resource module's peak would begin with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def measure(record: Record, what: tuple[str, ...] = ("run", "step", "site")) -> dict[str, Any]:
    """Writes a record and reads it back, each in a process of its own."""
    found: dict[str, Any] = {"record": asdict(record), "expected": expected(record)}
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "record"
        found["written"] = _child("write", folder, json.dumps(asdict(record)))
        found["read"] = {each: _child("read", folder, each) for each in what}
    return found


def _child(*arguments: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.growth", "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(found: list[dict[str, Any]]) -> Table:
    """What was found, a row per record."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("record", "chunk MiB", "chunks (expected)", "MiB (before compression)"):
        shown.add_column(column)
    for column in ("written s", "memory MiB", "read s, memory MiB", "slope KiB/write"):
        shown.add_column(column)
    for each in found:
        wrote, awaited = each["written"], each["expected"]
        reads = [
            f"{name} {r['seconds']:.2f} s, {r['beyond_mib']:.0f}"
            for name, r in each["read"].items()
        ]
        bounded = "" if each["record"]["max_chunk_bytes"] else ", unbounded"
        shown.add_row(
            each["record"]["name"] + bounded,
            f"{awaited['chunk_mib']:.3g}",
            f"{wrote['chunks']:,} ({awaited['chunks']:,})",
            f"{wrote['mib']:,.0f} ({awaited['mib']:,.0f})",
            f"{wrote['seconds']:.1f}",
            f"{wrote['beyond_mib']:.0f}",
            "; ".join(reads),
            "" if math.isnan(wrote["slope_kib"]) else f"{wrote['slope_kib']:.2f}",
        )
    return shown


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--small", action="store_true", help="sizes that say nothing")
    parser.add_argument("--json", type=Path, default=None, help="where to write the figures")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, folder, argument = options.child
        if what == "write":
            print(json.dumps(write(Path(folder), Record(**json.loads(argument)))))
        else:
            print(json.dumps(read(Path(folder), argument)))
        return
    sweep, large, long = SMALL if options.small else (SWEEP, LARGE, LONG)
    found = [
        measure(replace(sweep, max_chunk_bytes=None)),
        measure(sweep),
        measure(replace(large, max_chunk_bytes=None), ("step", "site")),
        measure(large, ("step", "site")),
        measure(long, ("losses",)),
    ]
    Console(width=200).print(table(found))
    path = options.json or (None if options.small else RESULTS)
    if path is not None:
        from ici.environment import environment

        path.write_text(json.dumps({"environment": environment(), "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
