"""Writing the labelled record of an experiment: one Zarr group per group of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from ici.errors import InputError
from ici.store.chunks import MAX_CHUNK_BYTES, chunk_shape
from ici.store.manifest import MANIFEST, RECORDS, GroupEntry, Manifest
from ici.store.places import Place, free_bytes, remove, zarr_store

PER_SITE = ("site",)
PER_FEATURE = ("site", "feature")


@dataclass(frozen=True)
class Variable:
    """One array of a node, besides its lane dimensions and ``step``."""

    dims: tuple[str, ...] = ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Node:
    """One set of arrays that share their steps: training steps, probed steps, evaluations, …"""

    steps: np.ndarray
    rows_per_chunk: int
    variables: dict[str, Variable]


@dataclass(frozen=True)
class Layout:
    """Shapes and labels of one group's record.

    Attributes:
      lane_axes: swept dimensions and their values, in storage order.
      sites: site names in execution order.
      n_features: number of features of each site; shorter sites are padded with NaN.
      nodes: by name.
      axes: labels of further dimensions of variables, such as block.
    """

    lane_axes: dict[str, tuple[Any, ...]]
    sites: tuple[str, ...]
    n_features: tuple[int, ...]
    nodes: dict[str, Node]
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def lane_shape(self) -> tuple[int, ...]:
        """Numbers of values along the lane dimensions."""
        return tuple(len(values) for values in self.lane_axes.values())

    def extent(self, dims: tuple[str, ...]) -> tuple[int, ...]:
        """Sizes of the dimensions of a variable behind ``step``."""
        sizes = {"site": len(self.sites), "feature": max(self.n_features, default=0)}
        sizes |= {name: len(labels) for name, labels in self.axes.items()}
        return tuple(sizes[dim] for dim in dims)

    def n_bytes(self) -> int:
        """Size of all arrays before compression."""
        total = 0
        for node in self.nodes.values():
            for variable in node.variables.values():
                shape = (*self.lane_shape, len(node.steps), *self.extent(variable.dims))
                total += int(np.prod(shape)) * np.dtype(variable.dtype).itemsize
        return total


class GroupWriter:
    """Appends rows to one group's record. Rows count only once they are committed.

    An entry without rows begins the group's record anew; one with rows goes on behind them, and
    cuts what is there beyond.
    """

    def __init__(
        self, folder: Place, manifest: Manifest, name: str, entry: GroupEntry, layout: Layout
    ):
        self.folder = folder
        self.name = name
        self.entry = entry
        self.layout = layout
        self.arrays: dict[str, dict[str, zarr.Array]] = {}
        manifest.groups[name] = entry
        if not (folder / MANIFEST).exists():
            manifest.write(folder)
        if entry.rows:
            self._open()
        else:
            self._begin()

    def _begin(self) -> None:
        path, layout, entry = self.folder / RECORDS / self.name, self.layout, self.entry
        remove(path)
        root = zarr.create_group(zarr_store(path), zarr_format=3)
        for node_name, node in layout.nodes.items():
            group = root.create_group(node_name)
            self._coordinates(group, node)
            self.arrays[node_name] = {
                key: self._create(group, key, variable, node)
                for key, variable in node.variables.items()
            }
        entry.rows = dict.fromkeys(layout.nodes, 0)
        entry.written = {
            f"{name}/{key}": 0 for name, node in layout.nodes.items() for key in node.variables
        }
        entry.done = False
        self.commit()

    def _open(self) -> None:
        """Goes on with the record that is there; rows that its entry doesn't count are cut."""
        entry, lead = self.entry, (slice(None),) * len(self.layout.lane_shape)
        for key, n_rows in entry.written.items():
            entry.written[key] = min(n_rows, entry.rows[key.partition("/")[0]])
        entry.done = False
        # Readers are told before chunks go away.
        self.commit()
        whole, cut = self._opened(empty_chunks=True), self._opened(empty_chunks=False)
        for node_name, node in self.layout.nodes.items():
            n_rows = entry.rows[node_name]
            self.arrays[node_name] = {key: whole[node_name, key] for key in node.variables}
            for key, array in self.arrays[node_name].items():
                n_per_chunk = array.chunks[len(lead)]
                kept = min(-(-n_rows // n_per_chunk) * n_per_chunk, len(node.steps))
                # The chunk that is cut through stays, whatever is left in it; those behind it go.
                array[(*lead, slice(n_rows, kept))] = np.nan
                cut[node_name, key][(*lead, slice(kept, None))] = np.nan

    def _opened(self, empty_chunks: bool) -> dict[tuple[str, str], zarr.Array]:
        """The arrays by node and name, which write what holds nothing but NaN, or remove it."""
        path = self.folder / RECORDS / self.name
        arrays = {}
        with zarr.config.set({"array.write_empty_chunks": empty_chunks}):
            root = zarr.open_group(zarr_store(path), mode="r+", zarr_format=3)
            for node_name, node in self.layout.nodes.items():
                for key in node.variables:
                    array = root[f"{node_name}/{key}"]
                    assert isinstance(array, zarr.Array)
                    arrays[node_name, key] = array
        return arrays

    def _coordinates(self, group: zarr.Group, node: Node) -> None:
        labels: dict[str, Any] = {**self.layout.lane_axes, "step": node.steps}
        used = {dim for variable in node.variables.values() for dim in variable.dims}
        if "site" in used:
            labels["site"] = self.layout.sites
        labels |= {dim: values for dim, values in self.layout.axes.items() if dim in used}
        for name, values in labels.items():
            is_text = len(values) and isinstance(values[0], str)
            data = np.array(values, dtype=np.dtypes.StringDType() if is_text else None)
            group.create_array(name, data=data, dimension_names=(name,))

    def _create(self, group: zarr.Group, name: str, variable: Variable, node: Node) -> zarr.Array:
        inner = self.layout.extent(variable.dims)
        lanes = self.layout.lane_shape
        return group.create_array(
            name,
            shape=(*lanes, len(node.steps), *inner),
            chunks=chunk_shape(
                lanes,
                min(node.rows_per_chunk, len(node.steps)),
                inner,
                np.dtype(variable.dtype).itemsize,
                MAX_CHUNK_BYTES,
            ),
            dtype=variable.dtype,
            fill_value=np.nan,
            # Zarr's default has no checksum: a flipped bit would read back as a number.
            compressors=(ZstdCodec(level=1), Crc32cCodec()),
            dimension_names=(*self.layout.lane_axes, "step", *variable.dims),
            # Else a chunk that is gone could not be told from one of runs that had ended.
            config={"write_empty_chunks": True},
        )

    def write(self, node: str, rows: dict[str, np.ndarray], first: int | None = None) -> None:
        """Puts rows ``[n_lanes, n_rows, ...]`` of every variable of `node` behind what is there,
        or at row `first`. They count from the next `commit` on."""
        first = self.entry.rows[node] if first is None else first
        n_rows = 0
        for name, values in rows.items():
            n_rows = values.shape[1]
            shaped = values.reshape(*self.layout.lane_shape, *values.shape[1:])
            lead = (slice(None),) * len(self.layout.lane_shape)
            self.arrays[node][name][(*lead, slice(first, first + n_rows))] = shaped
            known = self.entry.written.get(f"{node}/{name}", -1)
            if 0 <= first <= known:
                self.entry.written[f"{node}/{name}"] = max(known, first + n_rows)
        self.entry.rows[node] = first + n_rows

    def commit(self) -> None:
        """Makes everything written so far part of the record."""
        self.entry.write(self.folder, self.name)

    def finish(self) -> None:
        """Marks the group as done. Rows never written stay NaN: no run lived to fill them."""
        self.entry.rows = {name: len(node.steps) for name, node in self.layout.nodes.items()}
        self.entry.done = True
        self.commit()


def check_space(folder: Place, n_bytes: int) -> None:
    """Raises `InputError` when the disk that holds `folder` has less than `n_bytes` free."""
    free = free_bytes(folder)
    if free is not None and free < n_bytes:
        raise InputError(
            f"{folder}: the record may take {n_bytes / 2**20:.0f} MiB and {free / 2**20:.0f} MiB "
            "are free: wanted more space, fewer runs, or a larger probe.every."
        )
