"""A record in parts that fit in memory: an experiment of ten thousand runs is read like one of ten.

Analyses take any part as they take a whole record. What they say of single runs does not depend on
how a record was split; what compares norms or depths comes after, from the small tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ici.analysis.records import NODES, Records, Selection, check_recorded, select
from ici.errors import InputError
from ici.store.results import Results

MAX_PART_BYTES = 2**28


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


def in_memory(results: Records) -> Selection:
    """The same runs with every array read, once."""
    return Selection(
        **{node: getattr(results, node).load() for node in NODES},
        experiment=results.experiment,
        path=results.path,
        task=results.task,
    )


def common_sites(results: Records) -> list[str]:
    """Sites that every group has, in execution order; found without reading any moments.

    A record in memory that mixes groups is asked through its moments instead.
    """
    if not isinstance(results, Results):
        from ici.analysis.shifts import shared_sites

        return shared_sites(results)
    shared: list[str] | None = None
    for group in groups_of(results):
        node = group.reference if "site" in group.reference.dims else group.probe
        if "site" not in node.dims:
            return []
        names = node["site"].values.tolist()
        shared = names if shared is None else [site for site in shared if site in names]
    return shared or []
