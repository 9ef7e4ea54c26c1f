"""Why a run diverged: its refused step, run once more and searched for what was not finite first.

The state of a run that diverged stays what it was before the refused update, and its batch is a
function of seed and step. So the step can be repeated by a program of its own, for one run on one
device, that is compiled when the first run of a group has diverged: its way forward, and where the
loss is finite its way back. The program that trains knows nothing of it.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ici.adapt import Variables
from ici.config import Experiment
from ici.data import Dataset
from ici.data.loader import Loader
from ici.engine import hosts
from ici.engine.convolutions import in_canonical_order
from ici.engine.examples import Arrays
from ici.engine.fleet import Fleet
from ici.engine.gradients import gradients
from ici.engine.lane import LaneProgram
from ici.engine.task import counted
from ici.probe import Probe, Site, Taps
from ici.store.diagnoses import Diagnosis
from ici.store.manifest import GroupEntry

PyTree = Any
# Runs of a group that are asked, and the time that all but the first of them may take together.
MAX_LANES = 64
MAX_S = 5.0


# Half of the time to compile a way back; how fast it then runs once does not matter.
_IN_HASTE = {"cpu": {"xla_backend_optimization_level": 0}}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Nonfinite:
    """Whether any value is not finite: one bit, since most of the cost is to compile it."""

    any: Array

    @classmethod
    def of(cls, x: Array, mask: Array | None = None) -> _Nonfinite:
        del mask  # what is not counted may spread all the same
        return cls(jnp.any(~jnp.isfinite(jax.lax.stop_gradient(x))))

    def merge(self, other: _Nonfinite) -> _Nonfinite:
        return _Nonfinite(self.any | other.any)

    def labelled(self) -> dict[str, Array]:
        return {"nonfinite": self.any}


@dataclass(frozen=True)
class _Nonfinites:
    name: str
    where: str
    of = staticmethod(_Nonfinite.of)


_PROBE = Probe(stats=(_Nonfinites("nonfinite", "input"), _Nonfinites("nonfinite_out", "output")))


class Inquest:
    """Asks of the runs of one group why they diverged, as they do.

    The first `MAX_LANES` are asked, or as many as `MAX_S` seconds allow; with several processes,
    none. What goes wrong is a warning, and ends the asking.

    Args:
      experiment: whose runs they are.
      program: what a run does.
      dataset: what they train on.
      entry: of the group, which keeps what was found.
    """

    def __init__(
        self, experiment: Experiment, program: LaneProgram, dataset: Dataset, entry: GroupEntry
    ):
        self.experiment = experiment
        self.program = program
        self.dataset = dataset
        self.entry = entry
        self.is_over = hosts.n_processes() > 1
        self.spent_s = 0.0
        self._programs: dict[bool, Any] = {}

    def forget(self, step: int) -> None:
        """Drops what was found behind a step that is trained again."""
        self.entry.diagnoses = [each for each in self.entry.diagnoses if each["step"] < step]

    def see(
        self,
        first_step: int,
        records: dict[str, np.ndarray],
        diverged_at: np.ndarray,
        fleet: Fleet,
    ) -> None:
        """Takes the records ``[n_lanes, K]`` of a chunk, and where lanes have diverged by now;
        the fleet still holds those that did so in this chunk."""
        last_step = first_step + records["loss"].shape[1]
        ended = (diverged_at >= first_step) & (diverged_at < last_step)
        for lane in np.flatnonzero(ended):
            if self.is_over or len(self.entry.diagnoses) >= MAX_LANES:
                return
            step = int(diverged_at[lane])
            loss, grad_norm = (records[n][lane, step - first_step] for n in ("loss", "grad_norm"))
            try:
                found = self._diagnosis(int(lane), step, float(loss), float(grad_norm), fleet)
            except Exception as error:
                self.is_over = True
                warnings.warn(
                    f"why runs of norm {self.entry.norm} and depth {self.entry.depth} diverged is "
                    f"not recorded ({type(error).__name__}: {error}); `ici replay` shows their "
                    "last steps.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
            self.entry.diagnoses.append(asdict(found))

    def _diagnosis(
        self, lane: int, step: int, loss: float, grad_norm: float, fleet: Fleet
    ) -> Diagnosis:
        if np.isfinite(loss) and np.isfinite(grad_norm):
            return Diagnosis(lane, step, "loss ratio")
        slot = np.flatnonzero(fleet.packing.lanes.reshape(-1) == lane)[:1]
        params, state, first_loss = jax.tree.map(
            lambda leaf: hosts.taken(leaf, slot)[0],
            (fleet.lanes.params, fleet.lanes.state, fleet.lanes.initial_loss),
        )
        cause = "loss not finite"
        if np.isfinite(loss):
            is_high = loss > self.program.divergence_ratio * first_loss
            cause = "loss ratio" if is_high else "gradient not finite"
        # Compiling costs more than all else: no way back where the way forward has the answer.
        backward = bool(np.isfinite(loss))
        began, is_compiled = time.perf_counter(), backward in self._programs
        found = self._searched(lane, step, params, state, fleet, backward)
        if is_compiled:
            self.spent_s += time.perf_counter() - began
            self.is_over = self.spent_s > MAX_S
        return Diagnosis(lane, step, cause, *found)

    def _searched(
        self, lane: int, step: int, params: PyTree, state: PyTree, fleet: Fleet, backward: bool
    ) -> tuple[str | None, str | None, str | None]:
        """`Diagnosis.tensor`, ``at`` and ``before``."""
        seed = self.experiment.lanes[lane].seed
        with Loader(self.dataset.train, self.experiment.batch_size, (seed,), prefetch=0) as loader:
            inputs, labels, ids = (part[0, 0] for part in loader.chunk(step, 1))
        if backward not in self._programs:
            look = functools.partial(self._look, backward)
            look = in_canonical_order(look) if fleet.form == "map" else look
            options = _IN_HASTE.get(fleet.mesh.devices.flat[0].platform)
            self._programs[backward] = jax.jit(look, compiler_options=options)
        data = Arrays(inputs, labels, ids)  # pyright: ignore[reportArgumentType]
        indices = np.arange(len(ids), dtype=np.int32)
        given = (params, state, np.int32(seed), np.int32(step), indices, data)
        given = jax.device_put(given, fleet.mesh.devices.flat[0])
        loss, grad_norm, taps, flags = jax.device_get(self._programs[backward](*given))
        order = [site for site in taps.watched if site.where == "input"]
        before = [
            each for tree in (params, state) for each in _broken(jax.tree.map(_flags, tree), order)
        ]
        # In the order in which a step computes them.
        suspects = [
            (not np.isfinite(inputs).all(), "inputs", "the batch"),
            *((seen.any, "input", site) for site, seen in taps.stat("nonfinite").items()),
            *((seen.any, "output", "the model") for seen in taps.stat("nonfinite_out").values()),
            (not np.isfinite(labels).all(), "targets", "the batch"),
            (not np.isfinite(loss), "loss", "the batch"),
            *((True, "gradient", path) for path in _broken(flags, order[::-1])),
            # The squares of a gradient that is finite may add up to more than there is.
            (not np.isfinite(grad_norm), "norm", "the gradient"),
        ]
        tensor, at = next(((what, at) for guilty, what, at in suspects if guilty), (None, None))
        return tensor, at, next(iter(before), None)

    def _look(
        self,
        backward: bool,
        params: PyTree,
        state: PyTree,
        seed: Array,
        step: Array,
        indices: Array,
        data: Arrays,
    ) -> tuple[Array, Array, Taps | None, PyTree]:
        """Loss, norm of the gradient, and where values and gradient are not finite; of the
        gradient nothing, and nothing is computed of it, unless `backward`."""
        program = self.program
        result = gradients(
            program.model,
            program.loss,
            Variables(params, state),
            program.batch(seed, step, indices, data),
            _PROBE,
            parts=program.accumulation_steps,
            count=counted,
        )
        grads = result.grads if backward else {}
        flags = jax.tree.map(_flags, grads)
        return result.loss, jnp.asarray(optax.tree.norm(grads)), result.taps, flags


def _flags(leaf: Any) -> Any:
    """Whether anything is not finite, by the first axis: layers may be stacked along it."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return np.zeros(leaf.shape[:1], bool)
    library = np if isinstance(leaf, np.ndarray) else jnp
    return library.any(~library.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))


def _broken(flags: PyTree, order: Sequence[Site]) -> Iterator[str]:
    """Paths of the leaves that are not finite: layer by layer as `order` says, the others last.

    Of layers that are stacked, the path has the layer's number in it, as its site's name has.
    """
    leaves = {
        tuple(jax.tree_util.keystr((part,), simple=True) for part in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(flags)
    }
    paths = {site.path for site in order}
    owners = {
        leaf: max((p for p in paths if leaf[: len(p)] == p), key=len, default=None)
        for leaf in leaves
    }
    for site in order:
        for leaf in (leaf for leaf, owner in owners.items() if owner == site.path):
            if site.row is None:
                if leaves[leaf].any():
                    yield "/".join(leaf)
            elif leaves[leaf][site.row :][:1].any():
                yield "/".join((site.name.partition("#")[0], *leaf[len(site.path) :]))
    others = (leaf for leaf, owner in owners.items() if owner is None)
    yield from ("/".join(leaf) for leaf in others if leaves[leaf].any())
