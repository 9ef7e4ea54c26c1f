"""A record as data frames: a row per run, step, layer input or spike, for whatever reads tables.

Frames come in parts that fit in memory. Rows are ordered by group of runs, then step, then run,
then layer input: a table does not depend on how its record was split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ici.analysis import parts as splitting
from ici.analysis.anatomy import spikes_of
from ici.analysis.outcomes import (
    CAUSES,
    OUTCOMES,
    run_divergence_cause,
    run_first_nonfinite,
    run_outcome,
)
from ici.analysis.records import Records, has_moments, run_dims
from ici.analysis.shifts import deepest_site
from ici.analysis.summary import run_table
from ici.errors import InputError, unknown_name
from ici.store.results import merge_sites

# Of the features of a site: Ioffe & Szegedy, "Batch normalization", 2015, Fig. 1 (b, c).
PERCENTILES = (15, 50, 85)
OF_INPUTS = ("reference", "probe")
_OF_FEATURES = {"site", "feature"}
# Of the arrays that a frame is made from: their positions, their copy in order, the frame itself.
_COPIES = 4


def tables_of(results: Records) -> tuple[str, ...]:
    """Names of the tables that a record has, those of heavy measurements last.

    Raises:
      InputError: no step is committed yet.
    """
    group = _first_group(results)
    sources = _node_tables(group)
    filled = [name for name in sources if sources[name](group).data_vars]
    named = ["runs", *(name for name in filled if name not in _measured(results)), "spikes"]
    return (*named, *(name for name in filled if name in _measured(results)))


def table(results: Records, what: str = "runs", features: bool = False) -> pd.DataFrame:
    """One table of a record, whole; `iter_table` has the same rows in parts.

    Labels of the runs are categorical, values keep their types. Rows without any value are left
    out: steps after a run ended, and layer inputs that its network lacks.

    Args:
      results: the record.
      what: one of `tables_of`. "runs" has a row per run, "spikes" a row per spike of the training
        loss; the others have rows per run and step, and per site, block or multiple of the learning
        rate as far as their variables have them.
      features: a row for every feature of a site, in place of percentiles over its features.

    Raises:
      InputError: there is no such table, or no step is committed yet.
    """
    return pd.concat(list(iter_table(results, what, features)), ignore_index=True)


def iter_table(
    results: Records, what: str = "runs", features: bool = False
) -> Iterator[pd.DataFrame]:
    """The parts of a `table`: of `ici.analysis.parts.MAX_PART_BYTES` or so, or of a single step.

    All parts have the same columns, types and categories; there is at least one, perhaps empty.

    Raises:
      InputError: there is no such table, or no step is committed yet.
    """
    known = tables_of(results)
    if what not in known:
        raise unknown_name("table", what, known)
    if what == "runs":
        return _run_frames(results)
    if what == "spikes":
        return _spike_frames(results)
    return _node_frames(results, what, features)


def _first_group(results: Records) -> Records:
    for group in splitting.groups_of(results):
        return group
    raise InputError(f"{results.path} holds no step yet: wait for its first steps.")


def _measured(results: Records) -> tuple[str, ...]:
    return tuple(getattr(results, "measured", ()))


def _node_tables(group: Records) -> dict[str, Callable[[Any], xr.Dataset]]:
    """The tables that are nodes of a record, and what opens each."""

    def of_probe(updates: bool) -> Callable[[Any], xr.Dataset]:
        # Blocks and layer inputs have nothing to share a row for.
        def node(group: Any) -> xr.Dataset:
            names = [n for n, v in group.probe.items() if ("site" not in v.dims) == updates]
            return group.probe[names]

        return node

    return {
        "train": lambda group: group.train,
        "evaluation": lambda group: group.evaluation,
        "reference": lambda group: group.reference,
        "probe": of_probe(updates=False),
        "updates": of_probe(updates=True),
    } | {name: lambda group, name=name: group.measurement(name) for name in _measured(group)}


@dataclass(frozen=True)
class _Shape:
    """What all parts of a table share.

    Attributes:
      labels: dimensions of the runs and their values, in the record's order.
      inner: further dimensions but feature, and their values.
      variables: names and types.
      of_features: names of those with a value per feature.
    """

    labels: dict[str, list[Any]]
    inner: dict[str, list[Any]]
    variables: dict[str, np.dtype[Any]]
    of_features: frozenset[str]


def _labels(results: Records) -> dict[str, list[Any]]:
    return {dim: results.runs[dim].values.tolist() for dim in run_dims(results)}


def _shape(results: Records, nodes: Sequence[xr.Dataset]) -> _Shape:
    labels = _labels(results)
    inner: dict[str, list[list[Any]]] = {}
    variables: dict[str, np.dtype[Any]] = {}
    of_features: set[str] = set()
    for node in nodes:
        variables |= {str(name): each.dtype for name, each in node.items() if name not in variables}
        of_features |= {str(name) for name, each in node.items() if "feature" in each.dims}
        for dim in ("block", "site", "multiple"):
            if any(dim in each.dims for each in node.values()):
                inner.setdefault(dim, []).append(node[dim].values.tolist())
    labels_of = {dim: merge_sites(each) for dim, each in inner.items()}
    # Stores list their arrays in any order.
    return _Shape(labels, labels_of, dict(sorted(variables.items())), frozenset(of_features))


def _node_frames(results: Records, what: str, features: bool) -> Iterator[pd.DataFrame]:
    opened = _node_tables(results)[what]
    groups = list(splitting.groups_of(results))
    nodes = [opened(group) for group in groups]
    shape = _shape(results, nodes)
    for group, node in zip(groups, nodes, strict=True):
        n_steps = node.sizes["step"]
        at_once = _steps_at_once(node, features)
        # A table without a step has its columns all the same.
        for first in range(0, max(1, n_steps), at_once):
            rows = node.isel(step=slice(first, first + at_once)).load()
            yield _frame(rows, group.runs["diverged_at"], shape, features)


def _steps_at_once(node: xr.Dataset, features: bool) -> int:
    """Steps of a node whose rows fit in a part, in whole stored chunks if one does."""
    n_steps = max(1, node.sizes["step"])
    n_bytes = node.nbytes / n_steps * _COPIES
    if features or "feature" not in node.sizes:
        n_rows = np.prod([n for dim, n in node.sizes.items() if dim != "step"])
        # A position and a label along every dimension.
        n_bytes += n_rows * 16 * len(node.sizes)
    at_once = max(1, int(splitting.MAX_PART_BYTES / n_bytes))
    chunks = next(iter(node.values())).encoding.get("preferred_chunks", {})
    stored = chunks.get("step", 1)
    return max(at_once // stored * stored, min(at_once, stored))


def _frame(
    rows: xr.Dataset, diverged_at: xr.DataArray, shape: _Shape, features: bool
) -> pd.DataFrame:
    """Rows of some steps of a node as a frame; see `table`."""
    dims = ["step", *shape.labels, *shape.inner]
    if features and "feature" in rows.sizes:
        dims.append("feature")
    n_dims = {dim: rows.sizes[dim] for dim in dims}
    values: dict[str, np.ndarray] = {}
    for name, dtype in shape.variables.items():
        percentiles = name in shape.of_features and not features
        if name not in rows:
            names = [f"{name}_p{q}" for q in PERCENTILES] if percentiles else [name]
            values |= {each: np.full(tuple(n_dims.values()), np.nan, dtype) for each in names}
        elif percentiles:
            over = rows[name].transpose(..., "feature")
            for q, found in zip(PERCENTILES, _over_features(over.values), strict=True):
                values[f"{name}_p{q}"] = _spread(found, over.dims[:-1], n_dims)
        else:
            values[name] = _spread(rows[name].values, rows[name].dims, n_dims)
    kept = np.zeros(tuple(n_dims.values()), bool)
    for each in values.values():
        kept |= ~np.isnan(each)
    if not shape.inner:
        # The step at which a run diverged is part of it, even if nothing there is a number.
        at = diverged_at.transpose(*shape.labels).values
        kept |= rows["step"].values.reshape(-1, *[1] * at.ndim) == at
    found = dict(zip(dims, np.nonzero(kept), strict=True))
    columns: dict[str, Any] = {
        dim: _categorical(found[dim], rows[dim].values.tolist(), known)
        for dim, known in shape.labels.items()
    }
    columns["step"] = rows["step"].values[found["step"]].astype(np.int64)
    columns |= {
        dim: _categorical(found[dim], rows[dim].values.tolist(), known)
        for dim, known in shape.inner.items()
    }
    if "feature" in found:
        columns["feature"] = found["feature"].astype(np.int32)
    return pd.DataFrame(columns | {name: each[kept] for name, each in values.items()})


def _spread(values: np.ndarray, dims: Any, n_dims: dict[str, int]) -> np.ndarray:
    """`values` along all dimensions of a table's rows; repeated along those it does not have."""
    present = [dim for dim in n_dims if dim in dims]
    ordered = values.transpose([dims.index(dim) for dim in present])
    extent = [n if dim in dims else 1 for dim, n in n_dims.items()]
    return np.broadcast_to(ordered.reshape(extent), tuple(n_dims.values()))


def _over_features(values: np.ndarray) -> np.ndarray:
    """`PERCENTILES` of ``values[..., D]`` over the features that are not NaN, ``[3, ...]``."""
    rows = np.sort(values.reshape(-1, values.shape[-1]).astype(np.float64), axis=1)
    n_features = np.sum(~np.isnan(rows), axis=1)
    result = np.full((len(PERCENTILES), len(rows)), np.nan, values.dtype)
    # NaN sorts behind the numbers; rows with as many features, as one site has, go together.
    for n in np.unique(n_features[n_features > 0]):
        alike = n_features == n
        with np.errstate(invalid="ignore"):
            result[:, alike] = np.percentile(rows[alike, :n], PERCENTILES, axis=1)
    return result.reshape(len(PERCENTILES), *values.shape[:-1])


def _categorical(positions: Any, labels: list[Any], known: list[Any]) -> pd.Categorical:
    """The label at each position; all parts of a table have the `known` ones for categories."""
    codes = np.array([known.index(label) for label in labels], np.int64)
    return pd.Categorical.from_codes(codes[positions], categories=_index(known))


def _index(known: list[Any]) -> pd.Index:
    return pd.Index(np.array(known, object) if isinstance(known[0], str) else known)


def _run_frames(results: Records) -> Iterator[pd.DataFrame]:
    labels = _labels(results)
    sites = splitting.common_sites(results) if has_moments(_first_group(results).reference) else []
    for part in splitting.parts(results, splitting.MAX_PART_BYTES):
        site = None
        if has_moments(part.reference):
            # Raises where the groups have none in common.
            site = sites[-1] if sites else deepest_site(results)
        runs = run_table(part, site=site)
        runs["cause"], runs["outcome"] = run_divergence_cause(part), run_outcome(runs)
        runs["first_nonfinite"] = run_first_nonfinite(part)
        yield _run_frame(runs.transpose(*labels), labels)


def _run_frame(runs: xr.Dataset, labels: dict[str, list[Any]]) -> pd.DataFrame:
    found = np.indices(tuple(runs.sizes[dim] for dim in labels)).reshape(len(labels), -1)
    columns: dict[str, Any] = {
        dim: _categorical(found[i], runs[dim].values.tolist(), known)
        for i, (dim, known) in enumerate(labels.items())
    }
    columns |= {str(name): each.values.ravel() for name, each in runs.items()}
    for name, known in (("cause", CAUSES), ("outcome", OUTCOMES)):
        columns[name] = pd.Categorical(columns[name].tolist(), categories=_index(list(known)))
    return pd.DataFrame(columns)


def _spike_frames(results: Records) -> Iterator[pd.DataFrame]:
    labels = _labels(results)
    sites: list[str] = []
    for group in splitting.groups_of(results):
        known = group.probe["site"].values.tolist() if "site" in group.probe.coords else []
        sites = merge_sites([sites, known])
    for part in splitting.parts(results, splitting.MAX_PART_BYTES):
        spikes = [spike for run in spikes_of(part) for spike in run.spikes]
        events = [spike.event for spike in spikes]
        columns: dict[str, Any] = {
            dim: pd.Categorical([spike.run[dim] for spike in spikes], categories=_index(known))
            for dim, known in labels.items()
        }
        first = [spike.movers[0].site if spike.movers else None for spike in spikes]
        columns |= {
            "onset": np.array([event.onset for event in events], np.int64),
            "peak": np.array([event.peak for event in events], np.int64),
            "level": np.array([event.level for event in events], np.float64),
            "height": np.array([event.height for event in events], np.float64),
            "end": pd.array([event.end for event in events], dtype="Int64"),
            "recovery_steps": np.array([event.recovery_steps for event in events], np.float64),
            "first_mover": pd.Categorical(first, categories=pd.Index(np.array(sites, object))),
            "lead_steps": np.array([spike.lead_steps for spike in spikes], np.float64),
        }
        yield pd.DataFrame(columns)
