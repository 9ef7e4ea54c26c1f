"""`run`: from an experiment to its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ici.config import Experiment, differences
from ici.engine.group import prepare
from ici.engine.loop import GroupLoop, Progress
from ici.engine.mesh import claim_cpu_devices, make_mesh
from ici.environment import environment
from ici.errors import InputError
from ici.sinks import Sink
from ici.sinks.background import following
from ici.store.lock import LOCK, sole_writer
from ici.store.manifest import MANIFEST, GroupEntry, Manifest
from ici.store.places import PROBE, Place, check_writable, place, remove
from ici.store.results import Results, open_results
from ici.store.writer import GroupWriter, check_space


def run(
    experiment: Experiment,
    out: str | Place,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    sinks: Sequence[Sink] = (),
) -> Results:
    """Trains every run of `experiment` and records it in the folder `out`.

    A folder that already holds this experiment, complete, is opened and nothing is trained.

    Args:
      experiment: what to run.
      out: folder of the record, made if need be, or a URL such as ``s3://bucket/runs/movies``.
      resume: keep the finished groups of an unfinished record and train the others again.
      overwrite: replace whatever record the folder holds.
      on_progress: called after every chunk of steps.
      sinks: dashboards to feed, such as `TensorBoardSink()`; they change nothing else, slow or
        failing ones included.

    Raises:
      InputError: anything that cannot be, told before the first step and before anything is
        written: see `Experiment`; a folder with another or an unfinished experiment; too few
        devices; too little disk; data that is missing, damaged or too small.
    """
    folder = place(out)
    old = _existing(folder, experiment, resume, overwrite)
    if old is not None and old.status == "done" and not overwrite:
        return open_results(folder)
    claim_cpu_devices()
    mesh = make_mesh(experiment.devices, experiment.data_parallel)
    dataset = experiment.data.load()  # pyright: ignore[reportAttributeAccessIssue]
    if old is not None and not overwrite and old.data_digest != dataset.digest:
        raise InputError(
            f"{folder} was recorded on other data (digest {old.data_digest[:12]}, now "
            f"{dataset.digest[:12]}): --overwrite starts again, or choose another --out."
        )
    groups = [prepare(experiment, group, dataset) for group in experiment.groups]
    check_space(folder, sum(group.layout.n_bytes() for group in groups))
    with sole_writer(folder), following(sinks, experiment, folder) as observers:
        manifest = old
        if manifest is None or overwrite:
            _clear(folder)
            manifest = Manifest(
                experiment=experiment.describe(),
                fingerprint=experiment.fingerprint,
                data_digest=dataset.digest,
                task=dataset.task,
                environment=environment(),
            )
            manifest.write(folder)
        recorded = {name for name, entry in manifest.groups.items() if entry.done}
        try:
            manifest.status = "running"
            for observer in observers:
                observer.begin()
            for prepared in groups:
                group = prepared.group
                if group.name in recorded:
                    continue
                entry = GroupEntry(group.norm, group.depth, {})
                writer = GroupWriter(folder, manifest, group.name, entry, prepared.layout)
                loop = GroupLoop(experiment, prepared, dataset, mesh, writer, observers)
                loop.run(on_progress or (lambda progress: None))
        except BaseException:
            manifest.status = "failed"
            manifest.write(folder)
            raise
        manifest.status = "done"
        manifest.write(folder)
    return open_results(folder)


def _existing(
    folder: Place, experiment: Experiment, resume: bool, overwrite: bool
) -> Manifest | None:
    """The record in `folder`, where there is one and `experiment` may go on with it."""
    check_writable(folder)
    if not folder.exists() or not any(path.name not in (LOCK, PROBE) for path in folder.iterdir()):
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
            f"{folder} holds another experiment ({changed}): choose another --out, or --overwrite "
            "to replace it."
        )
    if old.status != "done" and not resume:
        done = sum(entry.done for entry in old.groups.values())
        raise InputError(
            f"{folder} holds an unfinished record of this experiment ({done} of "
            f"{len(experiment.groups)} groups done): --resume goes on, --overwrite starts again."
        )
    return old


def _clear(folder: Place) -> None:
    """Removes an old record, and nothing that is not part of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (MANIFEST, "report.html", "comparison.csv"):
        (folder / file).unlink(missing_ok=True)
    for part in ("records", "figures", "tables", "tensorboard"):
        remove(folder / part)
