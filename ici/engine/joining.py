"""Joining the processes of one run: by address, or as the cluster says."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

import jax

from ici.engine import hosts
from ici.errors import PREEMPTED, InputError

AUTO = "auto"
JOIN_S = 300


@dataclass(frozen=True)
class Together:
    """Which process of how many this is.

    Attributes:
      coordinator: ``HOST:PORT`` where process 0 listens, or "auto": as a cloud TPU slice, Slurm,
        Open MPI or Kubernetes says.
      processes: how many there are; None with "auto".
      process: the number of this one, from 0; None with "auto".
      join_s: how long to wait for all of them to come.
    """

    coordinator: str
    processes: int | None = None
    process: int | None = None
    join_s: int = JOIN_S

    def __post_init__(self) -> None:
        n, index = self.processes, self.process
        if self.coordinator == AUTO:
            if n is not None or index is not None:
                raise InputError(
                    "--coordinator auto takes the processes from the cluster: leave --processes "
                    "and --process out, or name the coordinator as HOST:PORT."
                )
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(
                f"coordinator is {self.coordinator!r}: wanted HOST:PORT of process 0, such as "
                "10.0.0.1:9911, or auto."
            )
        if n is None or index is None or not 0 <= index < n:
            raise InputError(
                f"processes is {n} and process is {index}: wanted how many there are and the "
                "number of this one, counted from 0: --processes 4 --process 0."
            )


def join(together: Together) -> None:
    """Connects this process to the others; comes before anything is computed.

    Raises:
      InputError: JAX has been computing already, no cluster is found, or the others do not come.
    """
    # The loop has a notice of its own, and JAX's would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    where: dict[str, Any] = {}
    if together.coordinator != AUTO:
        where = {
            "coordinator_address": together.coordinator,
            "num_processes": together.processes,
            "process_id": together.process,
            "cluster_detection_method": "deactivate",
        }
        _check_reachable(together)
    try:
        jax.distributed.initialize(**where, initialization_timeout=together.join_s)
    except Exception as error:
        # RuntimeError, ValueError or one of the runtime's own, by what went wrong.
        seen = str(error).splitlines()[0] if str(error) else type(error).__name__
        if together.coordinator == AUTO and "should be defined" in seen:
            raise InputError(
                "--coordinator auto: this is no cloud TPU slice, Slurm, Open MPI or Kubernetes "
                "job: wanted --coordinator HOST:PORT --processes N --process I."
            ) from error
        raise InputError(
            f"the processes of {together.coordinator} did not come together ({seen}): wanted "
            f"{together.processes or 'all'} of them within {together.join_s} s, each started with "
            "the same command but for --process."
        ) from error
    if hosts.n_processes() > 1 and not hosts.is_first():
        _leave_with_the_first()


def _check_reachable(together: Together) -> None:
    """Raises where process 0 cannot listen: its error would be a line among many."""
    if together.process != 0:
        return
    port = int(together.coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen on port {port} ({error.strerror}): wanted a free port; "
                "choose another --coordinator on all processes."
            ) from error


_kept: list[Any] = []


def _leave_with_the_first() -> None:
    """Ends this process with the status of a notice where process 0 is gone.

    JAX then aborts, as it does for its own errors: the two are told apart by whether anything
    still listens where process 0 did.
    """
    from jax._src import distributed

    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")

    def aborted(number: int) -> None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            print(
                f"ici: process 0 at {host}:{port} is gone: leaving; the same command on all goes "
                "on from the newest checkpoint.",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback()
            os._exit(PREEMPTED)

    # Python's own handlers run between its instructions: too late for `abort`.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _kept.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
