"""Checkpoints of a group: saved behind the training's back, and not believed without a digest.

Orbax writes them: asynchronously, whole or not at all. It stores no checksum, and a flipped bit
would be restored as a number; so every leaf's SHA-256 is stored with it and compared at restore.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint._src.multihost import multihost

from ici.engine import hosts
from ici.engine.leaves import DamagedError, digests, hash_of, is_intact, of_all
from ici.errors import InputError

FOLDER = "checkpoints"
SCHEMA = 1
KEEP = 2
# Without another wish: at most this often, and at most this share of the time.
AUTO_EVERY_S, AUTO_SHARE = 60.0, 0.02
_NEVER_S = 10**9


@dataclass(frozen=True)
class Checkpoint:
    """A restored state: leaves by name, as host arrays, and what belongs to them.

    Attributes:
      step: updates done.
      leaves: the state.
      about: JSON that was saved with it.
    """

    step: int
    leaves: dict[str, np.ndarray]
    about: dict[str, Any]


class _Kept(checkpoint_managers.PreservationPolicy):
    """The newest few, and those that were marked."""

    def __init__(self, newest: int):
        self.newest = newest
        self.marked: set[int] = set()

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: checkpoint_managers.PreservationContext
    ) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = set(sorted(steps)[-self.newest :])
        return [step in newest or step in self.marked for step in steps]


def _manager(
    folder: Any, policy: _Kept | None, processes: set[int] | None = None
) -> ocp.CheckpointManager:
    """Orbax's, for some of several processes; without a `policy` to read only."""
    how: dict[str, Any] = {"read_only": True, "create": False}
    if policy is not None:
        how = {
            "preservation_policy": policy,
            "enable_async_checkpointing": True,
            "cleanup_tmp_directories": True,
            "create": processes is None,
            # Orbax counts it by the clock on the wall, which may be set forward.
            "async_options": ocp.options.AsyncOptions(timeout_secs=_NEVER_S),
        }
    if processes is not None:
        # Named processes meet at the coordination service, others on the devices.
        how["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
            primary_host=min(processes), active_processes=processes
        )
    elif hosts.n_processes() == 1:
        # By that clock its threads wait for one another too, and no option says how long.
        multihost._DEFAULT_BARRIER_TIMEOUT = _NEVER_S
    options = ocp.CheckpointManagerOptions(**how)
    return ocp.CheckpointManager(folder, options=options, item_names=("state", "about"))


class Checkpoints:
    """Those of one group, in a folder of their own.

    Args:
      folder: what Orbax takes: an absolute path, or one of `epath`.
      every_s: seconds between two of them; 0 saves after every chunk of steps; None saves every
        minute, and more rarely where a minute's save would take more than 2 % of the time.
      keep: how many of the newest to keep.
      read_only: for readers, who may come while another process writes.

    Attributes:
      cost_s: what the last save took of the caller's time.
      on_disk: the newest step of those saved here that is known to be on disk; None before one is.
    """

    def __init__(
        self,
        folder: Any,
        every_s: float | None = None,
        keep: int = KEEP,
        read_only: bool = False,
    ):
        self.folder = folder
        self.every_s = every_s
        self.read_only = read_only
        self.policy = _Kept(keep)
        self.cost_s = 0.0
        self.on_disk: int | None = None
        self._underway: int | None = None
        self._last = time.monotonic()
        # Orbax tells of every save and restore; what went wrong it raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        alone = hosts.n_processes() == 1
        if alone or read_only:
            self._manager = self._reader = _manager(folder, None if read_only else self.policy)
            return
        hosts.first_says(lambda: epath.Path(folder).mkdir(parents=True, exist_ok=True))
        self._manager = _manager(folder, self.policy, set(range(hosts.n_processes())))
        # Each reads for itself: where one fails, none waits for it.
        self._reader = _manager(folder, None, {hosts.process_index()})

    @property
    def due(self) -> bool:
        """Whether the next chance to save should be taken."""
        since = time.monotonic() - self._last
        if self.every_s is not None:
            return since >= self.every_s
        return since >= max(AUTO_EVERY_S, self.cost_s / AUTO_SHARE)

    @property
    def steps(self) -> list[int]:
        """Saved steps, oldest first, valid or not."""
        return hosts.first_says(lambda: sorted(self._reader.all_steps(read=True)))

    def save(self, step: int, leaves: dict[str, Any], about: dict[str, Any]) -> None:
        """Starts saving; `leaves` must not be donated to anything later.

        Raises:
          OSError: this or the save before it failed.
        """
        began = time.monotonic()
        names = list(leaves)
        content = {
            "schema": SCHEMA,
            "step": step,
            "names": names,
            "digests": of_all(digests(leaves)),
            "about": about,
        }
        content["digest"] = hash_of(content)
        numbered = {f"{i:05d}": leaves[name] for i, name in enumerate(names)}
        if hosts.first_says(
            lambda: step in self._manager.all_steps()
        ):  # left by a process that was killed since
            self._manager.delete(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(numbered), about=ocp.args.JsonSave(content)
            ),
            force=True,
        )
        # Orbax has waited for the save before this one.
        self.on_disk, self._underway = self._underway, step
        self._last = time.monotonic()
        self.cost_s = self._last - began

    def mark(self, step: int) -> None:
        """Keeps a step's checkpoint for good."""
        self.policy.marked.add(step)

    def restore(self, before: int | None = None) -> Checkpoint | None:
        """The newest valid checkpoint, of a step up to `before`; None where none was ever saved.

        Raises:
          InputError: there are checkpoints and not one is valid.
        """
        steps = [step for step in self.steps if before is None or step <= before]
        problems: list[str] = []
        for step in reversed(steps):
            checkpoint, problem = None, "damaged to another process"
            try:
                checkpoint = self._restored(step)
            except Exception as error:
                # Orbax, TensorStore and JSON have no common base for what damage raises.
                problem = _line(error)
            (is_damaged,) = hosts.any_of(checkpoint is None)
            if is_damaged:
                problems.append(f"step {step}: {problem}")
                continue
            if problems:
                warnings.warn(
                    f"damaged checkpoint in {self.folder} ({'; '.join(problems)}): going on from "
                    f"the newest valid one, step {step}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                for damaged in () if self.read_only else steps[steps.index(step) + 1 :]:
                    self._manager.delete(damaged)
            return checkpoint
        if problems:
            raise InputError(
                f"every checkpoint in {self.folder} is damaged ({'; '.join(problems)}): restore "
                "one of them, or --restart trains from step 0."
            )
        return None

    def _restored(self, step: int) -> Checkpoint:
        about = self._reader.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        content = dict(about["about"])
        if content.pop("digest", None) != hash_of(content):
            raise DamagedError("its description does not match its digest")
        if content["schema"] != SCHEMA:
            raise DamagedError(f"schema {content['schema']}: wanted {SCHEMA}")
        names = content["names"]
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        wanted = {f"{i:05d}": 0 for i in range(len(names))}
        state = self._reader.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=jax.tree.map(lambda _: as_numpy, wanted)
                )
            ),
        )["state"]
        leaves = {name: state[f"{i:05d}"] for i, name in enumerate(names)}
        with ThreadPoolExecutor(2) as pool:
            intact = pool.map(lambda n: is_intact(leaves[n], content["digests"][n]), names)
        for name, is_whole in zip(names, intact, strict=True):
            if not is_whole:
                raise DamagedError(f"digest of {name} does not match")
        return Checkpoint(step, leaves, content["about"])

    def wait(self) -> None:
        """Until what was saved is on disk. Raises what went wrong."""
        self._manager.wait_until_finished()
        self.on_disk = self._underway

    def remove_halves(self) -> None:
        """Removes what a save that failed has left; after `close`, when no thread is at it."""
        for path in epath.Path(self.folder).iterdir():
            if "orbax-checkpoint-tmp" in path.name:
                path.rmtree()

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        self._manager.close()
        if self._reader is not self._manager:
            self._reader.close()


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
