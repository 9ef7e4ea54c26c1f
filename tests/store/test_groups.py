"""One group of a record: labelled as in the whole, and read only where it is sliced."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from tabled import SITES, tabled

from ici.errors import InputError
from ici.store.manifest import GroupEntry, Manifest
from ici.store.results import Results, open_results
from ici.store.writer import PER_FEATURE, GroupWriter, Layout, Node, Variable

NODES = ("train", "probe", "reference", "evaluation", "runs")
LRS, SEEDS, N_SITES, WIDTH, STEPS = tuple(0.1 / 2**i for i in range(8)), (0, 1, 2, 3), 16, 512, 2000
N_RUNS, STEPS_OF_CHUNK = len(LRS) * len(SEEDS), 4


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return tabled(tmp_path_factory.mktemp("groups") / "record")


@pytest.mark.parametrize("node", NODES)
def test_a_group_is_its_part_of_the_whole(results, node):
    assert results.groups == [("none", 2), ("batch", 2)]
    for norm, depth in results.groups:
        alone = getattr(results.group(norm, depth), node)
        whole = getattr(results, node).sel(norm=[norm], depth=[depth])
        if "site" in alone.dims:
            assert alone["site"].values.tolist() == list(SITES[norm])
            # Another group's features may be more: this one's padding ends sooner.
            whole = whole.sel(site=alone["site"]).isel(feature=slice(alone.sizes["feature"]))
        if "block" in alone.dims:
            whole = whole.sel(block=alone["block"])
        xr.testing.assert_equal(alone, whole.transpose(*alone.dims))


@pytest.mark.parametrize(
    "place",
    [
        {"norm": 0},
        {"depth": 0, "norm": [0, 0]},
        {"norm": slice(0, 0)},
        {"depth": -1, "site": [2, 0]},
        {"lr": [1, 0], "seed": 1, "step": slice(None, None, -1)},
        {"lr": slice(1, 2), "seed": [2, 0], "feature": slice(0, None, 3)},
        {
            "norm": xr.DataArray([0, 0], dims="pair"),
            "lr": xr.DataArray([0, 1], dims="pair"),
            "seed": xr.DataArray([2, 0], dims="pair"),
        },
    ],
    ids=str,
)
def test_a_slice_is_that_of_the_array(results, place):
    unread = results.group("batch", 2).reference["mean"]
    loaded = results.group("batch", 2).reference["mean"].load()
    xr.testing.assert_identical(unread.isel(place), loaded.isel(place))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Results:
    """Two groups of 2 GB each, of which one chunk is on disk, and damaged; the rest was empty."""
    folder = tmp_path_factory.mktemp("large")
    manifest = Manifest({"norm": ["none", "batch"], "depth": [2]}, "f", "d", {}, status="done")
    lanes = {"lr": LRS, "weight_decay": (0.0,), "seed": SEEDS}
    nodes = {
        "train": Node(np.arange(STEPS), 500, {"loss": Variable()}),
        "probe": Node(np.arange(STEPS), STEPS_OF_CHUNK, {"mean": Variable(PER_FEATURE)}),
    }
    sites = tuple(f"blocks/{i}" for i in range(N_SITES))
    layout = Layout(lanes, sites, (WIDTH,) * N_SITES, nodes)
    for norm in ("none", "batch"):
        entry = GroupEntry(norm, 2, {})
        writer = GroupWriter(folder, manifest, f"norm={norm},depth=2", entry, layout)
        rows = np.ones((N_RUNS, STEPS_OF_CHUNK, N_SITES, WIDTH), np.float32)
        writer.write("probe", {"mean": rows})
        writer.finish()
    for path in (folder / "records").rglob("probe/mean/c/**/*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
    return open_results(folder)


def test_a_slice_reads_its_own_chunks(large):
    mean = large.group("none", 2).probe["mean"]
    assert mean.nbytes == 4 * N_RUNS * STEPS * N_SITES * WIDTH > 2e9
    behind = slice(STEPS_OF_CHUNK, 2 * STEPS_OF_CHUNK)
    assert np.isnan(mean.sel(lr=LRS[1]).isel(step=behind).values).all()
    with pytest.raises(ValueError, match=r"(?i)crc|checksum"):
        mean.sel(lr=LRS[1]).isel(step=slice(1)).load()


def test_memory_is_that_of_the_slice(large):
    tracemalloc.start()
    try:
        mean = large.group("batch", 2).probe["mean"]
        opened = tracemalloc.get_traced_memory()[1]
        some = mean.sel(lr=LRS[0]).isel(step=slice(40, 140)).load()
        sliced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    chunk = 4 * N_RUNS * STEPS_OF_CHUNK * N_SITES * WIDTH
    # Labels and metadata; the array is 2 GB.
    assert opened < 4 * 2**20
    # Zarr has ten chunks under way at once.
    assert some.nbytes <= sliced < opened + 2 * some.nbytes + 10 * chunk


def test_another_group_is_refused_with_those_there_are(results):
    with pytest.raises(InputError, match=r"no group norm layer depth 2: it has norm none depth 2"):
        results.group("layer", 2)


def test_a_group_without_a_step_is_none_yet(tmp_path):
    results = tabled(tmp_path, status="running", committed=0)
    assert results.groups == []
    with pytest.raises(InputError, match="it has none yet"):
        results.group("none", 2)
