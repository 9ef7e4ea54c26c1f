"""How every figure looks: legible in print, in grey and for colour-blind readers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ici.errors import InputError
from ici.store.places import Place, whole

# Okabe & Ito, "Color universal design" (2008).
BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"

CYCLE = (BLACK, BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 3)))
# One more than colours, so that more norms than colours differ in marker, too.
MARKERS = "osD^vP*X"
MAX_COLUMNS = 6
# Of ordered lines, neighbours differ most in outline.
_ORDERED_MARKERS = "o^sXDvP<"

RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "figure.titlesize": 10,
    "pdf.fonttype": 42,
}

_CAPTION_SIZE = 6.5
_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class LineStyle:
    """One of a set of lines that can be told apart without colour."""

    colour: Any
    dashes: Any
    marker: str


def norm_styles(norms: Sequence[str]) -> dict[str, LineStyle]:
    """A style for each norm, the same in every figure of an experiment."""
    return {
        norm: LineStyle(CYCLE[i % len(CYCLE)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, norm in enumerate(norms)
    }


def ordered_styles(n: int) -> list[LineStyle]:
    """Styles for values along a scale: dark to light, neighbours with other dashes and markers.

    Without hue two neighbours are close to one grey, and dashes of noisy lines merge.
    """
    colours = mpl.colormaps["viridis"]
    return [
        LineStyle(
            colours(0.86 * i / max(n - 1, 1)),
            DASHES[i % 4],
            _ORDERED_MARKERS[i % len(_ORDERED_MARKERS)],
        )
        for i in range(n)
    ]


def new_figure(width: float, height: float, title: str, caption: str) -> Figure:
    """A figure of the given size in inches, with room made for the caption at its foot."""
    characters = int(width * _POINTS_PER_INCH / (_CAPTION_SIZE * 0.56))
    lines = textwrap.wrap(caption, characters)
    foot = (len(lines) + 0.8) * _CAPTION_SIZE * 1.3 / _POINTS_PER_INCH
    figure = Figure(figsize=(width, height + foot), layout="constrained")
    share = foot / (height + foot)
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0, share, 1, 1 - share))  # pyright: ignore[reportCallIssue]
    title_characters = int(width * _POINTS_PER_INCH / (RC["figure.titlesize"] * 0.52))
    figure.suptitle("\n".join(textwrap.wrap(title, title_characters)))
    figure.text(
        0.008,
        share * 0.9,
        "\n".join(lines),
        fontsize=_CAPTION_SIZE,
        color="0.25",
        va="top",
        linespacing=1.3,
    )
    return figure


def panel_rows(n: int) -> tuple[int, int]:
    """Rows and columns of `n` panels: as few rows as `MAX_COLUMNS` allow, about equally filled."""
    rows = math.ceil(n / MAX_COLUMNS)
    return rows, math.ceil(n / rows)


def panels(figure: Figure, n: int) -> list[Axes]:
    """`n` axes in `panel_rows` that share both scales; the outer ones have tick labels."""
    rows, columns = panel_rows(n)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for unused in grid[n:]:
        unused.remove()
    for lowest in grid[max(0, n - columns) : n]:
        lowest.tick_params(labelbottom=True)
    return grid[:n]


def is_leftmost(axes: Axes) -> bool:
    """Whether a panel begins a row."""
    place = axes.get_subplotspec()
    return place is None or place.is_first_col()


def broken_path(path: str, width: int) -> str:
    """A path with line breaks behind slashes, so that lines have `width` characters if they can."""
    lines = [""]
    for part in path.replace("/", "/\n").split("\n"):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def step_axis(axes: Axes, steps: int) -> None:
    """Makes the x axis that of the whole run, also where the record ends early.

    It is named where it has tick labels.
    """
    axes.set_xlim(-0.02 * steps, steps)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if axes.xaxis.get_tick_params()["labelbottom"]:
        axes.set_xlabel("step")


def plain_log(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis or colour bar as plain numbers, a few whatever the range."""
    ratio = high / low if low > 0 else 1.0
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if ratio < 15 else (1.0, 3.0) if ratio < 1e3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def lone_marker(values: np.ndarray) -> str:
    """A marker for a line of a single point, which would not show without."""
    return "." if np.isfinite(values).sum() == 1 else ""


def describe_seeds(n_surviving: int, n: int) -> str:
    """``3 seeds``, ``2 of 3 seeds``, ``all 3 seeds diverged``."""
    noun = "seed" if n == 1 else "seeds"
    if n_surviving == n:
        return f"{n} {noun}"
    if n_surviving == 0:
        return f"all {n} seeds diverged" if n > 1 else "1 seed, diverged"
    return f"{n_surviving} of {n} {noun}"


def save(figure: Figure, folder: Place, name: str) -> list[Place]:
    """Writes ``name.png`` (150 dpi) and ``name.pdf``; an older file gives way in one step."""
    paths = []
    for suffix in ("png", "pdf"):
        path = folder / f"{name}.{suffix}"
        try:
            with whole(path) as part:
                figure.savefig(part, dpi=150, format=suffix)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror}): wanted a writable folder with free space."
            ) from error
        paths.append(path)
    return paths
