"""Taps as rows of a record."""

from __future__ import annotations

from typing import Any

import numpy as np

from ici.store.results import padded
from ici.store.writer import PER_FEATURE, Layout


def by_site(layout: Layout, labelled: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays ``[n_lanes, n_rows, site, ...]`` of ``{variable: {site: array}}``."""
    widest = max(layout.n_features)
    rows = {}
    for name, sites in labelled.items():
        if not isinstance(sites, dict):  # of blocks, not of sites
            rows[name] = sites
            continue
        # Cheap statistics are on both nodes, the others on the reference batch only.
        variables = layout.nodes["probe"].variables | layout.nodes["reference"].variables
        if variables[name].dims == PER_FEATURE:
            rows[name] = padded(sites, layout.sites, widest)
        else:
            one_each = {site: values[..., None] for site, values in sites.items()}
            rows[name] = padded(one_each, layout.sites, 1)[..., 0]
    return rows
