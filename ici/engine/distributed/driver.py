"""Groups of an experiment on a Ray cluster, a task each: sent, followed, sent again where lost.

Ray places the tasks and tells of those that it lost. What a task has trained lies in the record and
in its checkpoints, so that another attempt goes on from there, bit for bit.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ici.config import Experiment
from ici.engine.distributed.board import Board
from ici.engine.distributed.cluster import Claim, check_claim, claimed, nodes
from ici.engine.distributed.parcel import packed
from ici.engine.distributed.worker import Outcome, Work, work
from ici.engine.group import PreparedGroup
from ici.engine.progress import Progress
from ici.engine.training import Recording
from ici.engine.watchdog import CHUNKS_PER_WATCH
from ici.errors import InputError, Preempted
from ici.store.manifest import Manifest

# Attempts at a group that may be lost one after another without one more chunk of steps.
ATTEMPTS = 3
LOOK_EVERY_S = 0.1
SOON_S = 15.0


@dataclass
class _Attempt:
    """One group, and how often it was lost."""

    prepared: PreparedGroup
    number: int
    begun: bool = False
    heard_at: float = field(default_factory=time.monotonic)
    step: int = -1
    n_lost: int = 0

    @property
    def name(self) -> str:
        return self.prepared.group.name


@dataclass(frozen=True)
class Cluster:
    """Where tasks go.

    Attributes:
      ray: the module, connected.
      claim: what each task takes.
      lacking: what no node has of it yet; None where nothing is missing.
    """

    ray: Any
    claim: Claim
    lacking: str | None


def cluster_for(ray: Any, experiment: Experiment, n_groups: int, may_grow: bool) -> Cluster:
    """The cluster that `ray` is connected to, as it serves so many groups.

    Raises:
      InputError: no node ever has the devices of a task.
    """
    of_nodes, n_lanes = nodes(ray), len(experiment.lanes)
    claim = claimed(of_nodes, n_groups, n_lanes, experiment.devices, experiment.data_parallel)
    return Cluster(ray, claim, check_claim(of_nodes, claim, may_grow))


class Driver:
    """Trains groups on a cluster, as `train_group` does one after another here."""

    def __init__(self, cluster: Cluster, recording: Recording):
        ray, folder = cluster.ray, recording.folder
        self.ray = ray
        self.recording = recording
        self.folder = folder.absolute() if isinstance(folder, Path) else folder
        self.claim, self.lacking = cluster.claim, cluster.lacking
        self.parcel = ray.put(packed(recording.experiment))
        # Where the driver is: what ends one ends the other.
        beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(num_cpus=0, scheduling_strategy=beside)(Board)
        self.board: Any = board.remote()
        self.task = ray.remote(max_calls=1, max_retries=0, **self.claim.options)(work)
        self.running: dict[Any, _Attempt] = {}
        self.n_sent = 0
        self.stopping = self.preempted = False
        self.failure: Exception | None = None
        self.failed: dict[str, Outcome] = {}
        self.environments: list[dict[str, Any]] = []

    def train(self, groups: Sequence[PreparedGroup]) -> None:
        """Returns when every group is done.

        Raises:
          Preempted: the notice came, and all are saved.
          InputError: a group cannot be trained, or was lost too often; the others are done.
        """
        for prepared in groups:
            self._send(_Attempt(prepared, 0))
        began, told_lacking = time.monotonic(), False
        while self.running:
            ended, _ = self.ray.wait(list(self.running), timeout=LOOK_EVERY_S)
            self._hear()
            for ref in ended:
                self._end(ref)
            if self.recording.notice.requested or self.failure is not None:
                self._stop()
            self._cancel_silent()
            waited = self.lacking is not None and time.monotonic() - began > SOON_S
            if waited and not told_lacking:
                told_lacking = True
                _warn(f"waiting for the cluster to grow: {self.lacking}.")
        self._hear()
        if self.failure is not None:
            raise self.failure
        if self.failed:
            raise _gave_up(self.failed)
        if self.preempted:
            raise Preempted("told to stop; the groups that ran are saved")

    def _send(self, attempt: _Attempt) -> None:
        attempt.number, attempt.begun, attempt.heard_at = self.n_sent, False, time.monotonic()
        self.n_sent += 1
        group = attempt.prepared.group
        job = Work(
            attempt=attempt.number,
            norm=group.norm,
            depth=group.depth,
            folder=self.folder,
            n_devices=self.claim.count,
            upkeep=self.recording.upkeep,
            with_rows=bool(self.recording.observers),
        )
        task = self.task.options(name=f"ici {group.name}", scheduling_strategy="SPREAD")
        sent = self.ray.cloudpickle.dumps(job)
        ref = task.remote(self.parcel, self.claim.variables, sent, self.board)
        self.running[ref] = attempt

    def _hear(self) -> None:
        """Takes what the tasks have said."""
        by_number = {attempt.number: attempt for attempt in self.running.values()}
        for number, kind, content in self.ray.get(self.board.take.remote()):
            attempt = by_number.get(number)
            if attempt is None:  # of an attempt that was given up
                continue
            attempt.heard_at = time.monotonic()
            if kind == "begun":
                attempt.begun = True
                self._note(content)
            elif kind == "warning":
                _warn(content)
            elif kind == "rows":
                for rows in content:
                    for observer in self.recording.observers:
                        observer.put(rows)
            else:
                if content.step > attempt.step:
                    attempt.step, attempt.n_lost = content.step, 0
                self._show(content)

    def _note(self, environment: dict[str, Any]) -> None:
        """Says in the record what it is computed with: the devices of the tasks, not ours."""
        if environment not in self.environments:
            self.environments.append(environment)
            self.recording.manifest.environment = self.environments[0] | (
                {"others": self.environments[1:]} if len(self.environments) > 1 else {}
            )
            self.recording.manifest.write(self.folder)

    def _show(self, progress: Progress) -> None:
        if self.failure is None:
            try:
                self.recording.on_progress(progress)
            except Exception as error:
                self.failure = error  # raised once all are saved

    def _end(self, ref: Any) -> None:
        """Takes the outcome of an attempt, or sends its group again."""
        attempt = self.running.pop(ref)
        try:
            outcome = self.ray.get(ref)
        except Exception as error:
            # Whatever Ray raises for a task says that its process or its node is gone.
            outcome = Outcome("lost", _reason(error))
        if outcome.kind == "done":
            return
        if outcome.kind == "preempted" or (outcome.kind == "lost" and self.stopping):
            self.preempted = True
        elif outcome.kind == "lost":
            attempt.n_lost += 1
            if attempt.n_lost < ATTEMPTS:
                _warn(
                    f"{attempt.name}: {outcome.message} (loss {attempt.n_lost} of {ATTEMPTS} at "
                    f"most): going on from its newest checkpoint."
                )
                self._send(attempt)
                return
            self.failed[attempt.name] = outcome
        else:
            self.failed[attempt.name] = outcome

    def _stop(self) -> None:
        """Tells all to save and stop; those that wait for devices never begin."""
        if self.stopping:
            return
        self.stopping = True
        self.ray.get(self.board.stop.remote())
        for ref, attempt in self.running.items():
            if not attempt.begun:
                self.ray.cancel(ref)

    def _cancel_silent(self) -> None:
        """Ends attempts that make no more progress; their groups are sent again."""
        patience_s = self.recording.upkeep.watchdog_s * CHUNKS_PER_WATCH
        for ref, attempt in self.running.items():
            if attempt.begun and time.monotonic() - attempt.heard_at > patience_s:
                _warn(f"{attempt.name}: no chunk of steps for {patience_s:.0f} s: ended.")
                attempt.heard_at = time.monotonic()
                self.ray.cancel(ref, force=True)


def train_on_cluster(
    cluster: Cluster, recording: Recording, groups: Sequence[PreparedGroup]
) -> None:
    """Trains `groups`, none of which is done, as tasks of `cluster`.

    What a task loses with its process or node is trained again from its checkpoints. The manifest
    has all groups at the end.

    Raises:
      InputError: as `Driver.train` says.
      Preempted: the notice came, and all are saved; or the cluster lost what tasks report to.
    """
    if not groups:
        return
    try:
        Driver(cluster, recording).train(groups)
    except cluster.ray.exceptions.RayActorError as error:
        raise Preempted(
            "Ray lost the process that tasks report to; what they saved is kept"
        ) from error
    finally:
        with contextlib.suppress(InputError):
            recording.manifest.groups = Manifest.read(recording.folder).groups


def _reason(error: Exception) -> str:
    """Ray's errors in a few words; they are pages long."""
    names = {
        "WorkerCrashedError": "its process died",
        "OutOfMemoryError": "its process was ended, since its node ran out of memory",
        "NodeDiedError": "its node is gone",
        "TaskCancelledError": "it was ended",
        "LocalRayletDiedError": "its node is gone",
    }
    known = [names[each.__name__] for each in type(error).__mro__ if each.__name__ in names]
    text = str(error).strip().splitlines()
    return known[0] if known else f"{type(error).__name__}: {text[0] if text else ''}"


def _gave_up(failed: dict[str, Outcome]) -> Exception:
    """What to raise for groups that failed, when the others are done."""
    told = []
    for name, outcome in failed.items():
        if outcome.kind == "lost":
            told.append(
                f"{name} was lost {ATTEMPTS} times without one more chunk of steps "
                f"({outcome.message}): more memory, fewer --devices, or a smaller lane_width may "
                "help; the same command tries again"
            )
        else:
            told.append(f"{name}: {outcome.message}")
    if any(outcome.kind == "failed" for outcome in failed.values()):
        return RuntimeError("\n".join(told))
    return InputError("; ".join(told))


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
