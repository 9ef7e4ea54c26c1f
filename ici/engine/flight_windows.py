"""Steps around the first onsets of a record, replayed at once when all runs have ended."""

from __future__ import annotations

import time
import warnings
from typing import Any

from ici.config import Experiment
from ici.engine import hosts
from ici.engine.replay import replay
from ici.store.manifest import Manifest
from ici.store.places import Place
from ici.store.replays import window_around

WINDOWS = 4
# Of the time that the runs took: replaying must not.
SHARE = 0.05
# A window is compiled for anew: no run that ends in seconds is to wait for that.
LEAST_S = 10.0


def record_flights(
    experiment: Experiment, folder: Place, manifest: Manifest, windows: int, took_s: float
) -> None:
    """Replays the steps around the first onsets, spikes first, into records of their own.

    At most `windows` of them, and none once they have taken `SHARE` of `took_s`, the seconds that
    the runs took. What goes wrong here is a warning: the runs are complete.
    """
    if hosts.n_processes() > 1 or not windows:
        return
    began = time.perf_counter()
    lanes = experiment.lanes
    found = [
        (kind != "spike", step, entry, lane)
        for entry in manifest.groups.values()
        for lane, step, kind, _ in entry.onsets
    ]
    for _, step, entry, lane in sorted(found, key=lambda each: each[:2])[:windows]:
        spent_s = time.perf_counter() - began
        if spent_s + LEAST_S > SHARE * took_s:
            return
        run: dict[str, Any] = {"norm": entry.norm, "depth": entry.depth}
        run |= {name: getattr(lanes[lane], name) for name in experiment.lane_axes}
        first, last = window_around(step, experiment.steps)
        try:
            replay(experiment, folder, from_step=first, to_step=last, **run)
        except Exception as error:
            warnings.warn(
                f"the steps {first} to {last} of {run} were not recorded at full rate "
                f"({type(error).__name__}: {error}); `ici replay` does it any time.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
