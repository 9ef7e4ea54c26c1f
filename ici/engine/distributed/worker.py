"""What runs on a node of the cluster: one group, from its newest checkpoint to its end.

The function that Ray calls imports nothing before it has set the environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ici.engine.distributed.parcel import Parcel
    from ici.engine.training import Upkeep
    from ici.store.places import Place

Tell = Callable[[str, Any], bool]


@dataclass(frozen=True)
class Work:
    """One attempt at a group.

    Attributes:
      attempt: number of it.
      norm, depth: of the group.
      folder: of the record, absolute.
      n_devices: how many are claimed.
      upkeep: of the run.
      with_rows: whether the driver feeds sinks.
    """

    attempt: int
    norm: str
    depth: int
    folder: Place
    n_devices: int
    upkeep: Upkeep
    with_rows: bool


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: "done", "preempted", "refused" (bad input) or "failed".

    To the driver also "lost": its process or its node is gone.
    """

    kind: str
    message: str = ""


def work(parcel: Parcel, variables: dict[str, str], pickled: bytes, board: Any) -> Outcome:
    """The task of one group: of `Work`, which is unpickled once the environment is set."""
    os.environ.update(parcel.variables | variables)
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayActorError

    job: Work = cloudpickle.loads(pickled)

    def tell(kind: str, content: Any) -> bool:
        return ray.get(board.tell.remote(job.attempt, kind, content))

    from ici.errors import InputError, Preempted

    try:
        with _told_warnings(tell):
            _train(parcel, job, tell)
    except Preempted as stop:
        return Outcome("preempted", str(stop))
    except RayActorError:
        return Outcome("preempted", "the process that tasks report to is gone")
    except InputError as error:
        return Outcome("refused", str(error))
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return Outcome("failed", f"{type(error).__name__}: {error}\n{trace}")
    return Outcome("done")


def _train(parcel: Parcel, job: Work, tell: Tell) -> None:
    import time

    from ici.config import Group
    from ici.engine.distributed.parcel import unpacked
    from ici.engine.explained import explained
    from ici.engine.flight_windows import record_flights
    from ici.engine.group import prepare
    from ici.engine.mesh import make_mesh
    from ici.engine.opening import check_data, load
    from ici.engine.progress import Progress
    from ici.engine.signals import Notice
    from ici.engine.training import Recording, train_group
    from ici.environment import environment
    from ici.errors import InputError, Preempted
    from ici.store.manifest import MANIFEST, Manifest

    here = f"{socket.gethostname()} (process {os.getpid()})"
    experiment = unpacked(parcel, here)
    notice = Notice()
    if tell("begun", environment()):
        raise Preempted("told to stop before the first step")
    if not (job.folder / MANIFEST).exists():
        raise InputError(
            f"{here} does not see {job.folder}: wanted a folder on a file system that all nodes "
            "share, or gs:// or s3://; choose another --out."
        )
    manifest = Manifest.read(job.folder)
    if manifest.fingerprint != experiment.fingerprint:
        raise InputError(
            f"{here} sees another experiment in {job.folder}: wanted the same folder, code and "
            "packages on all nodes."
        )
    rows = _Rows()

    def on_progress(progress: Progress) -> None:
        if rows.kept:
            tell("rows", rows.taken())
        notice.requested |= tell("progress", progress)

    began = time.perf_counter()
    try:
        mesh = make_mesh(job.n_devices, experiment.data_parallel)
        dataset = load(experiment)
        check_data(job.folder, dataset, manifest)
        prepared = prepare(experiment, Group(job.norm, job.depth), dataset)
        sinks: Any = [rows] if job.with_rows else []
        recording = Recording(
            experiment, job.folder, manifest, job.upkeep, notice, on_progress, sinks
        )
        train_group(recording, prepared, dataset, mesh, sent=True)
    except InputError:
        raise
    except Exception as error:
        told = explained(error, experiment, job.folder)
        if told is None:
            raise
        raise told from error
    if rows.kept:
        tell("rows", rows.taken())
    took_s = time.perf_counter() - began
    name = prepared.group.name
    manifest.groups = {name: manifest.groups[name]}
    record_flights(experiment, job.folder, manifest, job.upkeep.flights, took_s)


class _Rows:
    """Takes the place of sinks, which live with the driver."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def put(self, rows: Any) -> None:
        """Keeps what sinks would take of `rows`."""
        from ici.sinks.scalars import taken

        wanted = taken(rows)
        if wanted is not None:
            self.kept.append(wanted)

    def taken(self) -> list[Any]:
        kept, self.kept = self.kept, []
        return kept


@contextlib.contextmanager
def _told_warnings(tell: Tell) -> Iterator[None]:
    """Warnings of this package go to the driver, which shows them; nobody sees them here."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: Any, filename: str, *more: Any) -> None:
            if issubclass(category, RuntimeWarning):
                tell("warning", str(message))
            else:
                usual(message, category, filename, *more)

        warnings.showwarning = show
        yield
