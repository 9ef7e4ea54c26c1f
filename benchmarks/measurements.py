"""What is measured: each function returns rows of the table."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import families, instruments, jax_work, reports, sinks
from benchmarks.contestants import Process, take_turns, together
from benchmarks.rows import Row, Target, ratios
from benchmarks.sizes import Size

ROOT = Path(__file__).resolve().parents[1]


def cores() -> int:
    """Cores this process may use, one device each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _task(size: Size, width: int, **changes) -> jax_work.Task:
    return jax_work.Task(width, size.depth, size.batch_size, size.chunk_steps, **changes)


def _fleets(size: Size, task: jax_work.Task, **fleets) -> Process:
    return Process(
        jax_work.build_fleets, task=task, lanes=size.lanes, devices=cores(), fleets=fleets
    )


def throughput(size: Size) -> list[Row]:
    """A fleet against a Python loop over a compiled step, both watching every layer input."""
    rows = []
    for width, bound in zip(size.widths, (2.5, 3.0), strict=True):
        task = _task(size, width)
        with (
            _fleets(size, task, fleet=(jax_work.LAYER_INPUTS, cores())) as fleet,
            Process(jax_work.build_loop, task=task, probe=jax_work.LAYER_INPUTS) as loop,
        ):
            seconds = take_turns(
                {"fleet": lambda: fleet.seconds("fleet"), "loop": lambda: loop.seconds("loop")},
                size.rounds,
            )
        rows.append(
            Row(
                "throughput",
                f"fleet over a Python loop of jitted steps, {size.depth}×{width}",
                "x",
                ratios(seconds, "loop", "fleet", size.lanes),
                Target(bound, "at least"),
                seconds,
                _per_step_ms(seconds, size),
            )
        )
    return rows


def _per_step_ms(seconds: dict[str, list[float]], size: Size) -> dict[str, float]:
    """Milliseconds per step and run: a fleet trains all its lanes in one turn, others one run."""
    return {
        f"{name}_ms_per_run_step": 1e3
        * float(np.median(values))
        / size.chunk_steps
        / (size.lanes if name.startswith("fleet") else 2 if "2 processes" in name else 1)
        for name, values in seconds.items()
    }


def pytorch(size: Size) -> list[Row]:
    """A fleet against PyTorch with hooks, at the better of two ways to use the cores."""
    label = "fleet over PyTorch with forward pre-hooks"
    if importlib.util.find_spec("torch") is None:
        reason = "PyTorch is not installed: .venv/bin/pip install torch"
        return [Row("pytorch", label, "x", skipped=reason)]
    from benchmarks import torch_work

    rows = []
    for width, bound in zip(size.widths, (2.5, 5.0), strict=True):
        task = _task(size, width)
        with (
            _fleets(size, task, fleet=(jax_work.LAYER_INPUTS, cores())) as fleet,
            Process(torch_work.build_loop, task=task, threads=2) as threaded,
            Process(torch_work.build_loop, task=task, threads=1) as one,
            Process(torch_work.build_loop, task=task, threads=1) as other,
        ):
            seconds = take_turns(
                {
                    "fleet": lambda: fleet.seconds("fleet"),
                    "1 process × 2 threads": lambda: threaded.seconds("torch"),
                    "2 processes × 1 thread": lambda: together([one, other], "torch"),
                },
                size.rounds,
            )
        per_run = {
            "1 process × 2 threads": ratios(seconds, "1 process × 2 threads", "fleet", size.lanes),
            "2 processes × 1 thread": ratios(
                seconds, "2 processes × 1 thread", "fleet", size.lanes / 2
            ),
        }
        best = min(per_run, key=lambda name: float(np.median(per_run[name])))
        notes = {"best of PyTorch": best} | _per_step_ms(seconds, size)
        rows.append(
            Row(
                "pytorch",
                f"{label}, {size.depth}×{width}",
                "x",
                per_run[best],
                Target(bound, "at least"),
                seconds,
                notes,
            )
        )
    return rows


def arithmetic(size: Size) -> list[Row]:
    """Rate of a fleet's matrix products as a share of the best large product here."""
    task = _task(size, size.widths[0])
    with (
        _fleets(size, task, fleet=(None, cores())) as fleet,
        Process(jax_work.build_products, sizes=size.products) as products,
    ):
        turns: dict[str, Callable[[], float]] = {"fleet": lambda: fleet.seconds("fleet")}
        for name in products.names:
            turns[name] = lambda name=name: products.seconds(name)
        seconds = take_turns(turns, size.rounds)
    fleet_flops = task.product_flops() * size.chunk_steps * size.lanes
    shares, peaks = [], []
    for turn in range(size.rounds):
        peak = max(2 * n**3 / seconds[str(n)][turn] for n in size.products)
        peaks.append(peak)
        shares.append(100 * fleet_flops / seconds["fleet"][turn] / peak)
    notes = {"product_gflops": float(np.median(peaks)) / 1e9}
    label = f"matrix-product rate of the fleet against a large product, {size.depth}×{task.width}"
    return [Row("arithmetic", label, "%", shares, Target(70, "at least"), seconds, notes)]


def probes(size: Size) -> list[Row]:
    """What watching costs, against the same fleet with no probe in its program."""
    task = _task(size, size.widths[0])
    n = cores()
    tenth = jax_work.Probe(select=jax_work.nnx.Linear, every=10)
    kinds = {
        "fleet, none": (None, n),
        "fleet, layer inputs": (jax_work.LAYER_INPUTS, n),
        "fleet, every site": (jax_work.EVERY_SITE, n),
        "fleet, every tenth step": (tenth, n),
    }
    with _fleets(size, task, **kinds) as fleets:
        seconds = take_turns(
            {name: lambda name=name: fleets.seconds(name) for name in kinds}, size.fine_rounds
        )
    rows = []
    for name, label, bound in (
        ("fleet, layer inputs", "probe of every layer input at every step", 5.0),
        ("fleet, every site", "probe of every layer and norm input at every step", None),
        ("fleet, every tenth step", "probe of every layer input, every=10", 1.0),
    ):
        overhead = [100 * (r - 1) for r in ratios(seconds, name, "fleet, none")]
        target = Target(bound, "at most") if bound else None
        raw = {key: seconds[key] for key in (name, "fleet, none")}
        rows.append(Row("probes", f"overhead, {label}", "%", overhead, target, raw))
    return rows


def memory(size: Size) -> list[Row]:
    """Extra peak memory of a probed step, from the compiler's own analysis."""
    task = _task(size, size.widths[0])
    with Process(jax_work.build_memory, task=task) as process:
        plain, probed = (float(name.split()[1]) for name in process.names)
    label = f"extra peak memory of a probed step, {size.depth}×{task.width}"
    notes = {"plain_bytes": plain, "probed_bytes": probed}
    return [
        Row("memory", label, "%", [100 * (probed / plain - 1)], Target(2, "at most"), {}, notes)
    ]


def devices(size: Size) -> list[Row]:
    """All cores as devices against one."""
    task = _task(size, size.widths[0])
    kinds = {"fleet, 1": (jax_work.LAYER_INPUTS, 1), "fleet, 2": (jax_work.LAYER_INPUTS, 2)}
    if cores() < 2:
        return [Row("devices", "2 devices over 1", "x", skipped="this machine has one core")]
    with _fleets(size, task, **kinds) as fleets:
        seconds = take_turns(
            {name: lambda name=name: fleets.seconds(name) for name in kinds}, size.rounds
        )
    label = f"2 devices over 1, fleet of {size.lanes}, {size.depth}×{task.width}"
    values = ratios(seconds, "fleet, 1", "fleet, 2")
    return [Row("devices", label, "x", values, Target(1.8, "at least"), seconds)]


def text(size: Size) -> list[Row]:
    """Absolute rates on the movie reviews' shapes: for orientation, not comparable elsewhere."""
    rows = []
    for norm in ("none", "batch", "layer"):
        task = _task(size, size.widths[0], norm=norm, is_text=True)
        with _fleets(size, task, fleet=(jax_work.Probe(every=10), cores())) as fleet:
            times = [fleet.seconds("fleet") for _ in range(max(2, size.rounds // 2))]
        values = [size.lanes * size.chunk_steps / t for t in times]
        label = f"text {size.depth}×{task.width}, norm {norm}, probe every=10"
        rows.append(Row("text", label, "run-steps/s", values, None, {"fleet": times}))
    return rows


def imports(size: Size) -> list[Row]:
    """Time of `import ici` beyond what it stands on."""
    base = "import jax, flax"
    code = {
        "base": f"import time; s=time.perf_counter(); {base}; print(time.perf_counter()-s)",
        "ici": f"import time; s=time.perf_counter(); {base}; import ici; "
        "print(time.perf_counter()-s)",
        "names": f"{base}; import time; s=time.perf_counter(); import ici; "
        "[getattr(ici, n) for n in ici.__all__]; print(time.perf_counter()-s)",
    }

    def fresh(name: str) -> float:
        command = [sys.executable, "-c", code[name]]
        return float(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout)

    seconds = take_turns(
        {name: lambda name=name: fresh(name) for name in code}, size.fresh_processes
    )
    beyond = [a - b for a, b in zip(seconds["ici"], seconds["base"], strict=True)]
    return [
        Row(
            "imports",
            "import ici beyond jax and flax",
            "s",
            beyond,
            Target(0.3, "at most"),
            seconds,
        ),
        Row("imports", "every public name of ici, beyond jax and flax", "s", seconds["names"]),
    ]


def demo(size: Size) -> list[Row]:
    """Wall clock of the first experiment in a fresh process, compile and figures included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ici.cli", "run", "experiments/movie_mlp.py"]
        command += ["--out", f"{folder}/out", *size.demo_arguments]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        elapsed = time.perf_counter() - start
    if done.returncode:
        return [Row("demo", "demo", "s", skipped=done.stderr.strip().splitlines()[-1])]
    target = Target(120, "at most") if size.is_full else None
    return [
        Row("demo", "make demo after the install: 72 runs of 600 steps", "s", [elapsed], target)
    ]


BENCHMARKS: dict[str, Callable[[Size], list[Row]]] = {
    "throughput": throughput,
    "pytorch": pytorch,
    "arithmetic": arithmetic,
    "probes": probes,
    "memory": memory,
    "gradient_shift": instruments.gradient_shift,
    "costs": instruments.costs,
    "devices": devices,
    "text": text,
    "compile_time": families.compile_time,
    "loader": families.loader,
    "convolutions": families.convolutions,
    "sinks": sinks.sinks,
    "report": reports.report,
    "imports": imports,
    "demo": demo,
}
