from __future__ import annotations

import numpy as np
import pytest
from fake_records import blank, diverge, drop_site

from ici.analysis.records import select
from ici.analysis.shifts import deepest_site, reference_shift, shared_sites
from ici.errors import InputError

ONE = {"norms": ("batch",), "lrs": (0.1,), "seeds": (0,)}
RATIOS = ("mean_shift", "scale_shift", "w2", "w2_relative", "kl", "kl_symmetric")


def one_run(dataset):
    return dataset.isel(norm=0, depth=0, lr=0, seed=0)


def test_known_answer():
    """From mean 0 and std 1 to mean 2 and std 3, in closed form."""
    records = blank(**ONE)
    at = {"step": 20, "site": "head"}
    records.reference["mean"].loc[at] = 2.0
    records.reference["std"].loc[at] = 3.0
    shift = one_run(reference_shift(records)).sel(at)
    kl = np.log(3) + 5 / 18 - 0.5
    reverse = -np.log(3) + (9 + 4) / 2 - 0.5
    expected = {
        "mean_shift": 2.0,
        "scale_shift": np.log(3),
        "w2": np.sqrt(8),
        "w2_relative": np.sqrt(8),
        "kl": kl,
        "kl_symmetric": kl + reverse,
        "dead_features": 0.0,
    }
    for name, value in expected.items():
        # float32 with a logarithm and a division: a few units in the last place.
        np.testing.assert_allclose(shift[name], value, rtol=2e-6, atol=0, err_msg=name)


def test_an_unchanged_network_has_exactly_no_shift():
    records = blank()
    rng = np.random.default_rng(0)
    for name in ("mean", "std"):
        variable = records.reference[name]
        first = rng.lognormal(size=variable.isel(step=0).shape).astype(np.float32)
        variable[:] = np.broadcast_to(first[:, :, :, :, None], variable.shape)
    for against in ("initial", "previous", 10):
        shift = reference_shift(records, against)
        start = 1 if against == "previous" else 0
        for name in shift:
            assert (shift[name].isel(step=slice(start, None)) == 0).all(), name


def test_aggregates_agree_with_numpy_in_float64():
    records = blank(width=6, norms=("none", "batch"), seeds=(0, 1))
    rng = np.random.default_rng(0)
    for name in ("mean", "std"):
        variable = records.reference[name]
        variable[:] = rng.lognormal(size=variable.shape)
    mean = records.reference["mean"].values.astype(np.float64)
    std = records.reference["std"].values.astype(np.float64)
    z = (mean - mean[..., :1, :, :]) / std[..., :1, :, :]
    log = np.log(std / std[..., :1, :, :])
    shift = reference_shift(records)
    close = {"rtol": 1e-5, "atol": 1e-6}  # float32 inputs and sums of six terms
    np.testing.assert_allclose(shift["mean_shift"], np.sqrt((z**2).mean(-1)), **close)
    np.testing.assert_allclose(shift["scale_shift"], np.sqrt((log**2).mean(-1)), **close)
    np.testing.assert_allclose(shift["mean_shift_p50"], np.median(np.abs(z), -1), **close)
    np.testing.assert_allclose(shift["mean_shift_p95"], np.percentile(abs(z), 95, -1), **close)


def test_against_previous_and_against_a_step():
    records = blank(**ONE)
    for step, mean in ((0, 0.0), (10, 1.0), (20, 5.0)):
        records.reference["mean"].loc[{"step": step}] = mean
    shifts = {
        against: one_run(reference_shift(records, against))["mean_shift"].sel(site="head").values
        for against in ("initial", "previous", 10)
    }
    np.testing.assert_array_equal(shifts["initial"], [0, 1, 5])
    np.testing.assert_array_equal(shifts["previous"], [np.nan, 1, 4])
    np.testing.assert_array_equal(shifts[10], [1, 0, 4])


def test_runs_are_compared_with_themselves():
    records = blank()
    for i, seed in enumerate((0, 1, 2)):
        records.reference["mean"].loc[{"seed": seed}] = float(i)
    for against in ("initial", "previous"):
        shift = reference_shift(records, against)["mean_shift"].isel(step=slice(1, None))
        assert (shift == 0).all()


def test_filling_features_and_missing_sites_are_left_out():
    narrow, full = blank(**ONE, width=3), blank(**ONE, width=5)
    for records in (narrow, full):
        records.reference["mean"].loc[{"step": 20}] = 2.0
        records.reference["std"].loc[{"step": 20}] = 3.0
    for name in ("mean", "std"):
        full.reference[name][..., 3:] = np.nan
    left, right = reference_shift(narrow), reference_shift(full)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    drop_site(full, "batch", "blocks/1/linear")
    shift = reference_shift(full)
    assert all(shift[name].sel(site="blocks/1/linear").isnull().all() for name in shift)
    assert shift["mean_shift"].sel(site="head").notnull().all()


def test_dead_features_are_counted_and_left_out():
    records = blank(**ONE)
    records.reference["mean"].loc[{"step": 20}] = 1.0
    records.reference["mean"][..., 0] = 7.0
    records.reference["std"][..., 0] = 0.0
    end = one_run(reference_shift(records)).sel(step=20, site="head")
    assert float(end["dead_features"]) == 1 and float(end["mean_shift"]) == 1
    records.reference["std"].loc[{"step": 20, "site": "head"}] = 0.0
    end = one_run(reference_shift(records)).sel(step=20, site="head")
    assert float(end["dead_features"]) == 4
    assert all(np.isnan(end[name]) for name in RATIOS)


def test_a_feature_that_turns_nan_is_not_filling():
    records = blank(**ONE)
    records.reference["mean"].loc[{"step": 20, "site": "head"}][..., 1] = np.nan
    shift = one_run(reference_shift(records)).sel(site="head")
    assert np.isnan(shift["mean_shift"].sel(step=20))
    assert float(shift["mean_shift"].sel(step=10)) == 0
    assert float(shift["dead_features"].sel(step=10)) == 0


def test_nothing_after_divergence():
    records = blank()
    run = {"norm": "none", "lr": 0.1, "seed": 1}
    diverge(records, 10, **run)
    # What a record may still hold behind the end must not count.
    records.reference["mean"].loc[run | {"step": 20}] = 3.0
    records.reference["std"].loc[run | {"step": 20}] = 1.0
    shift = reference_shift(records)["mean_shift"].isel(depth=0).sel(run)
    assert shift.sel(step=[0, 10]).notnull().all() and shift.sel(step=20).isnull().all()


def test_chunks_have_no_seams(monkeypatch: pytest.MonkeyPatch):
    records = blank(seeds=(0, 1, 2, 3, 4))
    rng = np.random.default_rng(0)
    records.reference["mean"][:] = rng.normal(size=records.reference["mean"].shape)
    whole = reference_shift(records, "previous")
    monkeypatch.setattr("ici.analysis.shifts._CHUNK_ROWS", 7)
    parts = reference_shift(records, "previous")
    for name in whole:
        # Another shape may be compiled to another order of summation.
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6, atol=1e-7)


def test_further_dimensions_and_dimension_order():
    records = blank(extra={"weight_decay": (0.0, 0.1)})
    records.reference["mean"].loc[{"weight_decay": 0.1, "step": 20}] = 2.0
    shift = reference_shift(records)["mean_shift"]
    assert shift.dims == ("norm", "depth", "lr", "weight_decay", "seed", "step", "site")
    assert (shift.sel(weight_decay=0.1, step=20) == 2).all()
    assert (shift.sel(weight_decay=0.0) == 0).all()
    shuffled = blank(extra={"weight_decay": (0.0, 0.1)})
    shuffled.reference = records.reference.transpose("site", "step", "seed", ...)
    assert reference_shift(shuffled)["mean_shift"].identical(shift)


def test_only_the_sites_asked_for():
    shift = reference_shift(blank(), sites=["head"])
    assert shift["site"].values.tolist() == ["head"]
    with pytest.raises(InputError, match="'tail'.*head"):
        reference_shift(blank(), sites=["tail"])


@pytest.mark.parametrize("against", ["first", 7])
def test_bad_reference(against):
    with pytest.raises(InputError, match="0, 10, 20"):
        reference_shift(blank(), against)


def test_the_deepest_site_is_one_that_all_have():
    records = blank()
    assert deepest_site(records) == "head"
    drop_site(records, "none", "head")
    assert deepest_site(records) == "blocks/1/linear"
    assert shared_sites(records) == ["blocks/0/linear", "blocks/1/linear"]
    assert deepest_site(select(records, norm=["batch"])) == "head"
    for site in ("blocks/0/linear", "blocks/1/linear"):
        drop_site(records, "batch", site)
    with pytest.raises(InputError, match="no site in common"):
        deepest_site(records)


def test_a_group_that_has_not_started_has_no_say_in_the_sites():
    records = blank()
    for name in ("mean", "std"):
        records.reference[name].loc[{"norm": "none"}] = np.nan
    assert shared_sites(records)[-1] == "head"
