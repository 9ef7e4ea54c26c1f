"""Labelling stored arrays without reading them."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing


def labelled(dataset: xr.Dataset, **labels: Any) -> xr.Dataset:
    """`dataset` with a leading dimension of length one for every label, still unread.

    `xarray.Dataset.expand_dims` gives the same labels, and reads every array whole.

    Args:
      dataset: as `xarray.open_zarr` gives it without chunks.
      **labels: names of the new dimensions, outermost first, and their one value.
    """
    variables = {
        name: xr.Variable(
            (*labels, *variable.dims),
            indexing.LazilyIndexedArray(_Led(variable.variable, len(labels))),
            variable.attrs,
            variable.encoding,
        )
        for name, variable in dataset.items()
    }
    coordinates = {dim: [value] for dim, value in labels.items()}
    return xr.Dataset(variables, coordinates, dataset.attrs).assign_coords(dataset.coords)


class _Led(BackendArray):
    """A variable behind `n_leading` axes of length one, read where it is indexed."""

    def __init__(self, variable: xr.Variable, n_leading: int):
        self.variable = variable
        self.n_leading = n_leading
        self.shape = (1,) * n_leading + variable.shape
        self.dtype = variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        leading, own = key[: self.n_leading], key[self.n_leading :]
        values = np.asarray(self.variable[own].values)
        for each in reversed(leading):
            values = values[np.newaxis][each]
        return values
