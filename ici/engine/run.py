"""`run`: from an experiment to its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ici.config import Experiment, differences
from ici.data import Dataset
from ici.engine.checkpoint import FOLDER, KEEP, Checkpoint, Checkpoints
from ici.engine.group import prepare
from ici.engine.loop import GroupLoop
from ici.engine.memory import is_out_of_memory, out_of_memory
from ici.engine.mesh import claim_cpu_devices, make_mesh
from ici.engine.progress import Progress
from ici.engine.signals import GRACE_S, noticed
from ici.environment import environment
from ici.errors import InputError, Preempted
from ici.sinks import Sink
from ici.sinks.background import following
from ici.store.lock import LOCK, sole_writer
from ici.store.manifest import COMPLETE, MANIFEST, GroupEntry, Manifest
from ici.store.places import (
    PROBE,
    Place,
    check_writable,
    checkpoint_folder,
    has_checkpoints,
    place,
    remove,
)
from ici.store.results import Results, open_results
from ici.store.writer import GroupWriter, check_space


def run(
    experiment: Experiment,
    out: str | Place,
    *,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    sinks: Sequence[Sink] = (),
    checkpoint_every_s: float | None = None,
    keep_checkpoints: int = KEEP,
    grace_s: float = GRACE_S,
    command: Sequence[str] | None = None,
) -> Results:
    """Trains every run of `experiment` and records it in the folder `out`.

    A folder that holds this experiment is gone on with: what is complete is opened and nothing is
    trained, and an unfinished group continues bit for bit from its newest checkpoint.

    Args:
      experiment: what to run.
      out: folder of the record, made if need be, or a URL such as ``s3://bucket/runs/movies``.
      resume: insist that there is a record to go on with.
      restart: train this experiment again from step 0.
      overwrite: replace whatever record the folder holds, another experiment's too.
      on_progress: called after every chunk of steps.
      sinks: dashboards to feed, such as `TensorBoardSink()`; they change nothing else, slow or
        failing ones included.
      checkpoint_every_s: seconds between two checkpoints of a group; 0 saves after every chunk of
        steps, None every minute or more rarely, to cost 2 % of the time at most.
      keep_checkpoints: how many of the newest to keep, for every group.
      grace_s: how long after SIGTERM or Ctrl-C the process may go on, to save.
      command: words of the command line, kept for `ici replay`.

    Raises:
      InputError: anything that cannot be, told before the first step and before anything is
        written: see `Experiment`; a folder with another experiment; too few devices; too little
        disk; data that is missing, damaged or too small; checkpoints that are all damaged. Also
        when memory runs out, with what would save some.
      Preempted: SIGTERM or Ctrl-C came; all is saved, and the same call goes on.
    """
    least = {"checkpoint_every_s": 0, "keep_checkpoints": 1, "grace_s": 0}
    asked = (checkpoint_every_s, keep_checkpoints, grace_s)
    for (name, smallest), value in zip(least.items(), asked, strict=True):
        if value is not None and not value >= smallest:
            raise InputError(f"{name} is {value}: wanted {smallest} or more.")
    folder = place(out)
    old = _existing(folder, experiment, resume, restart, overwrite)
    if old is not None and old.status in COMPLETE:
        return open_results(folder)
    held: list[Manifest] = []

    def told_to_stop() -> None:
        for manifest in held:
            _end(manifest, folder, "preempted")

    with noticed(grace_s, told_to_stop) as notice:
        claim_cpu_devices()
        mesh = make_mesh(experiment.devices, experiment.data_parallel)
        dataset = experiment.data.load()  # pyright: ignore[reportAttributeAccessIssue]
        if old is not None and old.data_digest != dataset.digest:
            raise InputError(
                f"{folder} was recorded on other data (digest {old.data_digest[:12]}, now "
                f"{dataset.digest[:12]}): --overwrite starts again, or choose another --out."
            )
        groups = [prepare(experiment, group, dataset) for group in experiment.groups]
        check_space(folder, sum(group.layout.n_bytes() for group in groups))
        with sole_writer(folder), following(sinks, experiment, folder) as observers:
            if old is None:
                _clear(folder)
                words = None if command is None else list(command)
                manifest = begun_manifest(experiment, dataset, command=words)
            else:
                # Whoever wrote it until now may have gone on since it was looked at.
                manifest = Manifest.read(folder)
            held.append(manifest)
            _end(manifest, folder, "running")
            for name, entry in manifest.groups.items():
                entry.write(folder, name)  # records of older schemas have them elsewhere
            try:
                for observer in observers:
                    observer.begin()
                for prepared in groups:
                    group = prepared.group
                    known = manifest.groups.get(group.name)
                    if known is not None and known.done:
                        continue
                    if notice.requested:
                        raise Preempted("told to stop between two groups")
                    with _checkpoints(
                        folder, group.name, checkpoint_every_s, keep_checkpoints
                    ) as checkpoints:
                        entry = manifest.groups.get(group.name)
                        entry = entry or GroupEntry(group.norm, group.depth, {})
                        checkpoint = _cut_to(entry, checkpoints)
                        writer = GroupWriter(folder, manifest, group.name, entry, prepared.layout)
                        loop = GroupLoop(
                            experiment,
                            prepared,
                            dataset,
                            mesh,
                            writer,
                            observers,
                            checkpoints,
                            notice,
                        )
                        if checkpoint is not None:
                            loop.restore(checkpoint)
                        loop.run(on_progress or (lambda progress: None))
            except Preempted:
                _end(manifest, folder, "preempted")
                raise
            except BaseException as error:
                _end(manifest, folder, "failed", f"{type(error).__name__}: {error}")
                if is_out_of_memory(error):
                    raise out_of_memory(experiment, error) from error
                raise
            diverged = _all_diverged(folder, manifest)
            _end(manifest, folder, "diverged" if diverged else "done")
    return open_results(folder)


def begun_manifest(experiment: Experiment, dataset: Dataset, **more: Any) -> Manifest:
    """What a new record says of itself."""
    return Manifest(
        experiment=experiment.describe(),
        fingerprint=experiment.fingerprint,
        data_digest=dataset.digest,
        task=dataset.task,
        environment=environment(),
        **more,
    )


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
def _checkpoints(
    folder: Place, group: str, every_s: float | None, keep: int
) -> Iterator[Checkpoints | None]:
    """Those of a group; None in a place that Orbax cannot write to."""
    if not has_checkpoints(folder):
        yield None
        return
    checkpoints = Checkpoints(checkpoint_folder(folder) / FOLDER / group, every_s, keep)
    try:
        yield checkpoints
    except BaseException:
        # What went wrong first is what matters.
        with contextlib.suppress(Exception):
            checkpoints.close()
        raise
    checkpoints.close()


def _end(manifest: Manifest, folder: Place, status: str, error: str | None = None) -> None:
    manifest.status, manifest.error = status, error
    manifest.write(folder)


def _all_diverged(folder: Place, manifest: Manifest) -> bool:
    """Whether not one run came through."""
    return bool(np.isfinite(Results(folder, manifest).runs["diverged_at"].values).all())


def _existing(
    folder: Place, experiment: Experiment, resume: bool, restart: bool, overwrite: bool
) -> Manifest | None:
    """The record in `folder`, where there is one and `experiment` goes on with it."""
    check_writable(folder)
    if not folder.exists() or not any(path.name not in (LOCK, PROBE) for path in folder.iterdir()):
        if resume:
            raise InputError(f"{folder} holds no record to go on with: leave --resume out.")
        return None
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"{folder} holds files that are not a record of ici: wanted an empty or a new folder; "
            "choose another --out."
        )
    if overwrite:
        return None
    old = Manifest.read(folder)
    if old.fingerprint != experiment.fingerprint:
        new = experiment.describe()
        changed = "; ".join(differences(old.experiment, new)) or "the ici version's settings"
        raise InputError(
            f"{folder} holds another experiment ({changed}): choose another --out, --fork for a "
            "new folder beside it, or --overwrite to replace it."
        )
    if restart:
        return None
    return old


def _clear(folder: Place) -> None:
    """Removes an old record, and nothing that is not part of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (MANIFEST, "report.html", "comparison.csv"):
        (folder / file).unlink(missing_ok=True)
    for part in ("records", FOLDER, "figures", "tables", "tensorboard", "replays"):
        remove(folder / part)
