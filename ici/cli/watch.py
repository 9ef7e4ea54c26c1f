"""``ici watch``: a record in the terminal while another process writes it."""

from __future__ import annotations

import argparse
import time
from typing import NoReturn

from rich.console import Console
from rich.live import Live

from ici.analysis.watched import LiveState, Watched
from ici.cli.consoles import whole_lines
from ici.cli.watch_view import headline, picture
from ici.errors import InputError
from ici.store.places import place

PLAIN_LINE_EVERY_S = 10.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"ici watch: {message}: wanted ici watch RUN [--once] [--every SECONDS].")


def watch_command(arguments: list[str]) -> int:
    """``ici watch RUN [--once] [--every SECONDS]``."""
    parser = _Parser(prog="ici watch", description="Follow a record that is being written.")
    parser.add_argument("run", metavar="RUN", help="folder of the record; may not exist yet")
    parser.add_argument("--once", action="store_true", help="show the state now and end")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between two looks; default 2"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.every < float("inf"):
        raise InputError(f"--every is {options.every}: wanted seconds > 0, such as --every 2.")
    watched, console = Watched(place(options.run)), whole_lines()
    try:
        if options.once:
            _show(watched.update(), console)
        elif console.is_terminal:
            _live(watched, console, options.every)
        else:
            _lines(watched, console, options.every)
    except KeyboardInterrupt:
        pass  # watching ends so; the run goes on
    return 0


def _show(state: LiveState, console: Console) -> None:
    ascii_only = console.options.ascii_only
    width = console.width if console.is_terminal else 100
    console.print(picture(state, width, None, ascii_only), highlight=False, soft_wrap=True)


def _live(watched: Watched, console: Console, every_s: float) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            state = watched.update()
            height = None if state.ended else console.height
            view = picture(state, console.width, height, console.options.ascii_only)
            live.update(view, refresh=True)
            if state.ended:
                return
            time.sleep(every_s)


def _lines(watched: Watched, console: Console, every_s: float) -> None:
    """A line where something changed, and everything at the end."""
    last, told_at, told = "", float("-inf"), ()
    while True:
        state = watched.update()
        for divergence in state.divergences:
            if divergence not in told:
                console.print(
                    f"diverged at step {divergence.step}: {divergence.run}", highlight=False
                )
        told = state.divergences
        if state.ended:
            break
        line = headline(state)
        phase = (state.phase, state.replaced)
        if (phase != last) or time.monotonic() - told_at > PLAIN_LINE_EVERY_S:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            last, told_at = phase, time.monotonic()
        time.sleep(every_s)
    _show(state, console)
