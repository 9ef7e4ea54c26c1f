"""The loop of one group: dispatch a chunk, then read the one before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ici.config import Experiment
from ici.data import Dataset
from ici.engine import hosts
from ici.engine.checkpoint import Checkpoint, Checkpoints
from ici.engine.diagnosis import Inquest
from ici.engine.feed import Feed
from ici.engine.fleet import Fleet
from ici.engine.flight_recorder import FlightRecorder
from ici.engine.group import (
    PreparedGroup,
    chunk_steps,
    evaluation_data,
    hypers,
    measured_at,
    reference_inputs,
    streamed_step_bytes,
)
from ici.engine.lane import NEVER
from ici.engine.leaves import named_leaves, split_host, state_digest, with_host
from ici.engine.packing import Packing
from ici.engine.progress import Progress
from ici.engine.rows import by_site
from ici.engine.signals import Notice, reason_to_leave
from ici.sinks.background import Background
from ici.sinks.scalars import Rows
from ici.store.writer import GroupWriter


@dataclass(frozen=True)
class _Pending:
    """A dispatched chunk and the measurements before it, not read yet."""

    step: int
    n_steps: int
    packing: Packing
    reference: Any
    evaluation: Any
    measured: dict[str, Any]
    trained: Any
    diverged_at: Any


class GroupLoop:
    """Trains one group and writes its record."""

    def __init__(
        self,
        experiment: Experiment,
        prepared: PreparedGroup,
        dataset: Dataset,
        mesh: Mesh,
        writer: GroupWriter,
        observers: Sequence[Background] = (),
        checkpoints: Checkpoints | None = None,
        notice: Notice | None = None,
        end_step: int | None = None,
    ):
        self.experiment = experiment
        self.end_step = experiment.steps if end_step is None else end_step
        self.prepared = prepared
        self.dataset = dataset
        self.writer = writer
        self.observers = observers
        self.checkpoints = checkpoints
        self.notice = notice or Notice()
        self.first_step = 0
        self.at_end = False
        self.failure: Exception | None = None
        self.flight: FlightRecorder | None = None
        self.inquest: Inquest | None = None
        self.n_lanes = len(experiment.lanes)
        self.diverged_at = np.full(self.n_lanes, np.nan, np.float32)
        self.stopped_at = np.full(self.n_lanes, np.inf)
        self.started = time.perf_counter()
        self.chunk_read_at: float | None = None
        self.run_steps_s: deque[float] = deque(maxlen=999)
        self.feed = Feed(experiment, dataset, mesh)
        self.fleet = Fleet(
            prepared.program,
            mesh,
            hypers(experiment),
            self.feed.resident,
            reference_inputs(experiment, dataset),
            width=experiment.lane_width,
            measurements=tuple(experiment.measurements),
        )
        self.evaluation_data = self.fleet.place(evaluation_data(experiment, dataset), batch_axis=1)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint, in place of the beginning."""
        state, host = split_host(checkpoint.leaves)
        self.fleet.restore(state, Packing(host["lanes"], host["n_active"]))
        self.diverged_at, self.stopped_at = host["diverged_at"], host["stopped_at"]
        self.first_step, self.at_end = checkpoint.step, checkpoint.about["at_end"]

    def run(self, on_progress: Callable[[Progress], None]) -> None:
        """Trains to the last step, or until no lane is running.

        Raises:
          Preempted: a notice came; what is trained so far is saved, as it is before an error of
            `on_progress` or of the data is raised.
        """
        if not self.at_end:
            with self.feed:
                step = self._run(on_progress)
            if self.checkpoints is not None:
                self._save(step, named_leaves(self.fleet.lanes), self.fleet.packing, at_end=True)
                self._settle()
        (failed,) = hosts.any_of(self.failure is not None)
        if failed:
            raise self.failure or reason_to_leave(failed, self.end_step)
        self.writer.entry.state_digest = state_digest(self.fleet.in_lane_order())
        self.writer.finish()

    def _run(self, on_progress: Callable[[Progress], None]) -> int:
        """Returns the step that the lanes are left at."""
        self.started = time.perf_counter()
        chunk = chunk_steps(self.experiment, streamed_step_bytes(self.experiment, self.dataset))
        pending: _Pending | None = None
        for step in range(self.first_step, self.end_step, chunk):
            n_steps = min(chunk, self.end_step - step)
            batches = self._batches(step, n_steps)
            failed, told, due = hosts.any_of(
                self.failure is not None, self.notice.requested, self._is_due(pending)
            )
            if failed or told:
                self._leave(pending, step, on_progress)
                raise self.failure or reason_to_leave(failed, step)
            saving = self._snapshot() if due else None
            dispatched = self._dispatch(step, n_steps, batches)
            if pending is not None:
                self._read(pending, on_progress)
            if saving is not None:
                self._save(step, *saving)
            # What a checkpoint restores has been read before.
            if step > 0:
                running = self._running()
                if not running.any():
                    return dispatched.step + dispatched.n_steps
                self.fleet.repack(running)
            pending = dispatched
        if pending is not None:
            self._read(pending, on_progress)
        if self._running().any():
            self._read(self._dispatch(self.end_step, 0), on_progress)
        return self.end_step

    def _batches(self, step: int, n_steps: int) -> Any:
        """The feed's next chunk; None where there is none to train on, `failure` saying why."""
        if self.failure is None and not self.notice.requested:
            try:
                return self.feed.chunk(step, n_steps)
            except Exception as error:
                self.failure = error
        return None

    def _is_due(self, pending: _Pending | None) -> bool:
        """Whether to save now: one process's clock says so for all."""
        if self.checkpoints is None or pending is None:
            return False
        return hosts.is_first() and self.checkpoints.due

    def _snapshot(self) -> tuple[dict[str, Any], Packing]:
        """The lanes as they are, before the next dispatch takes them."""
        return jax.tree.map(jnp.copy, named_leaves(self.fleet.lanes)), self.fleet.packing

    def _save(
        self, step: int, leaves: dict[str, Any], packing: Packing, at_end: bool = False
    ) -> None:
        """Saves what `restore` wants: lanes after `step` updates, and what has been read."""
        assert self.checkpoints is not None
        host = {
            "lanes": packing.lanes,
            "n_active": packing.n_active,
            "diverged_at": self.diverged_at,
            "stopped_at": self.stopped_at,
        }
        about = {"rows": dict(self.writer.entry.rows), "at_end": at_end}
        self.checkpoints.save(step, with_host(leaves, host), about)
        if self.checkpoints.on_disk is not None:
            self.writer.entry.saved_step = self.checkpoints.on_disk

    def _settle(self) -> None:
        """Waits for the save that is under way, and says in the record that it is on disk."""
        assert self.checkpoints is not None
        self.checkpoints.wait()
        self.writer.entry.saved_step = self.checkpoints.on_disk
        self.writer.commit()

    def _leave(
        self, pending: _Pending | None, step: int, on_progress: Callable[[Progress], None]
    ) -> None:
        """Reads and saves what is trained, before the group is left at `step`."""
        if pending is None:
            return
        leaves, packing = named_leaves(self.fleet.lanes), self.fleet.packing
        self._read(pending, on_progress)
        if self.checkpoints is not None:
            self._save(step, leaves, packing)
            self._settle()

    def _running(self) -> np.ndarray:
        return np.isnan(self.diverged_at) & np.isinf(self.stopped_at)

    def _dispatch(self, step: int, n_steps: int, batches: Any = None) -> _Pending:
        experiment, fleet, steps = self.experiment, self.fleet, self.experiment.steps
        reference = evaluation = trained = diverged_at = None
        if step in measured_at(experiment.reference_every, steps):
            reference = fleet.reference()
        if step in measured_at(experiment.eval_every, steps):
            evaluation = fleet.evaluate(*self.evaluation_data)
        measured = {}
        if n_steps:
            indices, examples = batches
            data = None if examples is None else fleet.place(examples, 1, self.feed.part)
            measured = {
                name: fleet.measure(name, step, indices[:, 0], data)
                for name, every in experiment.measurements.items()
                if step % every == 0
            }
            trained, diverged_at = fleet.train(step, indices, data)
        return _Pending(
            step, n_steps, fleet.packing, reference, evaluation, measured, trained, diverged_at
        )

    def _read(self, pending: _Pending, on_progress: Callable[[Progress], None]) -> None:
        slots, lanes = pending.packing.rows()
        p = pending
        reference, evaluation, measured, trained, diverged_at = jax.device_get(
            (p.reference, p.evaluation, p.measured, p.trained, p.diverged_at)
        )

        def by_lane(values: Any) -> Any:
            def place(per_slot: np.ndarray) -> np.ndarray:
                full = np.full((self.n_lanes, *per_slot.shape[1:]), np.nan, np.float32)
                full[lanes] = per_slot[slots]
                return full

            return jax.tree.map(place, values)

        # Measurements come before the chunk's updates: who has diverged so far is known.
        if evaluation is not None:
            self._write_between("evaluation", pending.step, by_lane(evaluation))
            self._mark_targets(pending.step, by_lane(evaluation))
        if reference is not None:
            self._write_between(
                "reference", pending.step, by_site(self.prepared.layout, by_lane(reference))
            )
        for name, values in measured.items():
            self._write_between(name, pending.step, by_lane(values))
        loss = np.full((self.n_lanes, 1), np.nan)
        if trained is not None:
            # A run that met its target trains on until it is repacked: that is not its end.
            diverged = np.where(diverged_at[slots] == NEVER, np.nan, diverged_at[slots])
            self.diverged_at[lanes] = np.where(
                np.isfinite(self.stopped_at[lanes]), self.diverged_at[lanes], diverged
            )
            records, taps = by_lane(trained)
            steps = np.arange(pending.step, pending.step + pending.n_steps)
            loss = records["loss"]
            self._write("train", steps, records)
            self._time(pending.n_steps * len(lanes))
            self._write(
                "probe", steps[:: self.experiment.probe.every], by_site(self.prepared.layout, taps)
            )
            if self.flight is not None:
                self.flight.see(pending.step, loss, self.diverged_at)
            # Who is told to stop has no time to ask why.
            if self.inquest is not None and not self.notice.requested:
                self.inquest.see(pending.step, records, self.diverged_at, fleet=self.fleet)
        runs = {"diverged_at": self.diverged_at[:, None].copy()}
        self.writer.write("runs", runs, first=0)
        self.writer.commit()
        self._observe("runs", np.array([pending.step + pending.n_steps]), runs)
        running = self._running()
        group = self.prepared.group
        progress = Progress(
            norm=group.norm,
            depth=group.depth,
            step=pending.step + pending.n_steps,
            steps=self.end_step,
            n_running=int(running.sum()),
            n_diverged=int(np.isfinite(self.diverged_at).sum()),
            n_lanes=self.n_lanes,
            loss=float(np.median(loss[running, -1])) if running.any() else float("nan"),
            elapsed_s=time.perf_counter() - self.started,
            loader_wait_s=self.feed.waited_s,
        )
        if self.failure is None:
            try:
                on_progress(progress)
            except Exception as error:
                self.failure = error  # raised once the state is saved

    def _time(self, n_run_steps: int) -> None:
        """Takes the time since the chunk before; the first one has compilation in it."""
        now = time.perf_counter()
        if self.chunk_read_at is not None:
            self.run_steps_s.append((now - self.chunk_read_at) / n_run_steps)
            self.writer.entry.run_step_s = float(np.median(self.run_steps_s))
        self.chunk_read_at = now

    def _last_step(self) -> np.ndarray:
        return np.fmin(self.diverged_at, self.stopped_at)

    def _write_between(self, node: str, step: int, rows: dict[str, np.ndarray]) -> None:
        self._write(node, np.array([step]), {name: row[:, None] for name, row in rows.items()})

    def _write(self, node: str, steps: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        """Writes rows, blank where a run had ended: its state no longer changes."""
        ended = steps[None, :] > self._last_step()[:, None]
        for values in rows.values():
            values[ended] = np.nan
        self.writer.write(node, rows)
        self._observe(node, steps, rows)

    def _observe(self, node: str, steps: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        group = self.prepared.group
        for observer in self.observers:
            observer.put(Rows(group.norm, group.depth, node, steps, rows))

    def _mark_targets(self, step: int, evaluated: dict[str, np.ndarray]) -> None:
        experiment = self.experiment
        if not experiment.stop_at_target:
            return
        if experiment.target_loss is not None:
            reached = evaluated["loss"] <= experiment.target_loss
        else:
            reached = evaluated["accuracy"] >= experiment.target_accuracy
        self.stopped_at[self._running() & reached] = step
