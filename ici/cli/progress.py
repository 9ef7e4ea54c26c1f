"""Live progress of a run in the terminal, and plain lines where there is none."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ici.config import Experiment
from ici.engine.loop import Progress

PLAIN_LINE_EVERY_S = 10.0


class LiveProgress:
    """A row per group: progress, lanes running, steps per second, loss, and the time left."""

    def __init__(self, experiment: Experiment, console: Console):
        self.experiment = experiment
        self.console = console
        self.seen: dict[tuple[str, int], Progress] = {}
        self.run_steps: dict[tuple[str, int], int] = {}
        self.told_end: set[tuple[str, int]] = set()
        self.started = self.last_line = time.perf_counter()
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, progress: Progress) -> None:
        """Takes in what one chunk brought."""
        group = progress.norm, progress.depth
        previous = self.seen.get(group)
        if previous is not None and progress.loss != progress.loss:
            progress = _with_loss(progress, previous.loss)
        new_steps = progress.step - (previous.step if previous else 0)
        self.run_steps[group] = self.run_steps.get(group, 0) + new_steps * progress.n_running
        self.seen[group] = progress
        if self.console.is_terminal:
            self.live.update(self._table())
            return
        now = time.perf_counter()
        ended = progress.step == progress.steps or not progress.n_running
        # A group's last steps and the measurements after them are reported apart.
        if group not in self.told_end and (ended or now - self.last_line > PLAIN_LINE_EVERY_S):
            if ended:
                self.told_end.add(group)
            self.last_line = now
            self.console.print(self._line(progress), highlight=False, soft_wrap=True)

    def _done_fraction(self) -> float:
        n_groups = len(self.experiment.groups)
        done = sum(p.step / p.steps if p.n_running else 1.0 for p in self.seen.values())
        return done / n_groups

    def _left(self) -> str:
        done = self._done_fraction()
        elapsed = time.perf_counter() - self.started
        return f"{elapsed * (1 - done) / done:.0f} s left" if done else "…"

    def _rate(self, p: Progress) -> str:
        # A run that has ended is no longer trained, or trained for nothing until it is repacked.
        return f"{self.run_steps[p.norm, p.depth] / max(p.elapsed_s, 1e-9):,.0f}"

    def _line(self, p: Progress) -> str:
        return (
            f"{p.norm:>8} depth {p.depth}  step {p.step}/{p.steps}  "
            f"{p.n_running}/{p.n_lanes} running, {p.n_diverged} diverged  "
            f"{self._rate(p)} run-steps/s  loss {p.loss:.4g}  {self._left()}{_waiting(p)}"
        )

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("norm", "depth", "", "step", "running", "diverged", "run-steps/s", "loss"):
            table.add_column(name, justify="left" if name in ("norm", "") else "right")
        for group in self.experiment.groups:
            p = self.seen.get((group.norm, group.depth))
            if p is None:
                table.add_row(group.norm, str(group.depth), "waiting", style="dim")
                continue
            table.add_row(
                p.norm,
                str(p.depth),
                ProgressBar(total=p.steps, completed=p.step, width=24),
                f"{p.step}/{p.steps}",
                f"{p.n_running}/{p.n_lanes}",
                str(p.n_diverged),
                self._rate(p),
                f"{p.loss:.4g}",
            )
        table.caption = self._left() + "".join(_waiting(p) for p in list(self.seen.values())[-1:])
        return table


def _waiting(p: Progress) -> str:
    """What part of the time went by without data, where it is worth a word."""
    share = p.loader_wait_s / max(p.elapsed_s, 1e-9)
    return f"  {share:.0%} of the time waiting for data" if share >= 0.01 else ""


def _with_loss(progress: Progress, loss: float) -> Progress:
    from dataclasses import replace

    return replace(progress, loss=loss)
