"""The folder of a record before training begins: what it holds, and what a new record says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ici.config import Experiment, differences
from ici.data import Dataset
from ici.engine import hosts
from ici.engine.checkpoint import FOLDER
from ici.environment import environment
from ici.errors import InputError
from ici.store.lock import LOCK
from ici.store.manifest import MANIFEST, GroupEntry, Manifest
from ici.store.places import PROBE, Place, check_path, check_writable, remove


def existing(
    folder: Place, experiment: Experiment, resume: bool, restart: bool, overwrite: bool
) -> Manifest | None:
    """The record in `folder`, where there is one and `experiment` goes on with it.

    Raises:
      InputError: another experiment's record, other files, or none though `resume` says so.
    """
    check_writable(folder)
    check_path(folder)
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


def mark(manifest: Manifest, folder: Place, status: str, error: str | None = None) -> None:
    """Says in the record how it stands; of several processes the first one does."""
    manifest.status, manifest.error = status, error
    if hosts.is_first():
        manifest.write(folder)


def as_first_sees(read: Callable[[], Manifest | None]) -> Manifest | None:
    """A manifest as process 0 reads it, on every process. Raises what reading it raises."""
    if hosts.n_processes() == 1:
        return read()

    def as_json() -> dict[str, Any] | None:
        manifest = read()
        return None if manifest is None else asdict(manifest)

    told = hosts.first_says(as_json)
    if told is None:
        return None
    groups = {name: GroupEntry(**entry) for name, entry in told.pop("groups").items()}
    return Manifest(**told, groups=groups)


def load(experiment: Experiment) -> Dataset:
    """The experiment's data. Raises `InputError` where memory does not hold them."""
    try:
        return experiment.data.load()  # pyright: ignore[reportAttributeAccessIssue]
    except MemoryError as error:
        raise InputError(
            f"memory ran out while {type(experiment.data).__name__} loaded its data ({error}): "
            "wanted fewer examples, data that are streamed from files, or a larger machine."
        ) from error


def check_data(folder: Place, dataset: Dataset, old: Manifest | None) -> None:
    """Raises `InputError` where the data are not those of the record, or of process 0."""
    if old is not None and old.data_digest != dataset.digest:
        raise InputError(
            f"{folder} was recorded on other data (digest {old.data_digest[:12]}, now "
            f"{dataset.digest[:12]}): --overwrite starts again, or choose another --out."
        )
    of_first = hosts.first_says(lambda: dataset.digest)
    (differ,) = hosts.any_of(of_first != dataset.digest)
    if differ:
        raise InputError(
            f"process {hosts.process_index()} has data of digest {dataset.digest[:12]} and process "
            f"0 of {of_first[:12]}, or another one differs: wanted the same data on all."
        )


def begin(
    folder: Place,
    old: Manifest | None,
    experiment: Experiment,
    dataset: Dataset,
    command: list[str] | None,
) -> Manifest:
    """Says in the record that it is being written: a new one, or `old`, which is gone on with."""
    if old is None:
        manifest = begun_manifest(experiment, dataset, command=command)
        if hosts.is_first():
            clear(folder)
    else:
        # Whoever wrote it until now may have gone on since it was looked at.
        manifest = as_first_sees(lambda: Manifest.read(folder))
        assert manifest is not None
    mark(manifest, folder, "running")
    if hosts.is_first():
        for name, entry in manifest.groups.items():
            entry.write(folder, name)  # records of older schemas have them elsewhere
    return manifest


def check_shared(folder: Place, within_s: float = 30.0) -> None:
    """Raises `InputError` where a process does not see what process 0 has written to `folder`.

    Network file systems may take a while to show it.
    """
    if hosts.n_processes() == 1:
        return
    hosts.any_of(False)  # it has been written by now
    end_s = time.monotonic() + within_s
    while not (sees := (folder / MANIFEST).exists()) and time.monotonic() < end_s:
        time.sleep(0.5)
    (blind,) = hosts.any_of(not sees)
    if blind:
        raise InputError(
            f"{folder} is not the same folder on all processes: wanted one on a file system that "
            "they share, or gs://; choose another --out."
        )


def clear(folder: Place) -> None:
    """Removes an old record, and nothing that is not part of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (MANIFEST, "report.html", "comparison.csv"):
        (folder / file).unlink(missing_ok=True)
    for part in ("records", FOLDER, "figures", "tables", "tensorboard", "replays"):
        remove(folder / part)
