"""The folder of a record before training begins: what it holds, and what a new record says."""

from __future__ import annotations

from typing import Any

from ici.config import Experiment, differences
from ici.data import Dataset
from ici.engine.checkpoint import FOLDER
from ici.environment import environment
from ici.errors import InputError
from ici.store.lock import LOCK
from ici.store.manifest import MANIFEST, Manifest
from ici.store.places import PROBE, Place, check_writable, remove


def existing(
    folder: Place, experiment: Experiment, resume: bool, restart: bool, overwrite: bool
) -> Manifest | None:
    """The record in `folder`, where there is one and `experiment` goes on with it.

    Raises:
      InputError: another experiment's record, other files, or none though `resume` says so.
    """
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
    """Says in the record how it stands."""
    manifest.status, manifest.error = status, error
    manifest.write(folder)


def clear(folder: Place) -> None:
    """Removes an old record, and nothing that is not part of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (MANIFEST, "report.html", "comparison.csv"):
        (folder / file).unlink(missing_ok=True)
    for part in ("records", FOLDER, "figures", "tables", "tensorboard", "replays"):
        remove(folder / part)
