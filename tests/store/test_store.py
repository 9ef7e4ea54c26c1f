"""The record: committed rows only, labels, checksums, clear errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ici.errors import InputError
from ici.store.manifest import MANIFEST, GroupEntry, Manifest
from ici.store.results import merge_sites, open_results, padded
from ici.store.writer import GroupWriter, Layout, Node, Variable, check_space

AXES = {"lr": (0.1, 0.2), "weight_decay": (0.0,), "seed": (3, 4, 5)}


def layout(sites=("a", "b"), features=(2, 4)):
    return Layout(
        AXES,
        sites,
        features,
        {
            "train": Node(np.arange(10), 4, {"loss": Variable()}),
            "probe": Node(np.arange(0, 10, 5), 1, {"mean": Variable(("site", "feature"))}),
            "runs": Node(np.array([10]), 1, {"diverged_at": Variable()}),
        },
    )


def manifest(norms=("none",)):
    return Manifest(
        experiment={"norm": list(norms), "depth": [2]},
        fingerprint="f",
        data_digest="d",
        environment={},
    )


def writer(folder, norm="none", record=None, **shape):
    entry = GroupEntry(norm, 2, {})
    record = record or manifest((norm,))
    return GroupWriter(folder, record, f"norm={norm},depth=2", entry, layout(**shape))


def rows(n, start=0):
    """Lane l, step t holds 100 l + t."""
    lanes, steps = np.arange(6)[:, None], np.arange(start, start + n)[None]
    return (100.0 * lanes + steps).astype(np.float32)


def test_rows_come_back_under_their_labels(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(4)})
    record.write("train", {"loss": rows(6, 4)})
    record.commit()
    loss = open_results(tmp_path).train.loss
    assert loss.dims == ("norm", "depth", "lr", "seed", "step")
    # lanes count through lr, weight_decay, seed in this order
    assert loss.sel(norm="none", depth=2, lr=0.2, seed=4, step=7) == 407
    assert loss.sel(norm="none", depth=2, lr=0.1, seed=5, step=0) == 200


def test_only_committed_rows_are_read(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(4)})
    record.commit()
    record.write("train", {"loss": rows(4, 4)})  # the process dies here
    assert open_results(tmp_path).train.sizes["step"] == 4


def test_rewritten_row_does_not_move_the_end(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(1)}, first=0)
    record.write("train", {"loss": rows(1, 50)}, first=0)
    record.commit()
    assert open_results(tmp_path).train.loss.values.ravel().tolist() == [
        50,
        150,
        250,
        350,
        450,
        550,
    ]


def test_finished_group_has_all_steps_and_nan_where_nothing_was_written(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(4)})
    record.finish()
    results = open_results(tmp_path)
    assert results.train.sizes["step"] == 10
    assert np.isnan(results.train.loss.sel(step=slice(4, None))).all()


def test_groups_with_other_sites_and_widths_share_axes(tmp_path):
    record = manifest(("none", "batch"))
    for norm, sites, features in (
        ("none", ("a", "c"), (2, 4)),
        ("batch", ("a", "b", "c"), (2, 3, 3)),
    ):
        group = writer(tmp_path, norm, record, sites=sites, features=features)
        mean = {
            s: np.full((6, 1, d), i, np.float32)
            for i, (s, d) in enumerate(zip(sites, features, strict=True))
        }
        group.write("probe", {"mean": padded(mean, sites, max(features))})
        group.commit()
    mean = open_results(tmp_path).probe["mean"]
    assert mean.site.values.tolist() == ["a", "b", "c"]
    assert mean.norm.values.tolist() == ["none", "batch"]
    assert mean.sizes["feature"] == 4
    at = {"depth": 2, "lr": 0.1, "seed": 3, "step": 0}
    assert np.isnan(mean.sel(at | {"norm": "none", "site": "b"})).all()
    assert mean.sel(at | {"norm": "none", "site": "c"}).values.tolist() == [1] * 4
    np.testing.assert_array_equal(mean.sel(at | {"norm": "batch", "site": "c"}), [2, 2, 2, np.nan])


@pytest.mark.parametrize(
    ("orders", "merged"),
    [
        ([["a", "b"], ["a", "b"]], ["a", "b"]),
        ([["a", "c"], ["a", "b", "c"]], ["a", "b", "c"]),
        ([["0", "1", "2", "h"], ["n", "0", "h"]], ["n", "0", "1", "2", "h"]),
        ([["a", "x", "h"], ["a", "b", "c", "h"]], ["a", "x", "b", "c", "h"]),
    ],
)
def test_merged_sites_keep_every_execution_order(orders, merged):
    assert merge_sites(orders) == merged
    for order in orders:
        assert [site for site in merged if site in order] == order


def test_a_flipped_bit_is_noticed(tmp_path):
    record = writer(tmp_path)
    record.write(
        "train", {"loss": np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)}
    )
    record.finish()
    chunk = next((tmp_path / "records").rglob("train/loss/c/**/0"))
    if chunk.is_dir():
        chunk = next(path for path in chunk.rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(Exception, match=r"(?i)crc32c|checksum"):
        open_results(tmp_path).train.loss.load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no manifest"),
        ("{not json", "damaged"),
        ("[]", "schema None"),
        (json.dumps({"schema": 99}), "schema 99.*reads schema 3"),
    ],
)
def test_unreadable_manifest_is_told_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        open_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_manifest_is_replaced_whole(tmp_path, monkeypatch):
    manifest().write(tmp_path)
    before = (tmp_path / MANIFEST).read_text()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ici.store.places.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        manifest(("batch",)).write(tmp_path)
    assert (tmp_path / MANIFEST).read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_too_little_disk_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"may take \d+ MiB"):
        check_space(tmp_path / "new", 2**70)
    assert layout().n_bytes() == 4 * 6 * (10 + 2 * 2 * 4 + 1)


def test_record_without_a_committed_step_says_so(tmp_path):
    writer(tmp_path)
    with pytest.raises(InputError, match="no committed step yet"):
        open_results(tmp_path).runs  # noqa: B018
    (tmp_path / "new").mkdir()
    manifest().write(tmp_path / "new")
    with pytest.raises(InputError, match="no committed group yet"):
        open_results(tmp_path / "new").train  # noqa: B018


def test_rows_that_the_entry_does_not_count_are_cut(tmp_path):
    first = writer(tmp_path)
    name = next(iter(first.layout.nodes))
    variables = first.layout.nodes[name].variables
    lead = (int(np.prod(first.layout.lane_shape)), 4)
    rows = {
        key: np.ones((*lead, *first.layout.extent(v.dims)), np.float32)
        for key, v in variables.items()
    }
    first.write(name, rows)
    first.commit()
    record = Manifest.read(tmp_path)
    entry = record.groups[first.name]
    entry.rows[name] = 3
    again = GroupWriter(tmp_path, record, first.name, entry, first.layout)
    for array in again.arrays[name].values():
        axis = len(first.layout.lane_shape)
        known = np.isfinite(np.moveaxis(np.asarray(array[:]), axis, 0))
        assert known[:3].all() and not known[3:].any()
    assert Manifest.read(tmp_path).groups[first.name].rows[name] == 3
