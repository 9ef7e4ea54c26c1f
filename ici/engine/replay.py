"""Replay: steps of a recorded run, trained again from a checkpoint and measured one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ici.config import Experiment
from ici.data import Dataset
from ici.dissect.measurements import names as measurement_names
from ici.engine import hosts
from ici.engine.checkpoint import FOLDER, Checkpoint, Checkpoints
from ici.engine.group import chunk_steps, prepare, streamed_step_bytes
from ici.engine.leaves import named_leaves, split_host, with_host
from ici.engine.loop import GroupLoop
from ici.engine.mesh import claim_cpu_devices, make_mesh
from ici.engine.opening import begun_manifest
from ici.engine.progress import Progress
from ici.environment import environment
from ici.errors import InputError
from ici.store.lock import sole_writer
from ici.store.manifest import GroupEntry
from ici.store.places import Place, checkpoint_folder, has_checkpoints, place, remove
from ici.store.replays import replay_folder
from ici.store.results import Results, open_results
from ici.store.writer import GroupWriter, Layout

# What a probe can tell of any model's layers.
DENSE_STATS = ("moments", "extremes")
_ORDER = ".hyper.order"


@dataclass(frozen=True)
class Replay:
    """What a replay gave.

    Attributes:
      results: its record: every step from `first` to `last`, of the one run.
      first, last: steps that were trained again: ``first … last − 1``.
      restored_step: where it began: a checkpoint, or 0.
      deviation: largest ``|loss − recorded loss|``, nats; 0 says that it is the same trajectory.
      n_deviating: steps whose loss is not the recorded one bit for bit.
      n_deviating_gradients: steps whose gradient's norm is not; 0 says that it is the same
        trajectory, and that losses which are off were only summed in another order.
      elsewhere: what the record was computed with, where that is not what this process has.
    """

    results: Results
    first: int
    last: int
    restored_step: int
    deviation: float
    n_deviating: int
    n_deviating_gradients: int = 0
    elsewhere: str = ""

    def describe(self) -> str:
        """One sentence: whether it is the recorded trajectory."""
        n = self.last - self.first
        where = f"steps {self.first} to {self.last} from step {self.restored_step}"
        if not self.n_deviating and not self.n_deviating_gradients:
            return f"{where}: all {n} losses are the recorded ones, bit for bit."
        off = f"{self.n_deviating} of {n} losses are off by up to {self.deviation:.3g}"
        if not self.n_deviating_gradients:
            return (
                f"{where}: the recorded trajectory, all {n} gradient norms bit for bit; {off}: the "
                "program that measures every step sums them in another order."
            )
        why = self.elsewhere or "the compiler made something else of this run alone"
        return (
            f"{where}: not bit for bit the recorded trajectory: {off}, and "
            f"{self.n_deviating_gradients} gradient norms: {why}."
        )


def replay(
    experiment: Experiment,
    out: str | Place,
    *,
    from_step: int,
    to_step: int,
    measure: Sequence[str] | str = (),
    stats: Sequence[Any] = DENSE_STATS,
    on_progress: Callable[[Progress], None] | None = None,
    **run: Any,
) -> Replay:
    """Trains steps of one recorded run again, from the nearest checkpoint, and measures each.

    The trajectory is the recorded one: the losses are compared. Between updates the state is
    measured in programs of their own, which change nothing of it. What is measured becomes a
    record of its own in ``OUT/replays``, which `ici.open` opens.

    Args:
      experiment: what `out` is a record of.
      out: the record.
      from_step, to_step: the updates ``from_step … to_step − 1`` are measured, and the state after.
      measure: heavy measurements, or "all".
      stats: of the probe, at every step, besides the experiment's own.
      on_progress: called after every step.
      **run: which run: ``norm``, ``lr``, ``seed``, … as far as several were swept.

    Raises:
      InputError: another experiment's record, no such run, steps that it does not have, or
        checkpoints that are all damaged.
    """
    if hosts.n_processes() > 1:
        raise InputError("a replay runs in one process: wanted no others beside it.")
    results = open_results(place(out))
    if results.manifest.fingerprint != experiment.fingerprint:
        raise InputError(
            f"{results.path} is the record of another experiment: wanted the one that it was run "
            "with."
        )
    chosen = _chosen(experiment, run)
    last = _last_step(results, chosen, from_step, to_step)
    folder = replay_folder(results.path, chosen, from_step, last)
    alone = replace(
        experiment,
        **{name: (value,) for name, value in chosen.items()},
        devices=experiment.data_parallel,
        stop_at_target=False,
    )
    names = measurement_names() if measure == "all" else tuple(measure)
    own = experiment.probe.stats
    dense = replace(
        alone,
        name=f"{experiment.name} replay",
        probe=replace(experiment.probe, every=1, stats=(*own, *(s for s in stats if s not in own))),
        reference_every=1,
        eval_every=1,
        measure=tuple(f"{name}@1" for name in names),
    )
    claim_cpu_devices()
    mesh = make_mesh(experiment.data_parallel, experiment.data_parallel)
    dataset = experiment.data.load()  # pyright: ignore[reportAttributeAccessIssue]
    if dataset.digest != results.manifest.data_digest:
        raise InputError(f"{results.path} was recorded on other data: wanted the same.")
    group = dense.groups[0]
    prepared = prepare(dense, group, dataset)
    prepared = replace(prepared, layout=_cut(prepared.layout, from_step, last))
    start = _restored(results, experiment, chosen, from_step)
    with sole_writer(folder):
        remove(folder / "records")
        about: dict[str, Any] = {"run": chosen, "from_step": from_step, "to_step": last}
        # Until it is done, it has failed: a replay is made anew, never gone on with.
        manifest = begun_manifest(dense, dataset, replay=about, status="failed")
        manifest.write(folder)
        state = _led_to(alone, dataset, mesh, start, from_step, experiment)
        entry = GroupEntry(group.norm, group.depth, {})
        writer = GroupWriter(folder, manifest, group.name, entry, prepared.layout)
        loop = GroupLoop(dense, prepared, dataset, mesh, writer, end_step=last)
        loop.restore(state)
        loop.run(on_progress or (lambda progress: None))
        made = open_results(folder)
        deviation, n_deviating = _deviation(results, made, chosen)
        n_gradients = _deviation(results, made, chosen, "grad_norm")[1]
        about |= {"deviation": deviation, "n_deviating": n_deviating}
        about["n_deviating_gradients"] = n_gradients
        manifest.status = "done"
        manifest.write(folder)
    step = 0 if start is None else start.step
    elsewhere = _elsewhere(results.manifest.environment)
    made = open_results(folder)
    return Replay(made, from_step, last, step, deviation, n_deviating, n_gradients, elsewhere)


def _elsewhere(recorded: dict[str, Any]) -> str:
    """What a record was computed with, as far as that may give other bits; empty if nothing."""
    here = environment()
    names = ("versions", "cpu", "backend", "device_kind", "devices")
    other = [f"{n} {recorded[n]}" for n in names if n in recorded and recorded[n] != here[n]]
    return f"recorded with {', '.join(other)}" if other else ""


def _chosen(experiment: Experiment, run: dict[str, Any]) -> dict[str, Any]:
    """The run's label along every swept dimension."""
    known: dict[str, tuple[Any, ...]] = {"norm": experiment.norm, "depth": experiment.depth}
    known |= experiment.lane_axes
    for name in run:
        if name not in known:
            raise InputError(f"runs have no {name}: wanted some of {', '.join(known)}.")
    chosen = {}
    for name, values in known.items():
        if name not in run and len(values) > 1:
            raise InputError(f"{name} is not given: wanted one of {', '.join(map(str, values))}.")
        value = run[name] if name in run else next(iter(values))
        if value not in values:
            raise InputError(
                f"no run has {name} {value}: wanted one of {', '.join(map(str, values))}."
            )
        chosen[name] = values[values.index(value)]
    return chosen


def _selected(results: Results, chosen: dict[str, Any], name: str = "loss") -> np.ndarray:
    """Recorded losses of the run, by step; or norms of its gradients."""
    loss = results.train[name]
    labels = {name: value for name, value in chosen.items() if name in loss.dims}
    return loss.sel(labels).squeeze(drop=True).values


def _last_step(results: Results, chosen: dict[str, Any], first: int, last: int) -> int:
    """`last`, or behind the update that was refused where the run diverged before."""
    recorded = _selected(results, chosen)
    if not 0 <= first < last <= len(recorded):
        raise InputError(
            f"steps {first} to {last}: wanted 0 <= from < to <= {len(recorded)}, the recorded ones."
        )
    runs = results.runs["diverged_at"]
    labels = {name: value for name, value in chosen.items() if name in runs.dims}
    ended = float(runs.sel(labels).squeeze(drop=True))
    # The loss that was refused may be no number; a run that met its target has losses up to there.
    known = np.flatnonzero(np.isfinite(recorded))
    end = int(known[-1]) + 1 if known.size else 0
    if np.isfinite(ended):
        end = int(ended) + 1
    if first >= end:
        raise InputError(
            f"steps {first} to {last}: the run ended at step {end}: wanted steps before it."
        )
    return min(last, end)


def _cut(layout: Layout, first: int, last: int) -> Layout:
    """The layout of the steps that are replayed."""
    nodes = {}
    for name, node in layout.nodes.items():
        between = name in ("reference", "evaluation")
        steps = np.arange(first, last + between)
        nodes[name] = node if name == "runs" else replace(node, steps=steps)
    return replace(layout, nodes=nodes)


def _restored(
    results: Results, experiment: Experiment, chosen: dict[str, Any], before: int
) -> Checkpoint | None:
    """The run's newest checkpoint up to a step; None where it must begin at step 0."""
    if not has_checkpoints(results.path):
        return None
    (group,) = [
        g for g in experiment.groups if (g.norm, g.depth) == (chosen["norm"], chosen["depth"])
    ]
    folder = checkpoint_folder(results.path) / FOLDER / group.name
    if not folder.exists():
        return None
    axes = experiment.lane_axes
    wanted = {name: chosen[name] for name in axes}
    lane = [{n: getattr(lane, n) for n in axes} for lane in experiment.lanes].index(wanted)
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        while before > 0:
            try:
                found = checkpoints.restore(before)
            except InputError:
                return None  # none is valid: the first step always is
            if found is None:
                return None
            state, host = split_host(found.leaves)
            slots = np.flatnonzero(host["lanes"].reshape(-1) == lane)
            if slots.size:
                return _alone(found.step, {k: v[slots[:1]] for k, v in state.items()})
            # Frozen lanes of an accelerator lose their place: older checkpoints have it.
            before = found.step - 1
        return None
    finally:
        checkpoints.close()


def _alone(step: int, state: dict[str, np.ndarray]) -> Checkpoint:
    """A checkpoint of a fleet of one."""
    host = {
        "lanes": np.zeros((1, 1), np.int64),
        "n_active": np.ones(1, np.int64),
        "diverged_at": np.full(1, np.nan, np.float32),
        "stopped_at": np.full(1, np.inf),
    }
    # The one seed that is left is the first.
    state = state | {_ORDER: np.zeros_like(state[_ORDER])}
    return Checkpoint(step, with_host(state, host), {"at_end": False})


def _led_to(
    alone: Experiment,
    dataset: Dataset,
    mesh: Mesh,
    start: Checkpoint | None,
    step: int,
    experiment: Experiment,
) -> Checkpoint:
    """The run's state after `step` updates, trained on from `start` as it was recorded."""
    group = alone.groups[0]
    prepared = prepare(alone, group, dataset)
    loop = GroupLoop(alone, prepared, dataset, mesh, _NOWHERE)
    if start is not None:
        loop.restore(start)
    chunk = chunk_steps(experiment, streamed_step_bytes(experiment, dataset))
    with loop.feed as feed:
        for at in range(loop.first_step, step, chunk):
            indices, examples = feed.chunk(at, min(chunk, step - at))
            data = None if examples is None else loop.fleet.place(examples, batch_axis=1)
            loop.fleet.train(at, indices, data)
        leaves = {name: np.asarray(leaf) for name, leaf in named_leaves(loop.fleet.lanes).items()}
    return _alone(step, leaves)


# The way to the first step is not recorded.
_NOWHERE: Any = None


def _deviation(
    results: Results, made: Results, chosen: dict[str, Any], name: str = "loss"
) -> tuple[float, int]:
    """How far the losses are off the recorded ones: at most, and at how many steps."""
    steps = made.train["step"].values
    recorded, again = _selected(results, chosen, name)[steps], _selected(made, chosen, name)
    same = (recorded == again) | (np.isnan(recorded) & np.isnan(again))
    with np.errstate(invalid="ignore"):
        off = np.abs(recorded - again)[~same]
    return (float(np.nanmax(off)) if np.isfinite(off).any() else 0.0), int((~same).sum())
