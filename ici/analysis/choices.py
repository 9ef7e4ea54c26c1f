"""Which learning rate to show, and which is a norm's own best."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ici.analysis.digest import Digest

ALIVE_SHARE = 0.85  # of the units of a layer: those beyond are outside the percentiles drawn


def best_lr(digest: Digest) -> xr.DataArray:
    """Learning rate of the best median of the seeds' best evaluations, ``(norm, setting…)``.

    Only rates at which no seed diverged; NaN where there is none. A tie goes to the smaller rate.
    """
    scores = digest.runs[f"best_validation_{digest.score}"].median("seed", skipna=False)
    merit = scores if digest.score == "accuracy" else -scores
    known = merit.notnull().any("lr")
    ordered = merit.sortby("lr")
    chosen = ordered.fillna(-np.inf).argmax("lr")
    return ordered["lr"].isel(lr=chosen).drop_vars("lr").where(known)


def telling_lr(table: xr.Dataset) -> tuple[float, str]:
    """The learning rate at which to compare layers between norms, and the rule in words.

    `table` is a `run_table` of one setting or of several. The largest rate at which the network
    without norm still trains in most seeds (did not diverge, ended below its first loss, has a live
    unit at the deepest site) and keeps enough units of that site alive for their percentiles to
    show them. Where it never does both, the largest at which it trains in most seeds; where it
    never trains, the smallest. Without such networks, every norm has to.
    """
    trains = table["diverged_at"].isnull() & ~table["no_progress"]
    alive, dead = trains, ""
    if "dead_features" in table:
        share = table["dead_features"] / table.attrs["n_features"]
        trains = trains & (share < 1)
        alive = trains & (share < ALIVE_SHARE)
        dead = (
            f"with fewer than {100 * ALIVE_SHARE:.0f} % of the units dead at {table.attrs['site']}"
        )
    without = "none" in trains["norm"].values
    who = "the network without norm" if without else "every norm"
    pooled = [dim for dim in trains.dims if dim not in ("norm", "lr")]

    def largest(which: xr.DataArray) -> float | None:
        enough = which.mean(pooled) > 0.5
        enough = enough.sel(norm="none") if without else enough.all("norm")
        lrs = enough["lr"].values[enough.values]
        return float(lrs.max()) if len(lrs) else None

    if dead and (lr := largest(alive)) is not None:
        return lr, f"lr: the largest at which {who} still trains in most seeds {dead}."
    if (lr := largest(trains)) is not None:
        never = f"; at none {dead}" if dead else ""
        return lr, f"lr: the largest at which {who} still trains in most seeds{never}."
    return float(trains["lr"].min()), f"lr: the smallest, as {who} trains in most seeds at none."
