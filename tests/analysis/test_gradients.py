from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from fake_records import blank, diverge
from scipy import stats

from ici.analysis.digest import digest
from ici.analysis.gradients import (
    GRADIENT_NORM,
    gradient_growth,
    growth_per_layer,
    repeated_blocks,
)
from ici.errors import InputError

BLOCKS = ["embed", "blocks/0/linear", "blocks/1/linear", "blocks/2/linear", "head"]


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.21, 3.0])
def test_an_exponential_is_found_exactly(factor: float):
    # Input first: gradients grow by the factor from each layer to the one below.
    norms = 7.0 * factor ** np.arange(9)[::-1]
    growth, r2 = growth_per_layer(norms)
    assert growth == pytest.approx(factor, rel=1e-12) and r2 == pytest.approx(1.0, abs=1e-12)


def test_a_noisy_one_is_the_least_squares_line():
    norms = np.random.default_rng(0).lognormal(size=(4, 7))
    growth, r2 = growth_per_layer(norms)
    for i, each in enumerate(norms):
        line = stats.linregress(np.arange(7), np.log(each))
        assert growth[i] == pytest.approx(np.exp(-line.slope))
        assert r2[i] == pytest.approx(line.rvalue**2)


@pytest.mark.parametrize("unknown", [np.nan, np.inf, 0.0, -1.0])
def test_layers_without_a_norm_are_left_out_and_keep_their_places(unknown: float):
    norms = 2.0 ** np.arange(8)[::-1]
    norms[[0, 3]] = unknown
    growth, r2 = growth_per_layer(norms)
    assert growth == pytest.approx(2.0) and r2 == pytest.approx(1.0)
    norms[:6] = unknown
    assert np.isnan(growth_per_layer(norms)).all()


def test_gradients_that_bend_have_a_low_r2():
    there_and_back = np.exp(np.abs(np.arange(-4.0, 5.0)))
    growth, r2 = growth_per_layer(there_and_back)
    assert growth == pytest.approx(1.0) and r2 < 1e-12
    bent = np.exp(np.arange(9.0) ** 2 / 8)
    assert 0.8 < growth_per_layer(bent)[1] < 0.98


def test_fewer_than_three_layers_have_no_line():
    for bad in (1.0, [1.0, 2.0], np.ones((4, 2))):
        with pytest.raises(InputError, match="three or more layers"):
            growth_per_layer(bad)


@pytest.mark.parametrize(
    ("blocks", "chosen"),
    [
        (BLOCKS, [1, 2, 3]),
        (["a/0", "b/0", "a/1", "b/1", "a/2", "b/2"], [0, 2, 4]),
        (["a/0", "b/0", "b/1", "a/1", "b/2", "b/3", "a/2"], [1, 2, 4, 5]),
        (["conv1", "conv2", "conv3", "head"], [0, 1, 2]),
        (["a/0", "a/1", "head"], []),
        (["one", "two", "three"], []),
        ([], []),
    ],
)
def test_which_blocks_repeat(blocks: list[str], chosen: list[int]):
    assert repeated_blocks(blocks) == chosen


def norms_of(factor: xr.DataArray) -> xr.DataArray:
    """Repeated blocks grow by `factor`; the first and the last are of another kind."""
    power = xr.DataArray([50.0, 2.0, 1.0, 0.0, -50.0], {"block": BLOCKS}, ["block"])
    return factor**power


def test_growth_of_the_repeated_blocks_by_label():
    factor = xr.DataArray([[1.0, 2.0], [0.5, 3.0]], {"lr": [0.1, 1.0], "step": [0, 5]})
    found = gradient_growth(norms_of(factor).transpose("block", "step", "lr"))
    xr.testing.assert_allclose(found["growth"].transpose("lr", "step"), factor)
    np.testing.assert_allclose(found["r2"], 1.0)
    assert found.attrs["blocks"] == BLOCKS[1:4] and set(found.dims) == {"lr", "step"}


def test_too_few_repeat():
    shallow = norms_of(xr.DataArray(2.0)).isel(block=[0, 1, 2, 4])
    with pytest.raises(InputError, match="no three of a kind"):
        gradient_growth(shallow)


def recorded(factors: dict[int, float]):
    """A record of one setting whose gradients grow by a factor of the seed at every step."""
    records = blank(norms=("none",), lrs=(0.1,), seeds=tuple(factors))
    like = records.probe["mean"].isel(site=0, feature=0, drop=True)
    seed = xr.DataArray(list(factors.values()), {"seed": list(factors)}, ["seed"])
    norms = norms_of(seed) * xr.ones_like(like)
    records.probe[GRADIENT_NORM] = norms.transpose(*like.dims, "block").astype(np.float32)
    return records


def test_a_digest_holds_the_median_over_the_running_seeds():
    records = recorded({0: 1.5, 1: 2.0, 2: 4.0})
    diverge(records, 5, norm="none", lr=0.1, seed=2)
    found = digest(records).gradients
    assert found is not None
    growth = found["growth"].squeeze(["norm", "depth", "lr"])
    # The gradients of the refused step 5 are not those of a running seed.
    np.testing.assert_allclose(growth, [2.0, 1.75, 1.75, 1.75], rtol=1e-6)
    norm = found["gradient_norm"].squeeze(["norm", "depth", "lr"]).sel(block=BLOCKS[1])
    np.testing.assert_allclose(norm, [4.0, 3.125, 3.125, 3.125], rtol=1e-6)


def test_no_growth_of_a_shallow_network_but_its_norms():
    records = recorded({0: 2.0})
    records.probe = records.probe.isel(block=[0, 1, 2, 4])
    found = digest(records).gradients
    assert found is not None and "growth" not in found and found.sizes["block"] == 4


def test_all_diverged_at_once():
    records = recorded({0: 2.0, 1: 2.0})
    for seed in (0, 1):
        diverge(records, 0, norm="none", lr=0.1, seed=seed)
    found = digest(records).gradients
    assert found is not None
    assert found["growth"].isnull().all() and found["gradient_norm"].isnull().all()
