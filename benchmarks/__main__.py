"""``python -m benchmarks [--only NAME ...] [--quick] [--json PATH]``."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.contestants import BenchmarkError
from benchmarks.measurements import BENCHMARKS
from benchmarks.rows import Row
from benchmarks.sizes import SIZES

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmarks, prints the table, writes the JSON beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small sizes, about 2 minutes")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--json",
        type=Path,
        help=f"default {RESULTS.relative_to(Path.cwd())}"
        if RESULTS.is_relative_to(Path.cwd())
        else "where to write",
    )
    arguments = parser.parse_args(argv)
    size = SIZES["smoke" if arguments.smoke else "quick" if arguments.quick else "full"]
    console = Console() if sys.stdout.isatty() else Console(width=120)
    rows: list[Row] = []
    for name in arguments.only or BENCHMARKS:
        console.print(f"measuring {name} …", style="dim")
        try:
            rows += BENCHMARKS[name](size)
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            rows.append(Row(name, name, "", skipped="failed; see above"))
    from ici.environment import environment

    facts = environment()
    console.print(_table(rows))
    hardware = f"{facts['cpu']}, {facts['cores']} cores"
    versions = ", ".join(f"{k} {facts['versions'][k]}" for k in ("jax", "flax", "numpy"))
    console.print(f"{hardware}; {versions}; {size.name} size.", highlight=False)
    path = arguments.json or (RESULTS if size.is_full and not arguments.only else None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "date": datetime.date.today().isoformat(),
            "size": size.name,
            "environment": facts,
            "rows": [row.describe() for row in rows],
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    return 0


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, side in (("what", "left"), ("median", "right"), ("quartiles", "right")):
        table.add_column(column, justify=side)  # pyright: ignore[reportArgumentType]
    table.add_column("target", justify="right")
    table.add_column("met")
    for row in rows:
        if row.median is None or row.quartiles is None:
            table.add_row(row.label, "–", "", "", row.skipped or "")
            continue
        low, high = row.quartiles
        bound = row.target
        sign = "" if bound is None else "≥" if bound.kind == "at least" else "≤"
        met = {True: "yes", False: "NO", None: ""}[row.met]
        table.add_row(
            row.label,
            f"{row.median:.3g} {row.unit}",
            f"{low:.3g} – {high:.3g}",
            f"{sign} {bound.bound:g} {row.unit}" if bound else "",
            met,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
