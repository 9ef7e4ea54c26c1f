"""Where the replays of a record lie, and the command that makes one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ici.errors import InputError
from ici.store.manifest import MANIFEST, Manifest
from ici.store.places import Place

REPLAYS = "replays"
REPLAY_FIGURE = "figures/replay.png"
# Around an onset: what led to it, and what it came to.
BEFORE_STEPS, AFTER_STEPS = 32, 16


def window_around(step: int, steps: int) -> tuple[int, int]:
    """First and last step of the window around an onset, in a run of `steps`."""
    return max(0, step - BEFORE_STEPS), min(steps, step + AFTER_STEPS)


def replay_folder(folder: Place, run: dict[str, Any], first: int, last: int) -> Place:
    """Where a replay of these steps of a run lies, in the record at `folder`."""
    label = ",".join(f"{name}={value}" for name, value in run.items())
    return folder / REPLAYS / f"{label},steps={first}-{last}".replace("/", "+")


def replay_command(folder: Place, run: dict[str, Any], first: int, last: int) -> str:
    """A line for the shell that replays these steps of a run, from any directory."""
    where = str(folder.absolute() if isinstance(folder, Path) else folder)
    words = ["ici", "replay", where]
    for name, value in run.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--from", str(first), "--to", str(last), "--measure", "all"])


def recorded_replays(folder: Place) -> list[tuple[Place, dict[str, Any]]]:
    """Folders of the replays that are done, and what each is of: see `Manifest.replay`."""
    if not (folder / REPLAYS).exists():
        return []
    found = []
    for path in sorted((folder / REPLAYS).iterdir(), key=lambda path: path.name):
        if not (path / MANIFEST).exists():
            continue
        try:
            manifest = Manifest.read(path)
        except InputError:  # one that is damaged is none
            continue
        if manifest.replay is not None and manifest.status == "done":
            found.append((path, manifest.replay))
    return found


def replay_of(
    replays: list[tuple[Place, dict[str, Any]]], run: dict[str, Any], step: int
) -> Place | None:
    """The replay that has this step of this run, of those that `recorded_replays` found."""
    for path, about in replays:
        of_run = all(about["run"].get(name) == value for name, value in run.items())
        if of_run and about["from_step"] <= step < about["to_step"]:
            return path
    return None
