"""One group, from its newest checkpoint or from nothing to the end of its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from ici.config import Experiment
from ici.data import Dataset
from ici.engine import hosts
from ici.engine.checkpoint import FOLDER, KEEP, Checkpoint, Checkpoints
from ici.engine.diagnosis import Inquest
from ici.engine.flight_recorder import FlightRecorder
from ici.engine.flight_windows import WINDOWS
from ici.engine.group import PreparedGroup
from ici.engine.loop import GroupLoop
from ici.engine.opening import as_first_sees
from ici.engine.progress import Progress
from ici.engine.signals import GRACE_S, Notice
from ici.engine.watchdog import WATCHDOG_S
from ici.errors import InputError
from ici.sinks.background import Background
from ici.store.lock import sole_writer_of_group
from ici.store.manifest import GroupEntry, Manifest
from ici.store.places import Place, checkpoint_folder, has_checkpoints
from ici.store.silent import SilentWriter
from ici.store.writer import GroupWriter

# What is left of a cluster whose driver was killed ends in seconds.
ORPHANS_S = 60.0


@dataclass(frozen=True)
class Upkeep:
    """How a run is kept safe; nothing here changes what it computes.

    Attributes:
      checkpoint_every_s: seconds between two checkpoints of a group; None as `Checkpoints` says.
      keep_checkpoints: how many of the newest to keep.
      grace_s: how long after a notice the process may go on, to save.
      flights: how many onsets of spikes and divergences to record at full rate at the end; 0
        notices none.
      watchdog_s: of several processes, how long one may go unheard before the others leave.
    """

    checkpoint_every_s: float | None = None
    keep_checkpoints: int = KEEP
    grace_s: float = GRACE_S
    watchdog_s: float = WATCHDOG_S
    flights: int = WINDOWS

    def __post_init__(self) -> None:
        least = {
            "checkpoint_every_s": 0,
            "keep_checkpoints": 1,
            "grace_s": 0,
            "watchdog_s": 1,
            "flights": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and not value >= smallest:
                raise InputError(f"{name} is {value}: wanted {smallest} or more.")


@dataclass(frozen=True)
class Recording:
    """What the groups of one run share.

    Attributes:
      experiment: what is run.
      folder: of the record, whose lock the caller holds, or the driver of a cluster for its tasks.
      manifest: of the record; it has the entries of the groups.
      upkeep: how the run is kept safe.
      notice: whether it is to stop.
      on_progress: called after every chunk of steps.
      observers: sinks that are fed.
    """

    experiment: Experiment
    folder: Place
    manifest: Manifest
    upkeep: Upkeep
    notice: Notice
    on_progress: Callable[[Progress], None]
    observers: Sequence[Background] = ()


def train_group(
    recording: Recording,
    prepared: PreparedGroup,
    dataset: Dataset,
    mesh: Mesh,
    sent: bool = False,
) -> None:
    """Trains a group that is not done, and records it.

    Of several processes all call this, and the first one writes. `sent` says that this is a task
    of a cluster.

    Raises:
      InputError: its checkpoints are all damaged, or gone.
      Preempted: the notice came; all is saved.
    """
    experiment, folder, manifest = recording.experiment, recording.folder, recording.manifest
    upkeep = recording.upkeep
    group = prepared.group
    with contextlib.ExitStack() as stack:
        taken = False
        if hosts.is_first():
            taken = stack.enter_context(sole_writer_of_group(folder, group.name, sent, ORPHANS_S))
        if hosts.any_of(taken)[0]:
            now = as_first_sees(lambda: Manifest.read(folder))
            assert now is not None
            manifest.groups = now.groups
        entry = manifest.groups.get(group.name)
        entry = entry or GroupEntry(group.norm, group.depth, {})
        if entry.done:
            return
        checkpoints = stack.enter_context(_checkpoints(folder, group.name, upkeep))
        checkpoint = _cut_to(entry, checkpoints)
        writer: Any
        if hosts.is_first():
            writer = GroupWriter(folder, manifest, group.name, entry, prepared.layout)
        else:
            writer = SilentWriter(entry, prepared.layout)
        loop = GroupLoop(
            experiment,
            prepared,
            dataset,
            mesh,
            writer,
            recording.observers,
            checkpoints,
            recording.notice,
        )
        begins_at = 0 if checkpoint is None else checkpoint.step
        if upkeep.flights:
            loop.flight = FlightRecorder(len(experiment.lanes), entry, checkpoints)
            loop.flight.forget(begins_at)
        loop.inquest = Inquest(experiment, prepared.program, dataset, entry)
        loop.inquest.forget(begins_at)
        if checkpoint is not None:
            loop.restore(checkpoint)
        loop.run(recording.on_progress)


def _cut_to(entry: GroupEntry, checkpoints: Checkpoints | None) -> Checkpoint | None:
    """The checkpoint that a group goes on from, and its entry with no rows behind it."""
    checkpoint = None if checkpoints is None else checkpoints.restore()
    if checkpoint is None and checkpoints is not None and entry.saved_step is not None:
        raise InputError(
            f"{checkpoints.folder} holds no checkpoint, and step {entry.saved_step} was saved "
            "there: restore it, or --restart trains from step 0."
        )
    entry.rows = {} if checkpoint is None else dict(checkpoint.about["rows"])
    return checkpoint


@contextlib.contextmanager
def _checkpoints(folder: Place, group: str, upkeep: Upkeep) -> Iterator[Checkpoints | None]:
    """Those of a group; None in a place that Orbax cannot write to."""
    if not has_checkpoints(folder):
        yield None
        return
    checkpoints = Checkpoints(
        checkpoint_folder(folder) / FOLDER / group,
        upkeep.checkpoint_every_s,
        upkeep.keep_checkpoints,
    )
    try:
        yield checkpoints
    except BaseException:
        # What went wrong first is what matters.
        with contextlib.suppress(Exception):
            checkpoints.close()
        if hosts.n_processes() == 1:
            with contextlib.suppress(OSError):
                checkpoints.remove_halves()
        raise
    checkpoints.close()
