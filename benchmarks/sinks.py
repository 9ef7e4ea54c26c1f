"""Whether dashboards slow the training down: sinks of every kind against none."""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import jax_work
from benchmarks.contestants import BenchmarkError, take_turns
from benchmarks.rows import Row, Target, ratios
from benchmarks.sizes import Size

CHUNKS = 12
SLEEP_S = 10.0


class Slow:
    """Sleeps at every value."""

    def start(self, about: Any) -> None:
        pass

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        time.sleep(SLEEP_S)

    def finish(self) -> None:
        pass


class Failing(Slow):
    """Raises at every value."""

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        raise RuntimeError("the dashboard is down")


def measure(size: Size, rounds: int, only: Sequence[str] = ()) -> dict[str, list[float]]:
    """Seconds of training of every contestant in every round, first chunk and end left out."""
    jax_work.claim(2)
    os.environ["WANDB_MODE"] = "offline"
    import jax

    import ici
    from ici.sinks import Sink, TensorBoardSink, WandbSink

    warnings.simplefilter("ignore", RuntimeWarning)  # of the sinks that are meant to fail
    made: dict[str, Callable[[], list[Sink]]] = {
        "none": lambda: [],
        "tensorboard": lambda: [TensorBoardSink()],
        "wandb": lambda: [WandbSink()],
        "slow": lambda: [Slow()],
        "failing": lambda: [Failing()],
    }
    every = size.chunk_steps
    experiment = ici.Experiment(
        data="synthetic",
        model=ici.MLPConfig(width=size.widths[0]),
        norm=("batch",),
        depth=(size.depth,),
        lr=tuple(1e-3 / 2**i for i in range(size.lanes // 2)),
        seed=(0, 1),
        steps=CHUNKS * every,
        batch_size=size.batch_size,
        probe=ici.Probe(every=10),
        reference_every=every,
        eval_every=every,
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        number = itertools.count()

        def seconds(name: str) -> float:
            at: list[float] = []
            out = Path(folder) / str(next(number))
            ici.run(
                experiment, out, sinks=made[name](), on_progress=lambda p: at.append(p.elapsed_s)
            )
            return at[CHUNKS - 1] - at[0]

        seconds("none")
        names = only or made
        return take_turns({name: lambda name=name: seconds(name) for name in names}, rounds)


def sinks(size: Size) -> list[Row]:
    """The share of the training's time that each sink adds."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            seconds = pool.submit(measure, size, max(2, size.rounds // 2)).result()
        except Exception as error:
            raise BenchmarkError(f"sinks: {type(error).__name__}: {error}") from error
    shown = {
        "tensorboard": "TensorBoard",
        "wandb": "W&B, offline",
        "slow": f"a sink that sleeps {SLEEP_S:g} s at every value",
        "failing": "a sink that raises",
    }
    rows = []
    for name, label in shown.items():
        values = [100 * (ratio - 1) for ratio in ratios(seconds, name, "none")]
        label = f"{label}, over none, {size.lanes} runs of {size.depth}×{size.widths[0]}"
        raw = {key: seconds[key] for key in (name, "none")}
        rows.append(Row("sinks", label, "%", values, Target(2.0, "at most"), raw))
    return rows
