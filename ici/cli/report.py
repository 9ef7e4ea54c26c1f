"""``ici report``: a record's answers as table, interactive page, figures and comparisons."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ici.errors import InputError
from ici.report.table import WIDTH
from ici.store.places import Place, place, whole
from ici.store.results import OPTIONAL, Results, open_results

CORE = ("norm", "depth", "lr")

_USAGE = "ici report RUN [RUN ...] [--compare DIM] [options]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"ici report: {message}: wanted {_USAGE}; --help lists the options.")


def _parser() -> _Parser:
    parser = _Parser("ici report", usage=_USAGE, description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a record")
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="DIM",
        help="tests every norm, depth, lr, ... against a baseline; `experiments` compares the "
        "records with one another, which is what several records get without --compare",
    )
    parser.add_argument("--baseline", help="label that the others are compared with")
    parser.add_argument(
        "--at",
        choices=("best", "equal"),
        default="best",
        help="compare each at its own best learning rate, or at every learning rate (best)",
    )
    parser.add_argument(
        "--align",
        choices=("name", "depth"),
        default="name",
        help="match layer inputs of different networks by name or by relative depth (name)",
    )
    parser.add_argument("--level", type=float, default=0.95, help="confidence level (0.95)")
    parser.add_argument("--lr", type=float, help="learning rate of the figures that show one")
    parser.add_argument("--out", help="folder of page and figures (the first record's)")
    parser.add_argument(
        "--no-answers", dest="answers", action="store_false", help="tables only, no sentences"
    )
    parser.add_argument("--no-page", action="store_true", help="no interactive page")
    parser.add_argument("--no-figures", action="store_true", help="no PNG and PDF files")
    return parser


def _check(options: argparse.Namespace, record: Results) -> None:
    """Refuses what a record cannot be asked, before any of it is read."""
    settings = record.experiment
    dims = [
        name
        for name in ("norm", "depth", "lr", *OPTIONAL)
        if isinstance(settings.get(name), list) and (name in CORE or len(settings[name]) > 1)
    ]
    for dim in options.compare:
        if dim == "experiments":
            continue
        if dim not in dims:
            raise InputError(
                f"--compare {dim}: {record.path} was not swept over it: wanted one of "
                f"{', '.join(dims)} or experiments."
            )
        if len(settings[dim]) < 2:
            raise InputError(
                f"--compare {dim}: {record.path} has the one value {settings[dim][0]}: wanted two "
                "or more."
            )
        if options.baseline is not None and not any(
            _means(options.baseline, label) for label in settings[dim]
        ):
            known = ", ".join(str(label) for label in settings[dim])
            raise InputError(
                f"--baseline {options.baseline}: {dim} has {known}: wanted one of them."
            )
    if "experiments" in options.compare and len(options.runs) < 2:
        raise InputError("--compare experiments: one record given: wanted two or more.")
    lrs = settings.get("lr")
    if options.lr is not None and isinstance(lrs, list) and options.lr not in lrs:
        raise InputError(f"--lr {options.lr}: no run has it: wanted one of {lrs}.")


def report_options(figures: bool = True) -> argparse.Namespace:
    """The options of a plain report, as at the end of a run."""
    options = _parser().parse_args(["."] if figures else [".", "--no-figures", "--no-page"])
    options.answers = False
    return options


def report_command(arguments: list[str]) -> int:
    """``ici report RUN [RUN ...]``."""
    options = _parser().parse_args(arguments)
    if not 0 < options.level < 1:
        raise InputError(f"--level is {options.level}: wanted a share such as 0.95.")
    records = [open_results(path) for path in options.runs]
    for record in records:
        _check(options, record)
    out = place(options.out) if options.out else records[0].path
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    show(records, console, options, out)
    return 0


def show(
    records: Sequence[Results],
    console: Console,
    options: argparse.Namespace,
    out: Place | None = None,
) -> None:
    """Prints the tables, and writes page and figures as the options say."""
    from ici.analysis.digest import digest
    from ici.analysis.summary import summary_of
    from ici.report.comparison import print_comparison
    from ici.report.table import print_summary

    out = records[0].path if out is None else out
    with _busy(console, "reading the record"):
        digests = [digest(each) for each in records]
    for each, read in zip(records, digests, strict=True):
        if len(records) > 1:
            console.print(str(each.path), style="bold", markup=False, highlight=False)
        if options.answers:
            _print_answers(read, console)
        print_summary(each, console, summary=summary_of(read.runs))
        _print_hardware(each, console)
    comparisons = _comparisons(records, digests, options, console)
    for comparison in comparisons:
        print_comparison(comparison, console)
    if len(records) > 1:
        _print_sites(digests, options, console)
    written: list[Place] = []
    if comparisons:
        written.append(_write_comparisons(comparisons, out))
    if not options.no_figures:
        from ici.report.replay import draw_replays

        written += [path for each in records for path in draw_replays(each.path)]
    if not options.no_page:
        from ici.report.page.page import write_page

        _make(out)
        tables = [_page_table(comparison) for comparison in comparisons]
        written.append(write_page(out / "report.html", digests, tables))
    if not options.no_figures:
        from ici.report.figures import draw_all

        for each, read in zip(records, digests, strict=True):
            folder = out / "figures" if len(records) == 1 else out / "figures" / each.path.name
            with _busy(console, "drawing figures"):
                drawn = draw_all(each, folder, options.lr, read)
            written += [path for path in drawn if path.suffix == ".png"]
    for path in written:
        console.print(f"  {path}", highlight=False, markup=False, soft_wrap=True)


def _busy(console: Console, what: str) -> Any:
    return console.status(what) if sys.stdout.isatty() else console


def _make(folder: Place) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder} ({error.strerror}): wanted a place to write to."
        ) from error


def _print_answers(read: Any, console: Console) -> None:
    from ici.analysis.answers import answers

    for answer in answers(read):
        console.print(answer.question, style="bold", markup=False, highlight=False)
        for sentence in answer.sentences:
            console.print(Padding(Text(sentence), (0, 0, 0, 2)), width=min(console.width, WIDTH))
    console.print()


def _print_hardware(results: Results, console: Console) -> None:
    hardware = results.manifest.environment
    if not hardware:
        return
    console.print(
        f"{hardware['devices']} × {hardware['device_kind']} ({hardware['cpu']}), "
        f"jax {hardware['versions']['jax']}, flax {hardware['versions']['flax']}",
        style="dim",
        highlight=False,
    )


def _comparisons(
    records: Sequence[Results],
    digests: Sequence[Any],
    options: argparse.Namespace,
    console: Console,
) -> list[Any]:
    from ici.analysis.compare import compare, compare_records

    wanted = list(dict.fromkeys(options.compare or (["experiments"] if len(records) > 1 else [])))
    found = []
    for dim in wanted:
        if dim == "experiments":
            named = dict(zip(names_of(records), digests, strict=True))
            try:
                found.append(
                    compare_records(named, options.baseline, at=options.at, level=options.level)
                )
            except InputError as error:
                if options.compare:
                    raise
                # Nobody asked for it: what each record says is shown all the same.
                console.print(f"Not compared: {error}", style="dim", markup=False)
            continue
        for read in digests:
            baseline = _label(read, dim, options.baseline)
            waiting = [str(each) for each in read.experiment[dim] if each not in read.runs[dim]]
            if waiting and (read.runs.sizes[dim] < 2 or str(baseline) in waiting):
                # Planned, and not there yet: what there is is shown all the same.
                console.print(f"Not compared: {_unrecorded(dim, waiting)}.", markup=False)
                continue
            each = compare(read, dim, baseline, at=options.at, level=options.level)
            notes = (_unrecorded(dim, waiting),) if waiting else ()
            found.append(replace(each, notes=(*each.notes, *notes)))
    return found


def _unrecorded(dim: str, waiting: list[str]) -> str:
    return f"{dim} {', '.join(waiting)} has no recorded step yet"


def names_of(records: Sequence[Results]) -> list[str]:
    """A name for each record: the experiments' own, or the folders where two are alike."""
    names = [str(each.experiment.get("name") or each.path.name) for each in records]
    if len(set(names)) < len(names):
        names = [each.path.name for each in records]
    if len(set(names)) < len(names):
        names = [str(each.path) for each in records]
    return names


def _label(read: Any, dim: str, text: str | None) -> Any:
    """The label of a dimension that a word of the command line means."""
    if text is None or dim not in read.cell_dims:
        return text
    return next((label for label in read.experiment[dim] if _means(text, label)), text)


def _means(text: str, label: Any) -> bool:
    """Whether a word of the command line means a label."""
    if str(label) == text:
        return True
    try:
        return not isinstance(label, str) and float(label) == float(text)
    except ValueError:
        return False


def _page_table(comparison: Any) -> dict[str, Any]:
    from ici.report.comparison import (
        COLUMNS,
        comparison_caption,
        comparison_sections,
        comparison_title,
    )

    rows = [["compared", *COLUMNS]]
    for title, cells in comparison_sections(comparison):
        rows += [[title, *row] for row in cells]
    return {
        "title": comparison_title(comparison),
        "rows": rows,
        "caption": comparison_caption(comparison),
    }


def _write_comparisons(comparisons: Sequence[Any], out: Place) -> Place:
    """All rows of all comparisons as ``comparison.csv``, written in one step."""
    import pandas as pd

    from ici.report.comparison import comparison_rows

    _make(out)
    rows = [row for comparison in comparisons for row in comparison_rows(comparison)]
    path = out / "comparison.csv"
    with whole(path) as part:
        pd.DataFrame(rows).to_csv(part, index=False)
    return path


def _print_sites(digests: Sequence[Any], options: argparse.Namespace, console: Console) -> None:
    """Shift by layer input, experiments side by side; says why where they cannot be matched."""
    from rich.table import Table

    from ici.analysis.alignment import site_shifts

    named = {str(read.experiment.get("name") or read.path): read for read in digests}
    if len(named) < len(digests):
        named = {str(read.path): read for read in digests}
    try:
        rows = site_shifts(named, options.align)
    except InputError as error:
        console.print(f"No table of shift by layer input: {error}", style="dim", markup=False)
        return
    how = "name" if options.align == "name" else "relative depth"
    title = (
        f"Shift since step 0 by layer input, matched by {how}, σ; medians over the settings that "
        "all have and in which a run came through"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("layer input", no_wrap=True)
    for name in named:
        table.add_column(name, justify="right")
    for site, values in rows:
        table.add_row(site, *(f"{values[name]:.3g}" for name in named))
    console.print(table)
