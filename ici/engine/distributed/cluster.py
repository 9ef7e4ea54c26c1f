"""A Ray cluster: one that is there, or one of this machine for as long as it is needed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ici.engine.mesh import usable_cores
from ici.errors import InputError

LOCAL = "local"
ANSWER_S = 10.0
_KINDS = ("TPU", "GPU", "CPU")
# Of a group's time on one device, as a part of that for training: the default experiment's.
COMPILING = 0.2


@dataclass(frozen=True)
class Claim:
    """The devices that one task takes, all on one node.

    Attributes:
      kind: CPU, GPU or TPU, as Ray counts them.
      count: how many.
    """

    kind: str
    count: int

    @property
    def options(self) -> dict[str, Any]:
        """For Ray."""
        if self.kind == "CPU":
            return {"num_cpus": self.count}
        if self.kind == "GPU":
            return {"num_cpus": 1, "num_gpus": self.count}
        return {"num_cpus": 1, "resources": {self.kind: self.count}}

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment, before JAX is imported."""
        if self.kind != "CPU":
            return {}
        # Where a node has accelerators too, they are claimed by others.
        return {"JAX_NUM_CPU_DEVICES": str(self.count), "JAX_PLATFORMS": "cpu"}

    def __str__(self) -> str:
        return f"{self.count} {self.kind}{'s' if self.count > 1 else ''}"


def is_local(address: str | None) -> bool:
    """Whether `connected` makes a cluster of its own."""
    return (address or os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module ``ray``, connected.

    Args:
      address: HOST:PORT of a cluster, "auto" for the one that runs on this machine; None for that
        of ``RAY_ADDRESS``, or a local one of this process's own that ends with the context.

    Raises:
      InputError: Ray is not installed, or no cluster answers there.
    """
    # A program that only looks on counts nobody, and nothing is sent anywhere.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"Ray is not installed ({error}): wanted `pip install ici-instrument[ray]`, or leave "
            "--on out to run on this machine alone."
        ) from error
    if ray.is_initialized():  # by the caller, whose it stays
        yield ray
        return
    where = address or os.environ.get("RAY_ADDRESS") or LOCAL
    own: dict[str, Any] = {}
    if is_local(address):
        own = {"num_cpus": usable_cores(), "include_dashboard": False}
    # Ray takes these for its own ends; here a notice means: save, then leave.
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        _check_listening(where)
        with warnings.catch_warnings():
            # Its processes begin as forks of this one, which at once become something else.
            warnings.filterwarnings("ignore", "os.fork.. was called")
            ray.init(where, log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise InputError(
            f"no Ray cluster at {where} ({text[0][:200] if text else type(error).__name__}): "
            "wanted the HOST:PORT that `ray start --head` printed, with RAY_AUTH_MODE=token where "
            "that cluster has a token, or no --ray-address for one of this machine."
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # not the main thread, which alone has handlers
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
    try:
        with _quiet(ray):
            yield ray
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises `OSError` where nobody listens at HOST:PORT; Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Without the pages of logs that Ray prints for each process or node that is lost.

    The driver says it in a line. Ray has no setting for this: where its insides change, they are
    printed again.
    """
    worker = getattr(ray._private, "worker", None)
    usual = getattr(worker, "print_to_stdstream", None)
    if usual is None:
        yield
        return
    vars(worker)["print_to_stdstream"] = lambda *_, **__: None
    try:
        yield
    finally:
        vars(worker)["print_to_stdstream"] = usual


def nodes(ray: Any) -> list[Mapping[str, float]]:
    """What each node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def claimed(
    nodes: list[Mapping[str, float]],
    n_groups: int,
    n_lanes: int,
    devices: int | None,
    data_parallel: int,
) -> Claim:
    """What each of `n_groups` tasks takes: whole devices of one node.

    A cluster with accelerators is used for those. With `devices` None it is as many as end the
    groups soonest, if a group's time is compiling, for which more devices are no help, and
    training, for which they are; but no more than it has runs for. A TPU's host goes to one task.
    """
    kind = next(kind for kind in _KINDS if kind == "CPU" or any(n.get(kind) for n in nodes))
    of_nodes = [int(n.get(kind, 0)) for n in nodes]
    largest = max(of_nodes, default=0)
    if devices is not None:
        return Claim(kind, devices)
    if kind == "TPU":
        return Claim(kind, largest)

    def time_to_end(count: int) -> float:
        at_once = sum(n // count for n in of_nodes)
        return math.ceil(n_groups / at_once) * (COMPILING + 1 / count)

    useful = min(largest, n_lanes * data_parallel)
    counts = range(data_parallel, useful + 1, data_parallel)
    return Claim(kind, min(counts, key=time_to_end, default=data_parallel))


def check_claim(nodes: list[Mapping[str, float]], claim: Claim, may_grow: bool) -> str | None:
    """What no node has, while the cluster may still grow; None where nothing is missing.

    Raises:
      InputError: not one task can ever run.
    """
    largest = int(max((n.get(claim.kind, 0) for n in nodes), default=0))
    if largest >= claim.count:
        return None
    missing = f"a task wants {claim} and the largest node has {largest}"
    if may_grow:
        return missing
    raise InputError(
        f"{missing}: wanted --devices of at most that, or the --ray-address of a larger cluster."
    )
