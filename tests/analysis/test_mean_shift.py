"""The one-pass mean shift is that of the full aggregates."""

from __future__ import annotations

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge, drop_site

from ici.analysis.shifts import mean_shift, site_shift
from ici.errors import InputError


def messy(seed: int) -> FakeRecords:
    """Random moments with dead and filling features, missing sites, ended and unfinished runs."""
    records = blank(width=5, steps=30)
    rng = np.random.default_rng(seed)
    for node in (records.reference, records.probe):
        shape = node["mean"].shape
        node["mean"][:] = rng.normal(0, 3, shape)
        node["std"][:] = rng.lognormal(0, 2, shape) * (rng.random(shape) > 0.2)
        for name in ("mean", "std"):
            node[name].loc[{"site": "blocks/0/linear"}][..., 3:] = np.nan
            # The last measurements of one run are not committed yet.
            node[name].loc[{"norm": "batch", "lr": 0.1, "seed": 2, "step": slice(20, None)}] = (
                np.nan
            )
        # A whole site is dead, and one unit's activation overflowed.
        node["std"].loc[{"norm": "batch", "lr": 0.01, "seed": 0, "site": "head"}] = 0.0
        unit = {"norm": "none", "lr": 0.01, "seed": 1, "site": "head"}
        node["std"].loc[unit][..., 0] = 1.0
        node["mean"].loc[unit | {"step": 20}][..., 0] = np.inf
    drop_site(records, "none", "blocks/1/linear")
    diverge(records, 12, norm="none", lr=0.1, seed=1)
    # A run whose values after its end were not blanked.
    records.runs["diverged_at"].loc[{"norm": "batch", "lr": 0.1, "seed": 0}] = 10
    return records


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("node", ["reference", "probe"])
@pytest.mark.parametrize("against", ["initial", "previous", 10])
def test_it_is_the_aggregates_mean_shift(against, node: str, seed: int):
    records = messy(seed)
    fast = mean_shift(records, getattr(records, node), against)
    full = site_shift(records, getattr(records, node), against)
    for name in ("mean_shift", "dead_features"):
        assert fast[name].dims == full[name].dims and fast[name].dtype == full[name].dtype
        # float32 on both sides; sums of five terms.
        np.testing.assert_allclose(fast[name], full[name], rtol=1e-6, atol=0, err_msg=name)
    assert fast["mean_shift"].isnull().any() and np.isinf(fast["mean_shift"]).any()
    assert (fast["dead_features"] > 0).any()


def test_in_whatever_order_the_record_is_stored():
    records = messy(0)
    expected = mean_shift(records, records.reference, "initial")
    turned = records.reference.transpose("feature", "site", "step", "seed", "lr", "depth", "norm")
    np.testing.assert_array_equal(
        mean_shift(records, turned, "initial")["mean_shift"], expected["mean_shift"]
    )


def test_refusals():
    records = blank()
    with pytest.raises(InputError, match="measured step"):
        mean_shift(records, records.reference, 7)
    with pytest.raises(InputError, match="moments"):
        mean_shift(records, records.reference.drop_vars("std"), "initial")
