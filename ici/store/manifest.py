"""What of a record is committed: files written last and replaced atomically, so that they never
promise too much.

``manifest.json`` describes the experiment; ``records/GROUP.json`` counts the rows of one group, so
that groups can be written by different processes, and a commit costs the same in any sweep.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ici.errors import InputError
from ici.store.places import Place, write_whole

SCHEMA = 3
MANIFEST = "manifest.json"
RECORDS = "records"
# Of a record whose runs have all ended; "diverged" where not one of them came through.
COMPLETE = ("done", "diverged")


@dataclass
class GroupEntry:
    """What of one group's record is committed: rows per node, and whether that is all of it.

    Attributes:
      norm: of the group.
      depth: of the group.
      rows: committed rows per node, also those that no run lived to fill.
      written: rows of every array ("node/name") that have their chunks, without a gap from the
        first on; none of arrays that an earlier version has begun, which left out empty chunks.
      done: whether every run of the group has ended.
      run_step_s: what one step of one run took, its share of the fleet's time, measurements
        included and compilation not; None before two chunks of steps are done.
      saved_step: the newest step whose checkpoint is known to be on disk; None before the first.
      state_digest: SHA-256 over the final state of all runs; None before the end.
      onsets: of the first spikes and divergences: lane, step, which of the two, and the step of the
        checkpoint that is kept for it, None where that is step 0.
      diagnoses: of the first runs that diverged, why: fields of `Diagnosis`.
    """

    norm: str
    depth: int
    rows: dict[str, int]
    done: bool = False
    run_step_s: float | None = None
    saved_step: int | None = None
    state_digest: str | None = None
    onsets: list[Any] = field(default_factory=list)
    diagnoses: list[dict[str, Any]] = field(default_factory=list)
    written: dict[str, int] = field(default_factory=dict)

    def write(self, folder: Place, name: str) -> None:
        """Replaces the entry of group `name` in the record at `folder` in one step."""
        write_whole(_entry_path(folder, name), json.dumps(asdict(self), indent=1))


@dataclass
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
      experiment: `Experiment.describe` of what is recorded.
      fingerprint: `Experiment.fingerprint`.
      data_digest: digest of the data set's arrays.
      task: classification, language_model or regression.
      environment: versions, hardware and source revision of the writer.
      status: running, done, diverged (no run came through), preempted or failed.
      error: what made it fail; None where nothing did.
      command: words behind ``ici run`` that made it; None where Python did.
      replay: of a replay, what it is of: the run, its steps, how far its losses are off.
      groups: by folder name, in the order of training.
    """

    experiment: dict[str, Any]
    fingerprint: str
    data_digest: str
    environment: dict[str, Any]
    task: str = "classification"
    status: str = "running"
    error: str | None = None
    command: list[str] | None = None
    replay: dict[str, Any] | None = None
    groups: dict[str, GroupEntry] = field(default_factory=dict)
    schema: int = SCHEMA

    def write(self, folder: Place) -> None:
        """Replaces the folder's manifest in one step. Entries of groups are written apart."""
        content = {key: value for key, value in vars(self).items() if key != "groups"}
        write_whole(folder / MANIFEST, json.dumps(content, indent=1))

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
            entries = content.pop("groups") if schema < 3 else _entries(folder)
            groups = {name: GroupEntry(**entry) for name, entry in entries.items()}
            manifest = cls(**_of_this_schema(content), groups=groups)
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from None
        manifest.groups = dict(sorted(groups.items(), key=lambda item: manifest._place(item[1])))
        return manifest

    def _place(self, entry: GroupEntry) -> tuple[int, ...]:
        """Of a group in the order of training."""
        order = [self.experiment.get("depth", []), self.experiment.get("norm", [])]
        found = zip(order, (entry.depth, entry.norm), strict=True)
        return tuple(known.index(v) if v in known else len(known) for known, v in found)


def _entry_path(folder: Place, name: str) -> Place:
    # Beside the group's folder, not in it: Zarr takes that for its own.
    return folder / RECORDS / f"{name}.json"


def entry_paths(folder: Place) -> list[Any]:
    """Entries of the groups in the record at `folder`, by name."""
    records = folder / RECORDS
    if not records.exists():
        return []
    return sorted((p for p in records.iterdir() if p.name.endswith(".json")), key=lambda p: p.name)


def _entries(folder: Place) -> dict[str, dict[str, Any]]:
    entries = {}
    for path in entry_paths(folder):
        try:
            entries[path.name.removesuffix(".json")] = json.loads(path.read_text())
        except FileNotFoundError:  # replaced by another process just now
            continue
        except ValueError as error:
            raise _damaged(path, error) from None
    return entries


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
