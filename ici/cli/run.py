"""``ici run``."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import jax
from rich.console import Console

from ici.cli.files import load_experiment, taken_scale
from ici.cli.overrides import RunOptions, override
from ici.cli.progress import LiveProgress
from ici.cli.report import report_options, show
from ici.engine.hosts import first_says, is_first
from ici.engine.joining import Together, join
from ici.engine.mesh import claim_cpu_devices
from ici.engine.run import run
from ici.errors import InputError
from ici.sinks import Sink, TensorBoardSink, WandbSink
from ici.sinks.sink import MAX_SINGLE_RUNS, are_medians
from ici.store.places import Place, place


def run_command(arguments: list[str]) -> int:
    """``ici run FILE [--FIELD VALUE ...]``."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError("ici run: wanted a file: ici run experiments/movie_mlp.py [--help]")
    claim_cpu_devices()
    file, *rest = arguments
    experiment = load_experiment(file, taken_scale(rest))
    experiment, options = override(experiment, rest, f"ici run {file}")
    if options.on is not None:
        # The accelerators of this machine are for the tasks.
        jax.config.update("jax_platforms", "cpu")
    if options.coordinator is not None:
        join(Together(options.coordinator, options.processes, options.process))
    out = place(options.out or f"runs/{experiment.name}")
    if options.fork:
        out = place(first_says(lambda: str(_free(out))))
    console = Console(quiet=not is_first())
    say = functools.partial(console.print, markup=False, soft_wrap=True)
    sinks = _sinks(options)
    if sinks and are_medians(experiment):
        say(
            f"More than {MAX_SINGLE_RUNS} runs: TensorBoard and W&B get medians over the runs of "
            "each norm, depth and learning rate."
        )
    started = time.perf_counter()
    with LiveProgress(experiment, console) as progress:
        results = run(
            experiment,
            out,
            resume=options.resume,
            restart=options.restart,
            overwrite=options.overwrite,
            checkpoint_every_s=options.checkpoint_every_s,
            keep_checkpoints=options.keep_checkpoints,
            grace_s=options.grace_s,
            watchdog_s=options.watchdog_s,
            flight_recorder=options.flight_recorder,
            command=[str(Path(file).absolute()), *rest],
            on=options.on,
            ray_address=options.ray_address,
            on_progress=progress.update,
            sinks=sinks,
        )
    if not progress.seen:
        say(f"{out} holds this experiment, complete; nothing to train.")
    if not is_first():
        return 0
    show([results], console, report_options(figures=options.figures))
    say(f"Record in {out}, {time.perf_counter() - started:.0f} s in all.")
    return 0


def _free(out: Place) -> Place:
    """The first of OUT-2, OUT-3, … that is not there."""
    n = 2
    while (free := out.with_name(f"{out.name}-{n}")).exists():
        n += 1
    return free


def _sinks(options: RunOptions) -> list[Sink]:
    sinks: list[Sink] = []
    if options.tensorboard is not None:
        sinks.append(TensorBoardSink(options.tensorboard or None))
    if options.wandb:
        sinks.append(WandbSink())
    return sinks
