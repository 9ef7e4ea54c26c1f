"""How the state of a record in progress looks: in a terminal of any size, or as plain lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ici.analysis.live import GroupState, SettingState
from ici.analysis.records import short
from ici.analysis.watched import LiveState

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
BAR, ASCII_BAR = "━─", "#."
GAP, MAX_NAME, MIN_DRAWN, MAX_DRAWN = 2, 16, 8, 32


def picture(
    state: LiveState, width: int = 80, height: int | None = None, ascii_only: bool = False
) -> RenderableType:
    """The state as tables within `width` columns and, unless None, `height` lines."""
    parts: list[RenderableType] = [Text(headline(state), style="bold", overflow="fold")]
    divergences = state.divergences
    if height is not None:
        divergences = divergences[-max(1, height // 8) :]
    if state.groups:
        room = None if height is None else max(4, height - 9 - len(divergences))
        ranked = _by_interest(state.groups)
        shown = ranked if room is None else ranked[: max(1, room // 2)]
        parts.append(_groups(_in_order(shown, state.groups), state, width, ascii_only))
        if len(shown) < len(state.groups):
            parts.append(Text(f"and {len(state.groups) - len(shown)} more groups", style="dim"))
        settings = [s for g in ranked for s in g.settings]
        n_all = len(settings)
        if room is not None:
            settings = settings[: max(3, room - len(shown))]
        if settings:
            kept = _in_order(settings, [s for g in state.groups for s in g.settings])
            parts += ["", _settings(kept, state, width, ascii_only)]
            if len(settings) < n_all:
                parts.append(Text(f"and {n_all - len(settings)} more rows", style="dim"))
            if height is None or height > 20:
                parts.append(Text(_legend(state), style="dim", overflow="fold"))
    for each in divergences:
        line = Text(f"diverged at step {each.step}: {each.run}", style="yellow", no_wrap=True)
        line.overflow = "crop"
        parts.append(line)
    return Group(*parts)


def headline(state: LiveState) -> str:
    """One line: what is going on, how far it is, and the time left."""
    where = f"{state.path}" + (f" ({state.name})" if state.name else "")
    ago = duration(state.unchanged_s)
    said = {
        "absent": "no record there yet; waiting for one",
        "starting": "no step committed yet: the first program is being compiled",
        "running": "running",
        "silent": f"its writer lives and has committed nothing for {ago}",
        "dead": f"its writer is gone without a word (killed?), the last commit {ago} old; "
        "the same `ici run` goes on",
        "done": "done",
        "failed": "failed: its writer stopped with an error; the same `ici run` goes on",
        "preempted": "told to stop, and saved; the same `ici run` goes on",
    }[state.phase]
    line = f"{where}: {said}"
    if state.groups and not state.ended:
        line += f"; {_percent(state.groups)} of the steps"
        if state.left_s is not None and state.phase in ("running", "silent"):
            line += f", about {duration(state.left_s)} left"
    if state.replaced and not state.ended:
        line += "; started over while watched"
    return line


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, ``2.0 d``."""
    for unit, size, digits in (("d", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size or (unit != "min" and seconds >= size):
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def sparkline(losses: np.ndarray, low: float, high: float, width: int, ascii_only: bool) -> str:
    """``losses[n]`` in `width` characters, on a log scale from `low` to `high`; blank where NaN."""
    signs = ASCII_BLOCKS if ascii_only else BLOCKS
    edges = np.linspace(0, len(losses), width + 1).astype(int)
    line, last = "", math.nan
    known_to = int(np.flatnonzero(np.isfinite(losses))[-1]) if np.isfinite(losses).any() else -1
    for first, end in zip(edges[:-1], edges[1:], strict=True):
        part = losses[first : max(end, first + 1)]
        part = part[np.isfinite(part)]
        if part.size:
            last = float(part.mean())
        if first > known_to or not math.isfinite(last):
            line += " "
            continue
        at = 0.0 if high <= low else (_log(last) - _log(low)) / (_log(high) - _log(low))
        line += signs[round(min(max(at, 0.0), 1.0) * (len(signs) - 1))]
    return line


def _log(value: float) -> float:
    return math.log(max(value, 1e-12))


def _percent(groups: tuple[GroupState, ...]) -> str:
    done = sum(1.0 if g.done or not g.n_running else g.step / g.steps for g in groups)
    return f"{100 * done / len(groups):.0f} %"


def _by_interest(groups: tuple[GroupState, ...]) -> list[GroupState]:
    """Those at work first, then the last ones done, then those to come."""
    working = [g for g in groups if g.step and not g.done]
    ended = [g for g in groups if g.done]
    return working + ended[::-1] + [g for g in groups if not g.step and not g.done]


def _in_order(chosen: list[Any], everything: Sequence[Any]) -> list[Any]:
    identities = {id(one) for one in chosen}
    return [one for one in everything if id(one) in identities]


def _groups(groups: list[GroupState], state: LiveState, width: int, ascii_only: bool) -> Table:
    columns = [
        ("norm", [g.norm for g in groups]),
        ("depth", [str(g.depth) for g in groups]),
        ("step", [f"{g.step}/{g.steps}" for g in groups]),
        ("running", [f"{g.n_running}/{g.n_runs}" for g in groups]),
        ("diverged", [str(g.n_diverged) for g in groups]),
    ]
    if state.target is not None:
        columns.append(("met target", [f"{g.n_met}/{g.n_runs}" for g in groups]))
    return _table(
        columns, width, "", lambda n: [_bar(g.step / g.steps, n, ascii_only) for g in groups]
    )


def _bar(fraction: float, width: int, ascii_only: bool) -> str:
    full, empty = ASCII_BAR if ascii_only else BAR
    n_full = round(fraction * width)
    return full * n_full + empty * (width - n_full)


def _settings(
    settings: list[SettingState], state: LiveState, width: int, ascii_only: bool
) -> Table:
    none = "-" if ascii_only else "–"

    def number(value: float, form: str = "{:.4g}") -> str:
        return form.format(value) if math.isfinite(value) else none

    scores = [number(s.score) for s in settings]
    if state.score == "accuracy":
        scores = [number(100 * s.score, "{:.1f}%") for s in settings]
    spikes = [none if s.n_spikes is None else str(s.n_spikes) for s in settings]
    columns = [
        ("norm", [s.norm for s in settings]),
        ("lr", [short(s.lr) for s in settings]),
        ("loss", [number(s.loss) for s in settings]),
        ("val acc." if state.score == "accuracy" else "val loss", scores),
        ("div.", [f"{s.n_diverged}/{s.n_runs}" for s in settings]),
        ("shift", [number(s.shift, "{:.3g}") for s in settings]),
        ("spikes", spikes),
    ]
    if len({g.depth for g in state.groups}) > 1:
        columns.insert(1, ("depth", [str(s.depth) for s in settings]))
    known = np.concatenate([s.losses[np.isfinite(s.losses)] for s in settings])
    # One scale for all; the few that explode would press the others flat.
    low, high = np.percentile(known, [1, 98]).tolist() if known.size else (1.0, 1.0)
    return _table(
        columns,
        width,
        "loss over the steps",
        lambda n: [sparkline(s.losses, low, high, n, ascii_only) for s in settings],
    )


def _table(
    columns: list[tuple[str, list[str]]],
    width: int,
    drawn: str,
    draw: Callable[[int], list[str]],
) -> Table:
    """As many columns as there is room for, from the first on, and what is `drawn` in the rest."""

    def room(column: tuple[str, list[str]]) -> int:
        n = max(len(text) for text in (column[0], *column[1]))
        # Names of norms may be long, and are folded.
        return GAP + (min(n, MAX_NAME) if column[0] == "norm" else n)

    columns = list(columns)
    while len(columns) > 2 and sum(map(room, columns)) > width:
        columns.pop()
    left = min(MAX_DRAWN, width - sum(map(room, columns)) - GAP)
    table = Table(box=None, padding=(0, GAP, 0, 0))
    for title, cells in columns:
        is_norm = title == "norm"
        table.add_column(
            title,
            justify="left" if is_norm else "right",
            overflow="fold",
            no_wrap=not is_norm,
            width=room((title, cells)) - GAP if is_norm else None,
        )
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    if left >= MIN_DRAWN:
        table.add_column(drawn if len(drawn) <= left else "", no_wrap=True, width=left)
        rows = [(*row, line) for row, line in zip(rows, draw(left), strict=True)]
    for row in rows:
        table.add_row(*row)
    return table


def _legend(state: LiveState) -> str:
    site = next((g.deepest_site for g in state.groups if g.deepest_site), None)
    says = ["Medians over the runs of a row; loss: training, curve on one log scale."]
    if site:
        says.append(f"shift: mean shift at {site} since step 0, RMS over units, in std.")
    says.append("spikes: events of all runs (rule olmo_core).")
    if state.target is not None:
        says.append(f"met: validation reached {state.target}".rstrip(".") + ".")
    return " ".join(says)
