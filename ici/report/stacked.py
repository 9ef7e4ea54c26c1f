"""Arrays of a digest in one order of dimensions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr

from ici.analysis.digest import Digest


def cell_settings(digest: Digest) -> list[dict[str, Any]]:
    """Every combination of the swept values other than norm, learning rate and seed."""
    dims = [dim for dim in digest.cell_dims if dim not in ("norm", "lr")]
    values = [digest.runs[dim].values.tolist() for dim in dims]
    return [dict(zip(dims, each, strict=True)) for each in itertools.product(*values)]


def stacked(digest: Digest, values: xr.DataArray) -> np.ndarray:
    """``[setting, norm, lr, (seed,) …]``, settings in the order of `cell_settings`."""
    others = [dim for dim in digest.cell_dims if dim not in ("norm", "lr")]
    own = ["seed"] if "seed" in values.dims else []
    ordered = values.transpose(*others, "norm", "lr", *own, ...)
    array = np.asarray(ordered.values)
    return array.reshape(-1, *array.shape[len(others) :])
