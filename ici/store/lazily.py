"""Labelling stored arrays without reading them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from ici.errors import InputError
from ici.store.missing import Committed


@contextlib.contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turns what Zarr and its codecs raise into an `InputError` that names the array."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # Checksums, codecs, JSON and stores have no common base for what damage raises.
        seen = str(error).strip().splitlines()
        raise InputError(
            f"{where} is damaged ({type(error).__name__}: {seen[0][:200] if seen else ''}): "
            "restore it from a copy, or train again with `ici run --restart`; replays and "
            "checkpoints beside it may still be good."
        ) from error


def labelled(
    dataset: xr.Dataset, where: str, committed: Mapping[str, Committed], **labels: Any
) -> xr.Dataset:
    """`dataset` with a leading dimension of length one for every label, still unread.

    `xarray.Dataset.expand_dims` gives the same labels, and reads every array whole.

    Args:
      dataset: as `xarray.open_zarr` gives it without chunks.
      where: what it is called in errors.
      committed: of its variables, by name, what must be there to be read, as far as it is known.
      **labels: names of the new dimensions, outermost first, and their one value.
    """
    variables = {
        name: xr.Variable(
            (*labels, *variable.dims),
            indexing.LazilyIndexedArray(
                _Led(
                    variable.variable,
                    len(labels),
                    f"{where}/{name}",
                    committed.get(str(name)),
                )
            ),
            variable.attrs,
            variable.encoding,
        )
        for name, variable in dataset.items()
    }
    coordinates = {dim: [value] for dim, value in labels.items()}
    return xr.Dataset(variables, coordinates, dataset.attrs).assign_coords(dataset.coords)


class _Led(BackendArray):
    """A variable behind `n_leading` axes of length one, read where it is indexed."""

    def __init__(
        self, variable: xr.Variable, n_leading: int, where: str, committed: Committed | None
    ):
        self.where = where
        self.committed = committed
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
        with damage_named(self.where):
            if self.committed is not None:
                self.committed.check(own, self.variable.shape)
            values = np.asarray(self.variable[own].values)
        for each in reversed(leading):
            values = values[np.newaxis][each]
        return values
