"""A record in parts that fit in memory: an experiment of ten thousand runs is read like one of ten.

Analyses take any part as they take a whole record. What they say of single runs does not depend on
how a record was split; what compares norms or depths comes after, from the small tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from ici.analysis.records import NODES, Records, Selection, check_recorded, has_moments, select
from ici.errors import InputError
from ici.store.results import OPTIONAL, Results, merge_sites

MAX_PART_BYTES = 2**28
RUN_LABELS = ("norm", "depth", "lr", "seed", *OPTIONAL)


def parts(results: Records, max_bytes: int = MAX_PART_BYTES) -> Iterator[Selection]:
    """The runs of a record, a group or some learning rates of one at a time, each held in memory.

    Groups without a committed step are left out. A record that is in memory already is one part.

    Args:
      results: the record.
      max_bytes: what the arrays of one part may take; a single learning rate is never split.

    Raises:
      InputError: no step of any group is committed yet.
    """
    n_found = 0
    for group in groups_of(results):
        lrs = group.runs["lr"].values
        n_bytes = sum(getattr(group, node).nbytes for node in ("train", "probe", "reference"))
        n_parts = min(len(lrs), max(1, math.ceil(n_bytes / max_bytes)))
        for chosen in np.array_split(lrs, n_parts):
            part = group if n_parts == 1 else select(group, lr=chosen.tolist())
            n_found += 1
            yield in_memory(part)
    if not n_found:
        raise InputError(f"{results.path} holds no step yet: wait for its first steps.")


def groups_of(results: Records) -> Iterator[Records]:
    """Every group of a record that has committed steps; what is no `Results` is one group."""
    if not isinstance(results, Results):
        check_recorded(results)
        yield results
        return
    for norm, depth in results.groups:
        yield results.group(norm, depth)


def gathered(results: Records, nodes: Sequence[str] = NODES, **labels: Any) -> Selection:
    """`select` that reads no more than it selects, and only these nodes; the others are empty.

    A whole record lines up its groups, and so reads them; here each group is cut down first.
    """
    if not isinstance(results, Results):
        return select(results, **labels)
    chosen = [
        (norm, depth)
        for norm, depth in results.groups
        if norm in np.atleast_1d(labels.get("norm", norm))
        and depth in np.atleast_1d(labels.get("depth", depth))
    ]
    pieces = [select(results.group(norm, depth), **_as_lists(labels)) for norm, depth in chosen]
    if not pieces:
        return select(results, **labels)  # tells what there is
    whole = {}
    for node in NODES:
        wanted = node in nodes or node == "runs"
        parts_of = [getattr(piece, node).load() if wanted else xr.Dataset() for piece in pieces]
        whole[node] = lined_up(parts_of, results.experiment) if wanted else xr.Dataset()
    found = Selection(**whole, experiment=results.experiment, path=results.path, task=results.task)
    single = {dim: value for dim, value in labels.items() if np.ndim(value) == 0}
    nodes_of = {
        node: getattr(found, node).sel({d: v for d, v in single.items() if d in whole[node].dims})
        for node in NODES
    }
    return replace(found, **nodes_of)


def _as_lists(labels: dict[str, Any]) -> dict[str, Any]:
    return {
        dim: np.atleast_1d(value).tolist()
        for dim, value in labels.items()
        if dim != "norm" and dim != "depth"
    }


def lined_up(tables: Sequence[xr.Dataset], experiment: dict[str, Any]) -> xr.Dataset:
    """Parts of a record as one dataset in the experiment's order; NaN where a run is missing."""
    if len(tables) == 1:
        return tables[0]
    for dim in ("site", "block"):
        orders = [table[dim].values.tolist() for table in tables if dim in table.dims]
        if orders:
            labels = merge_sites(orders)
            tables = [table.reindex({dim: labels}) for table in tables]
    if any("feature" in table.dims for table in tables):
        widest = max(table.sizes.get("feature", 0) for table in tables)
        tables = [
            table.pad(feature=(0, widest - table.sizes["feature"]))
            if "feature" in table.dims
            else table
            for table in tables
        ]
    whole = xr.combine_by_coords(tables, join="outer", compat="no_conflicts", combine_attrs="drop")
    assert isinstance(whole, xr.Dataset)
    for dim in whole.dims:
        known = whole[dim].values.tolist() if dim in whole.coords else []
        if dim in experiment and dim in RUN_LABELS:
            whole = whole.reindex({dim: [v for v in experiment[str(dim)] if v in known]})
    return whole


def not_begun(results: Records) -> tuple[tuple[str, int], ...]:
    """Norm and depth of the planned groups without a recorded step, in the experiment's order."""
    if not isinstance(results, Results) or results.complete:
        return ()
    planned = itertools.product(results.experiment["norm"], results.experiment["depth"])
    return tuple(each for each in planned if each not in results.groups)


def in_memory(results: Records) -> Selection:
    """The same runs with every array read, once."""
    return Selection(
        **{node: getattr(results, node).load() for node in NODES},
        experiment=results.experiment,
        path=results.path,
        task=results.task,
    )


def common_sites(results: Records) -> list[str]:
    """Sites with moments that every group has, in execution order; one step of one run is read.

    A record in memory that mixes groups is asked through its moments instead.
    """
    if not isinstance(results, Results):
        from ici.analysis.shifts import shared_sites

        with_moments = has_moments(results.reference) or has_moments(results.probe)
        return shared_sites(results) if with_moments else []
    shared: list[str] | None = None
    for group in groups_of(results):
        node = group.reference if "site" in group.reference.dims else group.probe
        if "site" not in node.dims:
            return []
        names = _with_moments(node)
        shared = names if shared is None else [site for site in shared if site in names]
    return shared or []


def _with_moments(node: xr.Dataset) -> list[str]:
    """Sites of a node that have moments: logits and attention weights have other statistics."""
    names = node["site"].values.tolist()
    if "std" not in node or not node.sizes["step"]:
        return names
    std = node["std"].isel({dim: 0 for dim in node["std"].dims if dim not in ("site", "feature")})
    known = std.notnull().any([dim for dim in std.dims if dim != "site"]).values
    return [name for name, has in zip(names, known, strict=True) if has]
