"""The watch that every process of a run keeps on the others.

A process that dies or hangs leaves the others in an exchange that never ends. So a thread of each
says every few seconds that it is alive and asks after process 0, which asks after all. Where one is
not heard of for too long, or has said that it failed, each of the others shows where it was and
leaves with the status of a notice: the same command goes on from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ici.engine import hosts
from ici.errors import PREEMPTED, InputError

WATCHDOG_S = 60.0
# Between two chunks of steps there may be a compilation, and the first one is the longest.
CHUNKS_PER_WATCH = 60
ALIKE_S = 5.0
_watches = itertools.count()


class Watchdog:
    """Leaves the process where another one is gone.

    Args:
      silence_s: how long a process may go unheard; what it is at may take `CHUNKS_PER_WATCH` times
        as long.
      before_exit: called before the process ends.
    """

    def __init__(self, silence_s: float, before_exit: Callable[[], None]):
        self.silence_s = silence_s
        self.before_exit = before_exit
        self.began_at = self.heard_at = time.monotonic()
        self.verdict: str | None = None
        self._key = f"ici/watch/{next(_watches)}"
        self._over = threading.Event()
        self._changed: dict[str, tuple[str, float]] = {}
        for work in (self._talk, self._watch):
            threading.Thread(target=work, name="ici-watchdog", daemon=True).start()

    def failed(self, error: BaseException) -> None:
        """Tells the others that this process is leaving."""
        text = str(error).splitlines()[0][:200] if str(error) else ""
        with contextlib.suppress(Exception):
            self._tell(f"process {hosts.process_index()} failed ({type(error).__name__}: {text})")

    def _tell(self, verdict: str) -> None:
        key = f"{self._key}/failed/{hosts.process_index()}"
        hosts.client().key_value_set(key, verdict, allow_overwrite=True)

    def close(self) -> None:
        """Ends the watch."""
        self._over.set()

    def _talk(self) -> None:
        """Says that this process is alive, and hears the others; may hang where process 0 does."""
        for beat in itertools.count():
            # Where process 0 is gone every call fails, until the silence has been long enough.
            with contextlib.suppress(Exception):
                self._beat(beat)
            if self._over.wait(self.silence_s / 6):
                return

    def _beat(self, beat: int) -> None:
        client, me = hosts.client(), hosts.process_index()
        client.key_value_set(f"{self._key}/alive/{me}", str(beat), allow_overwrite=True)
        told = [verdict for _, verdict in client.key_value_dir_get(f"{self._key}/failed")]
        heard = dict(client.key_value_dir_get(f"{self._key}/alive")) if hosts.is_first() else {}
        if not hosts.is_first() and beat:
            heard["0"] = client.key_value_try_get(f"{self._key}/alive/0")
        silent = self._silent(heard)
        if hosts.is_first() and silent and not told:
            told = [f"{silent} not heard of for {self.silence_s:g} s"]
            self._tell(told[0])
        if hosts.is_first() or not silent:
            self.heard_at = time.monotonic()
        self.verdict = told[0] if told else None

    def _silent(self, heard: dict[str, str]) -> str:
        """Who of the others has said nothing new for too long."""
        now = time.monotonic()
        for who, beat in heard.items():
            if who not in self._changed or self._changed[who][0] != beat:
                self._changed[who] = (beat, now)
        late = [w for w, (_, at) in self._changed.items() if now - at > self.silence_s]
        names = sorted(int(who.rpartition("/")[2]) for who in late)
        return f"process {', '.join(map(str, names))}" if names else ""

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.silence_s / 6)):
            now = time.monotonic()
            unheard_s, unmet_s = now - self.heard_at, now - max(self.began_at, hosts.met_at())
            if self.verdict is not None:
                # All may be failing of the same, each with a message of its own.
                if not self._over.wait(ALIKE_S):
                    self._leave(self.verdict)
            elif unheard_s > 1.5 * self.silence_s:
                self._leave(f"process 0 not heard of for {unheard_s:.0f} s")
            elif unmet_s > self.silence_s * CHUNKS_PER_WATCH:
                self._leave(f"no chunk of steps for {unmet_s:.0f} s")

    def _leave(self, why: str) -> None:
        print(
            f"ici: process {hosts.process_index()} of {hosts.n_processes()}: {why}: leaving; the "
            "same command on all goes on from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback()
        with contextlib.suppress(Exception):
            self.before_exit()
        os._exit(PREEMPTED)


@contextlib.contextmanager
def watched(silence_s: float, before_exit: Callable[[], None]) -> Iterator[None]:
    """Keeps watch for as long as the context lasts; with one process there is nothing to watch.

    An error that leaves the context is told to the others, unless it came from them: then this
    process waits for the watch to say who is gone.
    """
    if hosts.n_processes() == 1:
        yield
        return
    watchdog = Watchdog(silence_s, before_exit)
    try:
        yield
    except Exception as error:
        if _is_of_others(error):
            time.sleep(4 * silence_s)
        watchdog.failed(error)
        raise
    finally:
        watchdog.close()


def _is_of_others(error: Exception) -> bool:
    """Whether an exchange with other processes failed, as far as its text says."""
    text = str(error).lower()
    return not isinstance(error, InputError) and any(sign in text for sign in _SIGNS)


_SIGNS = ("gloo", "nccl", "connection", "peer", "coordination service", "unavailable", "barrier")
