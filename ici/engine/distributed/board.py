"""Where the tasks of a cluster say how far they are, and hear that they are to stop."""

from __future__ import annotations

import threading
from typing import Any


class Board:
    """An actor of its own: neither the driver nor a task has to wait for the other.

    A message is ``(attempt, kind, content)``; attempts are numbers that the driver gives out.
    """

    def __init__(self) -> None:
        self._messages: list[tuple[int, str, Any]] = []
        self._stopping = False
        self._lock = threading.Lock()

    def tell(self, attempt: int, kind: str, content: Any) -> bool:
        """Leaves a message for the driver; says whether all are to stop."""
        with self._lock:
            self._messages.append((attempt, kind, content))
            return self._stopping

    def take(self) -> list[tuple[int, str, Any]]:
        """What was left since the last time."""
        with self._lock:
            taken, self._messages = self._messages, []
            return taken

    def stop(self) -> None:
        """All are to save and stop."""
        self._stopping = True
