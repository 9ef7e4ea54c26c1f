"""Pieces of work that take turns, each ready and warm in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Work = Callable[[], None]
_WARM_UPS = 2


class BenchmarkError(RuntimeError):
    """A contestant failed; the message holds its traceback."""


def _serve(pipe: Any, build: Callable[..., Mapping[str, Work]], settings: dict[str, Any]) -> None:
    """Builds the pieces of work, runs each untimed, then times those that are asked for."""
    try:
        pieces = build(**settings)
        for work in pieces.values():
            for _ in range(_WARM_UPS):
                work()
        pipe.send(list(pieces))
        while (name := pipe.recv()) is not None:
            start = time.perf_counter()
            pieces[name]()
            pipe.send(time.perf_counter() - start)
    except (EOFError, KeyboardInterrupt):
        return
    except Exception:
        pipe.send(BenchmarkError(traceback.format_exc()))


class Process:
    """A fresh interpreter that holds named pieces of work and sleeps between its turns.

    Thread and device counts are fixed when a library starts, so contestants that differ in them
    cannot share a process. `build` is a module-level function; it returns the pieces by name.
    """

    def __init__(self, build: Callable[..., Mapping[str, Work]], **settings: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.names: list[str] = self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise BenchmarkError(f"a contestant ended with exit status {code}") from None
        if isinstance(answer, BenchmarkError):
            raise answer
        return answer

    def start(self, name: str) -> None:
        """Begins one turn of the piece `name`."""
        self._pipe.send(name)

    def finish(self) -> float:
        """Waits for the turn's end. Seconds it took, measured inside the process."""
        return self._receive()

    def seconds(self, name: str) -> float:
        """One turn of the piece `name`."""
        self.start(name)
        return self.finish()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def together(processes: list[Process], name: str) -> float:
    """Seconds until the slowest of several processes has done one turn, all started at once."""
    for process in processes:
        process.start(name)
    return max(process.finish() for process in processes)


def take_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round: A B, B A, A B, …

    Neighbours in time meet the same state of the machine, and turning the order round cancels
    what drifts evenly and what a turn leaves behind for the next.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        order = list(contestants) if turn % 2 == 0 else list(reversed(contestants))
        for name in order:
            seconds[name].append(contestants[name]())
    return seconds
