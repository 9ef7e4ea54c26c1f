"""Checkpoints of a group: saved behind the training's back, and not believed without a digest.

Orbax writes them: asynchronously, whole or not at all. It stores no checksum, and a flipped bit
would be restored as a number; so every leaf's SHA-256 is stored with it and compared at restore.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ici.errors import InputError

PyTree = Any
FOLDER = "checkpoints"
SCHEMA = 1
KEEP = 2
# Without another wish: at most this often, and at most this share of the time.
AUTO_EVERY_S, AUTO_SHARE = 60.0, 0.02


class DamagedError(InputError):
    """A checkpoint is not what was saved, or not of this model."""


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


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves of a pytree by path; random keys as the numbers they are."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        leaves[jax.tree_util.keystr(path)] = jax.random.key_data(leaf) if is_key else leaf
    return leaves


def with_leaves(tree: PyTree, leaves: dict[str, np.ndarray]) -> PyTree:
    """`tree` with its leaves replaced by those of `leaves`; random keys are made of numbers.

    Raises:
      DamagedError: names, types or shapes (but for the first axis) differ: nothing is cast.
    """
    old = named_leaves(tree)
    if old.keys() != leaves.keys():
        differing = sorted(old.keys() ^ leaves.keys())
        raise DamagedError(
            f"a checkpoint has other leaves than the model: {', '.join(differing[:3])}: go on with "
            "the code that saved it, or --restart trains from step 0."
        )

    def replaced(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        new, wanted = leaves[name], old[name]
        if new.dtype != wanted.dtype or new.shape[1:] != wanted.shape[1:]:
            raise DamagedError(
                f"{name} is {new.dtype}{list(new.shape)}: the model wants "
                f"{wanted.dtype}{list(wanted.shape)}; go on with the code that saved it, or "
                "--restart trains from step 0."
            )
        if wanted is leaf:
            return new
        return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(leaf))

    return jax.tree_util.tree_map_with_path(replaced, tree)


_HOST = "host/"


def with_host(leaves: dict[str, Any], host: dict[str, np.ndarray]) -> dict[str, Any]:
    """Leaves of the devices and arrays of the host as one dictionary."""
    return leaves | {_HOST + name: array for name, array in host.items()}


def split_host(leaves: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `with_host` put together."""
    state = {name: leaf for name, leaf in leaves.items() if not name.startswith(_HOST)}
    host = {name[len(_HOST) :]: leaf for name, leaf in leaves.items() if name.startswith(_HOST)}
    return state, host


def digests(leaves: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of every leaf's bytes, type and shape."""

    def of(item: tuple[str, Any]) -> tuple[str, str]:
        name, leaf = item
        array = np.asarray(leaf)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        return name, digest.hexdigest()

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(of, leaves.items()))


def state_digest(leaves: dict[str, Any]) -> str:
    """One SHA-256 over all leaves."""
    return _hash_of(digests(leaves))


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(read_only=True)
            if read_only
            else ocp.CheckpointManagerOptions(
                preservation_policy=self.policy,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "about"),
        )

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
        return sorted(self._manager.all_steps(read=True))

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
            "digests": digests(leaves),
            "about": about,
        }
        content["digest"] = _hash_of(content)
        numbered = {f"{i:05d}": leaves[name] for i, name in enumerate(names)}
        if step in self._manager.all_steps():  # left by a process that was killed since
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
            try:
                checkpoint = self._restored(step)
            except Exception as error:
                # Orbax, TensorStore and JSON have no common base for what damage raises.
                problems.append(f"step {step}: {_line(error)}")
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
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        content = dict(about["about"])
        if content.pop("digest", None) != _hash_of(content):
            raise DamagedError("its description does not match its digest")
        if content["schema"] != SCHEMA:
            raise DamagedError(f"schema {content['schema']}: wanted {SCHEMA}")
        names = content["names"]
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        wanted = {f"{i:05d}": 0 for i in range(len(names))}
        state = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    item=wanted, restore_args=jax.tree.map(lambda _: as_numpy, wanted)
                )
            ),
        )["state"]
        leaves = {name: state[f"{i:05d}"] for i, name in enumerate(names)}
        for name, digest in digests(leaves).items():
            if digest != content["digests"][name]:
                raise DamagedError(f"digest of {name} does not match")
        return Checkpoint(step, leaves, content["about"])

    def wait(self) -> None:
        """Until what was saved is on disk. Raises what went wrong."""
        self._manager.wait_until_finished()
        self.on_disk = self._underway

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        self._manager.close()


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
