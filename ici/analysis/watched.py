"""The present state of a record that another process may be writing."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from ici.analysis.live import (
    Divergence,
    GroupSoFar,
    GroupState,
    latest,
    seconds_left,
)
from ici.analysis.records import Target, score_variable, target_of
from ici.store.following import BeingReplacedError, Following
from ici.store.lock import is_held
from ici.store.manifest import COMPLETE, GroupEntry, Manifest
from ici.store.places import Place
from ici.store.results import Results

Phase = Literal["absent", "starting", "running", "silent", "dead", "done", "failed", "preempted"]
_VARIABLES = {"train": ("loss",), "evaluation": ("accuracy", "loss"), "reference": ("mean", "std")}
# How long a record may stay as it is before its writer is looked for, and before it is remarked.
ASK_AFTER_S, SILENT_AFTER_S = 10.0, 300.0


@dataclass(frozen=True)
class LiveState:
    """A record at one moment.

    Attributes:
      path: folder of the record.
      phase: absent (no manifest), starting (no step yet), running, silent (its writer lives and
        has written nothing for a while), dead (the writer is gone and did not say so), done or
        failed.
      name: of the experiment.
      score: accuracy or loss, what the validation scores are.
      groups: in the experiment's order, those to come included.
      target: of the experiment.
      divergences: the latest ones, the last one last.
      unchanged_s: since the last commit.
      left_s: estimate of the time left; None where there is no ground for one.
      replaced: how often the record, or a group of it, started over while it was followed.
    """

    path: Place
    phase: Phase
    name: str = ""
    score: str = "accuracy"
    groups: tuple[GroupState, ...] = ()
    target: Target | None = None
    divergences: tuple[Divergence, ...] = ()
    unchanged_s: float = 0.0
    left_s: float | None = None
    replaced: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.phase in ("done", "failed", "preempted")


class Watched:
    """Follows a record: each `update` reads what was committed since the one before."""

    def __init__(self, folder: Place):
        self.following = Following(folder)
        self.groups: dict[str, GroupSoFar] = {}
        self.identities: dict[str, tuple[int, ...] | None] = {}
        self.divergences: deque[Divergence] = deque()
        self.replaced = 0
        self.unread = False

    def update(self) -> LiveState:
        """The state now. What could not be read because it was being replaced comes later.

        Raises:
          InputError: the record is damaged or of another schema, or its path is a file.
        """
        changed = self.following.refresh()
        manifest = self.following.manifest
        if manifest is None:
            self._forget(list(self.groups))
            return LiveState(self.following.folder, "absent", replaced=self.replaced)
        if changed or self.unread:
            self._forget([name for name in self.groups if name not in manifest.groups])
            self.unread = False
            for name, entry in manifest.groups.items():
                try:
                    self._read(name, entry, manifest)
                except BeingReplacedError:
                    self.unread = True
        return self._state(manifest)

    def _forget(self, names: list[str]) -> None:
        for name in names:
            del self.groups[name], self.identities[name]
            self.replaced += 1
        if not self.groups:
            self.divergences.clear()

    def _read(self, name: str, entry: GroupEntry, manifest: Manifest) -> None:
        following, experiment = self.following, manifest.experiment
        identity = following.identity(name)
        known = self.groups.get(name)
        if known is not None and (
            identity != self.identities[name]
            or any(entry.rows.get(node, 0) < n for node, n in known.rows.items())
        ):
            self._forget([name])
            known = None
        if not entry.rows.get("runs"):
            return
        if known is None:
            known = GroupSoFar(
                entry.norm,
                entry.depth,
                int(experiment["steps"]),
                following.labels(name),
                target_of(self._results(manifest)),
                bool(experiment.get("stop_at_target")),
            )
            self.groups[name], self.identities[name] = known, identity
        if known.done:
            return
        known.run_step_s = getattr(entry, "run_step_s", None)
        # Finishing fills up the rows: those beyond the last step of any run stay NaN.
        for _, rows in following.rows(name, "runs", ("diverged_at",), 0, 1):
            new = known.add_divergences(rows["diverged_at"][:, 0])
            self.divergences = latest(self.divergences, new)
        for node in _VARIABLES:
            self._read_new(name, known, node, manifest)
        if following.identity(name) != identity:
            self._forget([name])
            raise BeingReplacedError(name)
        if entry.done:
            known.finish()

    def _read_new(self, name: str, known: GroupSoFar, node: str, manifest: Manifest) -> None:
        entry = manifest.groups[name]
        first, last = known.rows.get(node, 0), entry.rows.get(node, 0)
        spans = [(first, last)]
        if node == "reference":  # of which the first counts and the newest
            spans = [(0, min(1, last))] * (not first) + [(max(first, last - 1, 1), last)]
        score = score_variable(self._results(manifest))
        for span in spans:
            site = known.labels.deepest
            for at, rows in self.following.rows(name, node, _VARIABLES[node], *span, site=site):
                if node == "train":
                    known.add_train(at, rows["loss"])
                elif node == "evaluation":
                    aimed_at = known.target and rows.get(known.target.variable)
                    known.add_scores(rows[score], aimed_at)
                elif {"mean", "std"} <= set(rows):
                    known.add_reference(at, rows["mean"], rows["std"])
        known.rows[node] = last

    def _results(self, manifest: Manifest) -> Results:
        return Results(self.following.folder, manifest)

    def _state(self, manifest: Manifest) -> LiveState:
        experiment = manifest.experiment
        groups = tuple(self._groups(manifest))
        unchanged_s = max(0.0, time.time() - (self.following.changed_at or 0.0))
        return LiveState(
            path=self.following.folder,
            phase=self._phase(manifest, unchanged_s),
            name=str(experiment.get("name", "")),
            groups=groups,
            target=target_of(self._results(manifest)),
            score=score_variable(self._results(manifest)),
            divergences=tuple(self.divergences),
            unchanged_s=unchanged_s,
            left_s=None if manifest.status != "running" else seconds_left(groups),
            replaced=self.replaced,
        )

    def _groups(self, manifest: Manifest) -> list[GroupState]:
        experiment = manifest.experiment
        started = {(g.norm, g.depth): g.state() for g in self.groups.values()}
        steps, n_runs = int(experiment["steps"]), 1
        for name in ("lr", "weight_decay", "warmup_steps", "beta1", "beta2", "seed"):
            values = experiment.get(name)
            n_runs *= len(values) if isinstance(values, list | tuple) else 1
        for n in (known.labels.n_lanes for known in self.groups.values()):
            n_runs = n  # as recorded, where something is
        return [
            started.get((norm, depth))
            or GroupState(norm, depth, 0, steps, n_runs, n_runs, 0, 0, False)
            for norm in experiment["norm"]
            for depth in experiment["depth"]
        ]

    def _phase(self, manifest: Manifest, unchanged_s: float) -> Phase:
        if manifest.status in COMPLETE:
            return "done"
        if manifest.status in ("failed", "preempted"):
            return manifest.status
        if unchanged_s > ASK_AFTER_S and is_held(self.following.folder) is False:
            return "dead"
        if unchanged_s > SILENT_AFTER_S:
            return "silent"
        return "running" if self.groups else "starting"
