"""The flight recorder: onsets of spikes and divergences, noticed while the group trains.

For each of the first ones a checkpoint from before it is kept for good, so that a replay of it
never begins far back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ici.engine.checkpoint import Checkpoints
from ici.measure.spikes import PRESETS, band, outside
from ici.store.manifest import GroupEntry

# The rule that reports count spikes by unless told otherwise.
RULE = PRESETS["olmo_core"]
MAX_ONSETS = 8


@dataclass(frozen=True)
class Onset:
    """Where a run left its course.

    Attributes:
      lane: its place among the group's runs.
      step: the first one whose loss is a spike, or whose update was refused.
      kind: "spike" or "divergence".
    """

    lane: int
    step: int
    kind: str


class FlightRecorder:
    """Finds the onsets of one group, chunk by chunk.

    Args:
      n_lanes: runs of the group.
      entry: of the group, which keeps what was found.
      checkpoints: where to keep one for each; None where there are none.
    """

    def __init__(self, n_lanes: int, entry: GroupEntry, checkpoints: Checkpoints | None):
        self.entry = entry
        self.checkpoints = checkpoints
        self.recent = np.full((n_lanes, RULE.window), np.nan)
        self.clear_from = np.zeros(n_lanes)
        if checkpoints is not None:
            checkpoints.policy.marked |= {kept for *_, kept in entry.onsets if kept is not None}

    def forget(self, step: int) -> None:
        """Drops what was found behind a step that is trained again."""
        self.entry.onsets = [onset for onset in self.entry.onsets if onset[1] < step]

    def see(self, first_step: int, loss: np.ndarray, diverged_at: np.ndarray) -> None:
        """Takes the losses ``[n_lanes, K]`` of a chunk, and where lanes have diverged by now."""
        if len(self.entry.onsets) >= MAX_ONSETS:
            return
        for onset in self._onsets(first_step, loss, diverged_at)[:MAX_ONSETS]:
            if len(self.entry.onsets) < MAX_ONSETS:
                kept = self._kept_before(onset.step)
                self.entry.onsets.append([onset.lane, onset.step, onset.kind, kept])

    def _onsets(self, first_step: int, loss: np.ndarray, diverged_at: np.ndarray) -> list[Onset]:
        window = self.recent.shape[1]
        values = np.concatenate([self.recent, loss], axis=1, dtype=np.float64)
        self.recent = values[:, -window:]
        # What is not finite is divergence and no spike.
        judged = np.where(np.isfinite(values), values, np.nan)
        spikes = outside(judged, *band(judged, RULE), RULE)
        found = []
        last_step = first_step + loss.shape[1]
        for lane, at in zip(*np.nonzero(spikes[:, window:]), strict=True):
            step = first_step + int(at)
            if step >= self.clear_from[lane]:
                # What follows within the window is the same unrest.
                self.clear_from[lane] = step + window
                found.append(Onset(int(lane), step, "spike"))
        ended = (diverged_at >= first_step) & (diverged_at < last_step)
        found += [Onset(int(n), int(diverged_at[n]), "divergence") for n in np.flatnonzero(ended)]
        return sorted(found, key=lambda onset: (onset.kind != "spike", onset.step))

    def _kept_before(self, step: int) -> int | None:
        """The newest checkpoint up to `step`, kept for good; None where step 0 is nearest."""
        if self.checkpoints is None:
            return None
        before = [saved for saved in self.checkpoints.steps if saved <= step]
        if not before:
            return None
        self.checkpoints.mark(before[-1])
        return before[-1]
