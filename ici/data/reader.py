"""A thread that reads ahead, and that nobody has to wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from typing import Any

from ici.errors import InputError


class Reader:
    """Runs calls one after another in a thread of its own.

    Unlike those of `concurrent.futures`, the thread does not keep the process from ending when a
    call never returns: a mount that is gone, a server that does not answer.
    """

    def __init__(self, name: str):
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """What ``function(*arguments)`` will give."""
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        return future

    def close(self, within_s: float) -> None:
        """Ends the thread, or leaves it to the call that it is stuck in."""
        self._calls.put(None)
        self._thread.join(within_s)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function, arguments = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # the one that waits is to have it, whatever it is
                future.set_exception(error)


def read(future: Future[Any], patience_s: float, what: str) -> Any:
    """The result of a call that reads `what`.

    Raises:
      InputError: it has not come within `patience_s` seconds.
    """
    try:
        return future.result(timeout=patience_s)
    except TimeoutError:
        if future.done():  # the call's own
            raise
        raise InputError(
            f"{what} gave no examples for {patience_s:g} s: wanted a source that answers; check "
            "its disk or network, or set ICI_DATA_TIMEOUT_S to wait longer. What was trained is "
            "saved: the same command goes on."
        ) from None
