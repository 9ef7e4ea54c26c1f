"""Sinks run beside the training: a thread each, which training never waits for."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence

from ici.config import Experiment
from ici.sinks.scalars import Rows, Scalars, taken
from ici.sinks.sink import About, Sink, about
from ici.store.places import Place

MAX_ROWS, MAX_BYTES = 256, 2**26
CLOSE_S = 10.0


class Background:
    """Feeds one sink from a daemon thread.

    What the sink is too slow for is dropped, oldest first. A sink that raises is left alone from
    then on. Both are told once, as warnings.
    """

    def __init__(
        self, sink: Sink, about: About, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES
    ):
        self.sink = sink
        self.name = type(sink).__name__
        self.about = about
        self.max_rows, self.max_bytes = max_rows, max_bytes
        self.n_put = self.n_dropped = 0
        self.failure: BaseException | None = None
        self._told = False
        self._rows: deque[Rows] = deque()
        self._n_bytes = 0
        self._closing = self._abandoned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name=f"ici {self.name}", daemon=True)

    def begin(self) -> None:
        """Starts the sink: best while programs are compiled, which leaves Python idle."""
        self._thread.start()

    def put(self, rows: Rows) -> None:
        """Hands `rows` over and returns at once. They must not be written to afterwards."""
        if self.failure is not None:
            self._tell_failure()
            return
        wanted = taken(rows)
        if wanted is None:
            return
        with self._changed:
            self.n_put += 1
            self._rows.append(wanted)
            self._n_bytes += wanted.n_bytes
            while len(self._rows) > 1 and (
                len(self._rows) > self.max_rows or self._n_bytes > self.max_bytes
            ):
                self._n_bytes -= self._rows.popleft().n_bytes
                self.n_dropped += 1
            self._changed.notify()

    def close(self, until: float) -> None:
        """Lets the sink finish, at the latest until this reading of ``time.monotonic``."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
        self._abandoned = self._thread.is_alive()
        if self.failure is not None:
            self._tell_failure()
        elif self._abandoned:
            _warn(f"{self.name} did not end in time: its last values may be missing.")
        if self.n_dropped:
            _warn(
                f"{self.name} was too slow: {self.n_dropped} of {self.n_put} pieces of the record "
                "were not passed to it, the oldest first; the record has them all."
            )

    def _tell_failure(self) -> None:
        if not self._told:
            self._told = True
            error = self.failure
            _warn(
                f"{self.name} failed and gets no more values; the run goes on without it: "
                f"{type(error).__name__}: {error}"
            )

    def _next(self) -> Rows | None:
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._closing)
            if not self._rows:
                return None
            rows = self._rows.popleft()
            self._n_bytes -= rows.n_bytes
            return rows

    def _serve(self) -> None:
        started = False
        # Not even a sink that calls sys.exit may end more than itself.
        try:
            self.sink.start(self.about)
            started = True
            scalars = Scalars(self.about)
            while (rows := self._next()) is not None:
                for series, step, values in scalars.of(rows):
                    if self._abandoned:
                        return
                    self.sink.log(series, step, values)
            started = False
            self.sink.finish()
        except BaseException as error:
            self.failure = error
            with self._changed:
                self._rows.clear()
            if started:
                with contextlib.suppress(BaseException):
                    self.sink.finish()


def _warn(message: str) -> None:
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # made an error by the user's filters: no reason to end a run
        print(f"ici: warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def following(
    sinks: Sequence[Sink], experiment: Experiment, folder: Place
) -> Iterator[list[Background]]:
    """The sinks, each with its thread; at the end they have `CLOSE_S` seconds to finish."""
    facts = about(experiment, folder) if sinks else None
    backgrounds = [Background(sink, facts) for sink in sinks if facts]
    try:
        yield backgrounds
    finally:
        until = time.monotonic() + CLOSE_S
        for background in backgrounds:
            background.close(until)
