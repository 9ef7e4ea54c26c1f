"""What the two scientific benchmarks share: training an experiment, and tables of its digest."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import ici
from ici.analysis.digest import Digest, digest
from ici.cli.progress import LiveProgress

RESULTS = Path(__file__).parent / "results"


def parsed(name: str, doc: str | None) -> argparse.Namespace:
    """The options of a study."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    parser.add_argument("--out", type=Path, default=Path(f"runs/benchmark_{name}"))
    parser.add_argument("--overwrite", action="store_true", help="train again")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="default benchmarks/results, unless --smoke")
    return parser.parse_args()


def studied(
    experiment: ici.Experiment, options: argparse.Namespace, smoke: dict[str, Any]
) -> tuple[Digest, float]:
    """The digest of an experiment and the seconds it took; NaN where a finished record is read."""
    if options.smoke:
        experiment = dataclasses.replace(experiment, **smoke)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    started = time.perf_counter()
    with LiveProgress(experiment, console) as progress:
        results = ici.run(
            experiment,
            options.out,
            resume=True,
            overwrite=options.overwrite,
            on_progress=progress.update,
        )
    return digest(results), time.perf_counter() - started if progress.seen else math.nan


def took(read: Digest, seconds: float) -> str:
    """How many runs there are, and the seconds they took where they were trained now."""
    runs = f"{read.runs['diverged_at'].size} runs"
    return runs if math.isnan(seconds) else f"{runs} in {seconds:.0f} s"


def told(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> None:
    """Prints a table and what is behind it."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=190)
    console.print(table)
    for note in notes:
        console.print(note, style="dim", highlight=False)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table for a README."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def kept(name: str, options: argparse.Namespace, read: Digest, found: dict[str, Any]) -> None:
    """Writes the figures of a study as JSON and Markdown beside the benchmark."""
    path = options.json or (None if options.smoke else RESULTS / f"{name}.json")
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"experiment": read.experiment, "environment": read.environment, **found}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")
    path.with_suffix(".md").write_text(found["markdown"])
    print(f"Written to {path} and {path.with_suffix('.md')}")
