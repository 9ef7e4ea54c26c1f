"""The manifest of a record: written last and replaced atomically, so it never promises too much."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ici.errors import InputError
from ici.store.places import Place, RemotePath

SCHEMA = 2
MANIFEST = "manifest.json"


@dataclass
class GroupEntry:
    """What of one group's record is committed: rows per node, and whether that is all of it.

    ``run_step_s`` is what one step of one run took, its share of the fleet's time, measurements
    included and compilation not; None before two chunks of steps are done.
    """

    norm: str
    depth: int
    rows: dict[str, int]
    done: bool = False
    run_step_s: float | None = None


@dataclass
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
      experiment: `Experiment.describe` of what is recorded.
      fingerprint: `Experiment.fingerprint`.
      data_digest: digest of the data set's arrays.
      task: classification, language_model or regression.
      environment: versions, hardware and source revision of the writer.
      status: running, done or failed.
      groups: by folder name.
    """

    experiment: dict[str, Any]
    fingerprint: str
    data_digest: str
    environment: dict[str, Any]
    task: str = "classification"
    status: str = "running"
    groups: dict[str, GroupEntry] = field(default_factory=dict)
    schema: int = SCHEMA

    def write(self, folder: Place) -> None:
        """Replaces the folder's manifest in one step."""
        if isinstance(folder, RemotePath):
            (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1))
            return
        temporary = folder / f"{MANIFEST}.{os.getpid()}.tmp"
        try:
            with open(temporary, "w") as file:
                json.dump(asdict(self), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / MANIFEST)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def read(cls, folder: Place) -> Manifest:
        """The manifest of a record, in this schema whichever wrote it; the file stays as it is.

        Raises:
          InputError: no manifest there, not readable as one, or of a newer schema.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise InputError(
                f"{folder} holds no {MANIFEST}: wanted a folder that `ici run --out` wrote."
            ) from None
        except ValueError as error:
            raise _damaged(path, error) from None
        schema = content.get("schema") if isinstance(content, dict) else None
        if not isinstance(schema, int) or schema < 1:
            raise InputError(
                f"{path} has schema {schema}: wanted a number from 1 to {SCHEMA}; restore it, or "
                "`ici run --overwrite` replaces the record."
            )
        if schema > SCHEMA:
            raise InputError(
                f"{path} has schema {schema}: this version of ici reads schema {SCHEMA} and older; "
                "install a newer ici, or `ici run --overwrite` replaces the record."
            )
        try:
            groups = {name: GroupEntry(**entry) for name, entry in content.pop("groups").items()}
            return cls(**_of_this_schema(content), groups=groups)
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from None


def _of_this_schema(content: dict[str, Any]) -> dict[str, Any]:
    """Fields of a manifest of any schema up to this one as those of this one."""
    if content["schema"] == 1:
        # Schema 1 knew classifiers alone, and one length of warm-up for all runs.
        warmup_steps = content["experiment"].get("warmup_steps", 0)
        experiment = content["experiment"] | {"warmup_steps": [warmup_steps]}
        content = content | {"task": "classification", "experiment": experiment}
    return content | {"schema": SCHEMA}


def _damaged(path: Place, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged ({error}): restore it, or `ici run --overwrite` replaces the record."
    )
