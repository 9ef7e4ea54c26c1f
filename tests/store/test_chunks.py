"""Chunks of the record are bounded, and writes fill them whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from ici.store.chunks import MAX_CHUNK_BYTES, chunk_shape
from ici.store.manifest import GroupEntry, Manifest
from ici.store.results import open_results
from ici.store.writer import GroupWriter, Layout, Node, Variable

SIZES = st.integers(1, 60)


@given(
    lanes=st.lists(SIZES, min_size=1, max_size=3),
    n_rows=SIZES,
    inner=st.lists(SIZES, max_size=2),
    most=st.integers(4, 1 << 20),
)
def test_no_chunk_is_too_large_and_none_is_cut_needlessly(lanes, n_rows, inner, most):
    shape = chunk_shape(tuple(lanes), n_rows, tuple(inner), 4, most)
    full = (*lanes, n_rows, *inner)
    assert 4 * math.prod(shape) <= most
    assert all(1 <= part <= whole for part, whole in zip(shape, full, strict=True))
    # Outer axes are cut first: in front of the last cut one, nothing is left to cut, except that
    # parts are equal.
    cut = [i for i, (part, whole) in enumerate(zip(shape, full, strict=True)) if part < whole]
    assert all(shape[i] == 1 for i in cut[:-1])
    assert n_rows % shape[len(lanes)] == 0
    if cut:
        # The last cut axis has as few parts as fit.
        i = cut[-1]
        fewer = math.ceil(full[i] / shape[i]) - 1
        parts = range(1, fewer + 1) if i != len(lanes) else ()
        bytes_of = 4 * math.prod(shape) // shape[i]
        assert all(bytes_of * math.ceil(full[i] / n) > most for n in parts)


@pytest.mark.parametrize(
    ("lanes", "n_rows", "inner", "chunk"),
    [
        # An experiment of 24 runs, 21 sites of 128 features: as a whole.
        ((8, 1, 3), 10, (21, 128), (8, 1, 3, 10, 21, 128)),
        # 10,000 runs: 5.12 MB per run and chunk of steps.
        ((10, 1, 1000), 10, (100, 128), (1, 1, 32, 10, 100, 128)),
        # Their losses fit as a whole.
        ((10, 1, 1000), 100, (), (10, 1, 1000, 100)),
        # One large network: rows of 6.55 MB.
        ((1, 1, 1), 10, (200, 8192), (1, 1, 1, 2, 200, 8192)),
        # One row alone is too large: its sites are cut.
        ((1, 1, 1), 7, (400, 16384), (1, 1, 1, 1, 200, 16384)),
    ],
)
def test_known_sizes(lanes, n_rows, inner, chunk):
    assert chunk_shape(lanes, n_rows, inner, 4) == chunk


def lay(folder, lanes, steps, rows, sites, features):
    axes = {"lr": tuple(range(lanes[0])), "seed": tuple(range(lanes[1]))}
    names = tuple(f"site{i}" for i in range(sites))
    mean = {"mean": Variable(("site", "feature"))}
    nodes = {
        "train": Node(np.arange(steps), rows, {"loss": Variable()}),
        "probe": Node(np.arange(steps), rows, mean),
    }
    manifest = Manifest({"norm": ["none"], "depth": [2]}, "f", "d", {})
    layout = Layout(axes, names, (features,) * sites, nodes)
    return GroupWriter(folder, manifest, "norm=none,depth=2", GroupEntry("none", 2, {}), layout)


def test_a_large_group_comes_back_whole_and_a_run_is_read_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("ici.store.writer.MAX_CHUNK_BYTES", 4096)
    writer = lay(tmp_path, (3, 7), 12, 4, 5, 16)
    values = np.random.default_rng(0).normal(size=(21, 12, 5, 16)).astype(np.float32)
    for first in range(0, 12, 4):
        writer.write("probe", {"mean": values[:, first : first + 4]})
    writer.commit()
    probe = open_results(tmp_path).probe["mean"]
    assert np.array_equal(probe.values.reshape(21, 12, 5, 16), values)
    stored = writer.arrays["probe"]["mean"]
    assert stored.chunks == (1, 3, 4, 5, 16)
    # Only the chunks of one run are there; the others would be missed if they were read.
    for chunk in (tmp_path / "records/norm=none,depth=2/probe/mean/c").rglob("*"):
        if chunk.is_file() and chunk.parts[-5:-3] != ("1", "1"):
            chunk.write_bytes(b"damaged")
    one = probe.sel(lr=1, seed=4, norm="none", depth=2)
    assert np.array_equal(one.values, values[7 + 4])
    with pytest.raises(Exception, match=r"(?i)crc32c|checksum"):
        probe.sel(lr=0, seed=4).values  # noqa: B018


def test_a_write_never_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("ici.store.writer.MAX_CHUNK_BYTES", 1024)
    writer = lay(tmp_path, (1, 3), 20, 8, 5, 16)
    # Three rows would fit, and the third chunk would straddle two writes.
    assert writer.arrays["probe"]["mean"].chunks == (1, 1, 2, 5, 16)

    async def read(*args, **kwargs):
        raise AssertionError("a chunk was read to be written again")

    monkeypatch.setattr(zarr.storage.LocalStore, "get", read)
    values = np.ones((3, 20, 5, 16), np.float32)
    for first in range(0, 20, 8):
        writer.write("probe", {"mean": values[:, first : first + 8]})


def test_small_experiments_keep_one_chunk_for_all_runs(tmp_path):
    writer = lay(tmp_path, (8, 3), 100, 10, 21, 128)
    assert writer.arrays["probe"]["mean"].chunks == (8, 3, 10, 21, 128)
    assert MAX_CHUNK_BYTES >= 8 * 3 * 10 * 21 * 128 * 4
