"""``ici run`` and ``ici report``."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

from rich.console import Console

from ici.cli.files import load_experiment, taken_scale
from ici.cli.overrides import RunOptions, override
from ici.cli.progress import LiveProgress
from ici.engine.mesh import claim_cpu_devices
from ici.engine.run import run
from ici.errors import InputError
from ici.store.results import Results, open_results


def run_command(arguments: list[str]) -> int:
    """``ici run FILE [--FIELD VALUE ...]``."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError("ici run: wanted a file: ici run experiments/movie_mlp.py [--help]")
    claim_cpu_devices()
    file, *rest = arguments
    experiment = load_experiment(file, taken_scale(rest))
    experiment, options = override(experiment, rest, f"ici run {file}")
    out = Path(options.out or f"runs/{experiment.name}")
    console = Console()
    say = functools.partial(console.print, markup=False, soft_wrap=True)
    started = time.perf_counter()
    with LiveProgress(experiment, console) as progress:
        results = run(
            experiment,
            out,
            resume=options.resume,
            overwrite=options.overwrite,
            on_progress=progress.update,
        )
    if not progress.seen:
        say(f"{out} holds this experiment, complete; nothing to train.")
    _show(results, options, console)
    say(f"Record in {out}, {time.perf_counter() - started:.0f} s in all.")
    return 0


def report_command(arguments: list[str]) -> int:
    """``ici report DIR``."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise InputError("ici report: wanted one folder: ici report runs/movie_mlp")
    _show(open_results(arguments[0]), RunOptions(), Console())
    return 0


def _show(results: Results, options: RunOptions, console: Console) -> None:
    from ici.report.table import print_summary

    print_summary(results, console)
    hardware = results.manifest.environment
    console.print(
        f"{hardware['devices']} × {hardware['device_kind']} ({hardware['cpu']}), "
        f"jax {hardware['versions']['jax']}, flax {hardware['versions']['flax']}",
        style="dim",
        highlight=False,
    )
    if options.figures:
        from ici.report.figures import draw_all

        with console.status("drawing figures") if sys.stdout.isatty() else console:
            written = draw_all(results, results.path / "figures")
        for path in written:
            if path.suffix == ".png":
                console.print(f"  {path}", highlight=False, markup=False, soft_wrap=True)
