"""Notices to stop: SIGTERM, as clouds send it before they take a machine away, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from ici.errors import PREEMPTED, Preempted

GRACE_S = 25.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Notice:
    """Whether this process has been asked to stop; the loop looks at it between chunks."""

    def __init__(self) -> None:
        self.requested = False


def reason_to_leave(failed: bool, step: int) -> BaseException:
    """Why a loop is left at a step, where nothing is wrong with this process."""
    if failed:
        return RuntimeError(f"another process failed before step {step}: it says why.")
    return Preempted(f"told to stop at step {step}")


@contextlib.contextmanager
def noticed(
    grace_s: float = GRACE_S, before_exit: Callable[[], None] | None = None
) -> Iterator[Notice]:
    """Turns SIGTERM and SIGINT into a notice for as long as the context lasts.

    The first one sets `Notice.requested`. Where the context still lasts `grace_s` later, the
    process ends with status 75, `before_exit` called; so it does at the second one, at once. A
    thread sees to that, since compiled code and compilers do not let Python's own handlers run.
    Outside the main thread, where Python takes no handlers, nothing is changed.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    over = threading.Event()

    def leave() -> None:
        if before_exit is not None:
            with contextlib.suppress(Exception):
                before_exit()
        os._exit(PREEMPTED)

    def give_up() -> None:
        if not over.wait(grace_s):
            print(
                f"ici: not at the end of a chunk of steps after {grace_s:g} s: leaving; the same "
                "command goes on from the newest checkpoint.",
                file=sys.stderr,
                flush=True,
            )
            leave()

    def watch() -> None:
        while number := receiver.recv(1):
            if number[0] not in _SIGNALS or over.is_set():
                continue
            if notice.requested:
                leave()
            notice.requested = True
            threading.Thread(target=give_up, daemon=True).start()

    old_handlers = {each: signal.signal(each, lambda *_: None) for each in _SIGNALS}
    old_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, name="ici-signals", daemon=True)
    watcher.start()
    try:
        yield notice
    finally:
        over.set()
        signal.set_wakeup_fd(old_fd)
        for each, handler in old_handlers.items():
            # None where it was not Python that set it, as JAX does for several processes.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        sender.close()
        watcher.join()
        receiver.close()
