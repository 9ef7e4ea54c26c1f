"""Where commands print: a terminal, or a pipe that must get whole lines."""

from __future__ import annotations

from rich.console import Console


def whole_lines() -> Console:
    """A console that leaves lines unbroken where no terminal shows them."""
    console = Console()
    # Rich takes a pipe for 80 columns wide.
    return console if console.is_terminal else Console(width=10_000)
