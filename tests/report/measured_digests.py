"""Digests with heavy measurements, made by hand: records in memory hold none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from fake_records import FakeRecords

from ici.analysis.digest import Digest, digest

BLOCKS = ("words", "blocks/0/linear", "blocks/1/linear", "blocks/2/linear", "head")
SITES = ("blocks/0/linear", "blocks/1/linear", "blocks/2/linear", "head")
MULTIPLES = (0.5, 1.0, 4.0)
SETTING = {"depth": 2}
_OF_BLOCKS = {"block": list(BLOCKS)}
_SHAPES: dict[str, dict[str, dict[str, list[Any]]]] = {
    "gradient_shift": {
        name: _OF_BLOCKS
        for name in ("gradient_shift", "gradient_shift_relative", "gradient_shift_cosine")
    },
    "attribution": {
        "attribution": _OF_BLOCKS | {"site": list(SITES)},
        "update_shift": {"site": list(SITES)},
        "interaction": {"site": list(SITES)},
    },
    "landscape": {
        "loss_along": {"multiple": list(MULTIPLES)},
        "gradient_distance": {"multiple": list(MULTIPLES)},
        "effective_smoothness": {},
    },
    "sharpness": {"sharpness_times_lr": {}},
}


def measured(
    records: FakeRecords, steps: tuple[int, ...] = (0, 5, 10, 15), value: float = 1.0
) -> Digest:
    """The digest of `records` with every measurement at `steps`, each equal to `value`."""
    found = digest(records)
    cells = {dim: found.runs[dim].values.tolist() for dim in found.cell_dims}

    def filled(own: dict[str, list[Any]]) -> xr.DataArray:
        labels = {**cells, "step": list(steps), **own}
        shape = [len(values) for values in labels.values()]
        return xr.DataArray(np.full(shape, value, np.float32), labels, list(labels))

    nodes = {
        kind: xr.Dataset({name: filled(own) for name, own in variables.items()})
        for kind, variables in _SHAPES.items()
    }
    fits = {name: filled({}) for name in ("growth", "r2")}
    gradients = xr.Dataset({"gradient_norm": filled(_OF_BLOCKS), **fits})
    return replace(found, measured=nodes, gradients=gradients)


def with_gradient_norms(records: FakeRecords, factor: float) -> FakeRecords:
    """Norms of blocks that grow by `factor` per layer towards the input."""
    labels = {dim: records.probe[dim].values for dim in (*records.runs["diverged_at"].dims, "step")}
    norms = np.array([7.0, factor**2, factor, 1.0, 7.0])
    shape = [len(values) for values in labels.values()]
    values = np.broadcast_to(norms, (*shape, len(BLOCKS)))
    records.probe["block_gradient_norm"] = ((*labels, "block"), values.copy())
    records.probe = records.probe.assign_coords(block=list(BLOCKS))
    return records
