"""Reading a record while another process writes it: only what is new, and never a half of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from ici.errors import InputError
from ici.store.manifest import MANIFEST, RECORDS, Manifest, entry_paths
from ici.store.places import Place, stamp, zarr_store

# Coordinates of a node that are not those of its runs.
_NOT_LANES = ("step", "site", "feature", "block", "multiple")
_PIECE_VALUES = 1 << 22


class BeingReplacedError(Exception):
    """A group's record went away while it was read: look again later."""


@dataclass(frozen=True)
class GroupLabels:
    """What the rows of a group's record belong to.

    Attributes:
      lane_axes: swept dimensions of the runs and their values, in storage order.
      sites: in execution order; none where nothing is recorded by site.
      steps: of every node.
      deepest: index of the last site that has moments; logits, for one, have none.
    """

    lane_axes: dict[str, tuple[Any, ...]]
    sites: tuple[str, ...]
    steps: dict[str, np.ndarray]
    deepest: int = -1

    @property
    def n_lanes(self) -> int:
        """Number of runs in the group."""
        return int(np.prod([len(values) for values in self.lane_axes.values()]))


class Following:
    """A record that may grow, be replaced, or not exist yet."""

    def __init__(self, folder: Place):
        self.folder = folder
        self.manifest: Manifest | None = None
        self.changed_at: float | None = None
        self._stamp: Any = (None, ())

    def refresh(self) -> bool:
        """Whether the manifest is another one than at the last call; reads it if so.

        Raises:
          InputError: it is damaged or of another schema, or `folder` is a file.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file: wanted the folder of a record.")
        found = stamp(self.folder / MANIFEST)
        entries = tuple(stamp(path) for path in entry_paths(self.folder))
        if (found, entries) == self._stamp:
            return False
        if found is None:
            self.manifest = self.changed_at = None
        else:
            try:
                self.manifest = Manifest.read(self.folder)
            except InputError:
                if stamp(self.folder / MANIFEST) is None:  # taken away just now
                    return False
                raise
            self.changed_at = max(each[1] for each in (found, *entries) if each) / 1e9
        self._stamp = found, entries
        return True

    def identity(self, group: str) -> tuple[int, ...] | None:
        """Differs between two records of one group: one that was overwritten or trained again."""
        return stamp(self.folder / RECORDS / group / "zarr.json")

    def labels(self, group: str) -> GroupLabels:
        """Labels of a group's record.

        Raises:
          BeingReplacedError: it went away.
        """
        with _while_there():
            root = zarr.open_group(
                zarr_store(self.folder / RECORDS / group), mode="r", zarr_format=3
            )
            nodes = {name: node for name, node in root.groups()}
            train = nodes["train"]
            lanes = [str(d) for d in _array(train, "loss").metadata.dimension_names or ()]  # pyright: ignore[reportAttributeAccessIssue]
            axes = {
                dim: tuple(np.asarray(_array(train, dim)[:]).tolist())
                for dim in lanes
                if dim not in _NOT_LANES
            }
            reference = nodes["reference"]
            sites = _array(reference, "site")[:] if "site" in reference else ()
            steps = {name: np.asarray(_array(node, "step")[:]) for name, node in nodes.items()}
            deepest = -1
            if "std" in reference:
                std = _array(reference, "std")
                first = np.asarray(std[(0,) * (std.ndim - 2)])  # of one run at one step
                measured = np.flatnonzero(np.isfinite(first).any(axis=-1))
                deepest = int(measured[-1]) if measured.size else -1
            names = tuple(str(site) for site in np.asarray(sites))
            return GroupLabels(axes, names, steps, deepest)

    def rows(
        self,
        group: str,
        node: str,
        variables: tuple[str, ...],
        first: int,
        last: int,
        site: int | None = None,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Rows ``first … last − 1`` of a node in pieces: first row, ``{name: [n_lanes, n, ...]}``.

        A piece is one stored chunk of rows, or several small ones. Variables that the node does
        not have are left out. With `site`, only that one is held of variables that have sites.

        Raises:
          BeingReplacedError: the record went away.
        """
        with _while_there():
            found = zarr.open_group(
                zarr_store(self.folder / RECORDS / group / node), mode="r", zarr_format=3
            )
            arrays = {name: _array(found, name) for name in variables if name in found}
        if not arrays:
            return
        one = next(iter(arrays.values()))
        axis = list(one.metadata.dimension_names or ()).index("step")  # pyright: ignore[reportAttributeAccessIssue]
        n_lanes = int(np.prod(one.shape[:axis]))
        row_values = max(1, int(np.prod(one.shape)) // one.shape[axis])
        stored = one.chunks[axis]
        n_rows = max(1, _PIECE_VALUES // (row_values * stored)) * stored
        while first < last:
            end = min(last, (first // n_rows + 1) * n_rows)
            lead = (slice(None),) * axis
            with _while_there():
                values = {
                    name: np.asarray(array[(*lead, slice(first, end), *_at_site(array, site))])
                    for name, array in arrays.items()
                }
            yield (
                first,
                {name: v.reshape(n_lanes, *v.shape[axis:]) for name, v in values.items()},
            )
            first = end


def _at_site(array: zarr.Array, site: int | None) -> tuple[int, ...]:
    has_sites = "site" in (array.metadata.dimension_names or ())  # pyright: ignore[reportAttributeAccessIssue]
    return (site,) if site is not None and has_sites else ()


@contextlib.contextmanager
def _while_there() -> Iterator[None]:
    """Turns whatever reading a vanishing record raises into `BeingReplacedError`."""
    try:
        yield
    except Exception as error:
        # Zarr has no common base: missing files, keys, half-written metadata, checksums.
        raise BeingReplacedError(f"{type(error).__name__}: {error}") from error


def _array(group: zarr.Group, name: str) -> zarr.Array:
    found = group[name]
    assert isinstance(found, zarr.Array)
    return found
