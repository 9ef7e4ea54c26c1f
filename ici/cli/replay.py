"""``ici replay``: steps of a recorded run once more, measured one by one."""

from __future__ import annotations

import argparse

from rich.console import Console

from ici.cli.files import load_experiment, taken_scale
from ici.cli.overrides import override
from ici.cli.progress import LiveProgress
from ici.config import Experiment
from ici.engine.mesh import claim_cpu_devices
from ici.engine.replay import replay
from ici.errors import InputError
from ici.store.places import place
from ici.store.results import open_results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ici replay",
        description="Trains steps of a recorded run again, from the nearest checkpoint, and "
        "measures every one of them. The record of that lies in RUN/replays.",
    )
    parser.add_argument("run", help="folder of a record")
    parser.add_argument("--norm")
    parser.add_argument("--depth", type=int)
    for name in ("lr", "weight-decay", "beta1", "beta2"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("seed", "warmup-steps"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--from", dest="from_step", type=int, required=True, metavar="STEP")
    parser.add_argument("--to", dest="to_step", type=int, required=True, metavar="STEP")
    parser.add_argument(
        "--measure",
        nargs="+",
        default=[],
        metavar="NAME",
        help="heavy measurements at every step, or all",
    )
    parser.add_argument("--file", help="the experiment's file, where the record does not say it")
    return parser


def replay_command(arguments: list[str]) -> int:
    """``ici replay RUN --norm N --lr X --seed S --from A --to B``."""
    options = _parser().parse_args(arguments)
    claim_cpu_devices()
    results = open_results(options.run)
    experiment = _experiment(options.run, results.manifest.command, options.file)
    names = ("norm", "depth", "lr", "weight_decay", "beta1", "beta2", "seed", "warmup_steps")
    run = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    measure = "all" if options.measure == ["all"] else options.measure
    console = Console()
    with LiveProgress(experiment, console) as progress:
        made = replay(
            experiment,
            place(options.run),
            from_step=options.from_step,
            to_step=options.to_step,
            measure=measure,
            on_progress=progress.update,
            **run,
        )
    console.print(made.describe(), markup=False, soft_wrap=True, highlight=False)
    from ici.report.replay import draw_replay
    from ici.report.style import save

    figures = made.results.path / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for path in save(draw_replay(made.results), figures, "replay"):
        console.print(f"  {path}", markup=False, soft_wrap=True, highlight=False)
    console.print(f"Record in {made.results.path}", markup=False, soft_wrap=True, highlight=False)
    return 0


def _experiment(run: str, command: list[str] | None, file: str | None) -> Experiment:
    """The experiment that made a record, from its file and the options it was run with."""
    words = list(command or ())
    path = file or (words[0] if words else "")
    if not path:
        raise InputError(
            f"{run} was not made by `ici run`: wanted --file with the experiment's file, or "
            "ici.replay(experiment, ...) in Python."
        )
    experiment = load_experiment(path, taken_scale(words[1:]))
    return override(experiment, words[1:], f"ici run {path}")[0]
