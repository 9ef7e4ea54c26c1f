"""A committed chunk that somebody deleted is missed; one that was never written is not."""

from __future__ import annotations

import json

import fsspec
import numpy as np
import pytest
from tabled import tabled
from test_store import rows, writer

from ici.errors import InputError
from ici.store.manifest import Manifest
from ici.store.places import place
from ici.store.results import open_results
from ici.store.writer import GroupWriter

GROUP = "norm=none,depth=2"
LOSS = f"records/{GROUP}/train/loss/c/0/0/0"


def blank(n):
    return np.full((6, n), np.nan, np.float32)


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "out"
    remote = "bucket" if request.param == "s3" else request.param
    return place(request.getfixturevalue(remote)) / "out"


def chunks_of(folder):
    """Paths of all chunks, below the folder."""
    files = fsspec.get_fs_token_paths(str(folder))[0]
    begin = files._strip_protocol(str(folder)).rstrip("/") + "/"
    return sorted(name.removeprefix(begin) for name in files.find(str(folder)) if "/c/" in name)


def node_of(results, name):
    return results.measurement(name) if name in results.measured else getattr(results, name)


def test_a_chunk_that_is_gone_is_named(folder):
    tabled(folder)
    labels = ("step", "site", "lr", "seed", "weight_decay", "block", "multiple")
    found = [chunk.partition("/c/")[0].split("/") for chunk in chunks_of(folder)]
    arrays = sorted({tuple(parts) for parts in found if parts[-1] not in labels})
    assert len(arrays) > 30
    for *parts, node, name in arrays if "://" not in str(folder) else arrays[::9]:
        array = "/".join((*parts, node, name))
        node_of(open_results(folder), node)[name].load()
        chunk = next(c for c in chunks_of(folder) if c.startswith(f"{array}/c/"))
        content = (folder / chunk).read_bytes()
        (folder / chunk).unlink()
        where = r"\(MissingChunkError: 1 of its chunks is gone, c/[\d/]+\): restore it .*--restart"
        with pytest.raises(InputError, match=f"{array} is damaged {where}") as caught:
            node_of(open_results(folder), node)[name].load()
        assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)
        (folder / chunk).write_bytes(content)


def test_a_chunk_of_runs_that_had_ended_is_there_too(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(4)})
    record.write("train", {"loss": blank(4)})
    record.commit()
    assert np.isnan(open_results(tmp_path).train.loss.isel(step=slice(4, 8))).all()
    (tmp_path / LOSS / "1").unlink()
    # Only what is read is looked for, as what is damaged is found.
    results = open_results(tmp_path)
    assert np.isfinite(results.train.loss.isel(step=slice(0, 4))).all()
    for at in (slice(4, 8), slice(None, None, -1), 7, [0, 5], -1):
        with pytest.raises(InputError, match="train/loss is damaged .*gone, c/0/0/0/1"):
            results.train.loss.isel(step=at).load()


def test_steps_that_no_run_lived_to_see_are_not_missed(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(6)})
    record.finish()
    loss = open_results(tmp_path).train.loss
    assert np.isfinite(loss[..., :6]).all() and np.isnan(loss[..., 6:]).all()
    assert open_results(tmp_path).probe["mean"].isnull().all()
    assert sorted(path.name for path in (tmp_path / LOSS).iterdir()) == ["0", "1"]
    (tmp_path / LOSS / "1").unlink()
    with pytest.raises(InputError, match="gone, c/0/0/0/1"):
        open_results(tmp_path).train.loss.load()


def test_a_record_of_a_version_that_left_empty_chunks_out_is_read(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(8)})
    record.finish()
    (tmp_path / LOSS / "1").unlink()
    entry = tmp_path / "records" / f"{GROUP}.json"
    content = json.loads(entry.read_text())
    del content["written"]
    entry.write_text(json.dumps(content))
    assert np.isnan(open_results(tmp_path).train.loss.isel(step=5)).all()
    # Going on with it does not promise what it never had.
    old = Manifest.read(tmp_path)
    old.groups[GROUP].rows = {"train": 8, "probe": 0, "runs": 0}
    again = GroupWriter(tmp_path, old, GROUP, old.groups[GROUP], record.layout)
    again.write("train", {"loss": rows(2, 8)})
    again.finish()
    loss = open_results(tmp_path).train.loss
    assert np.isnan(loss.isel(step=5)).all() and np.isfinite(loss.isel(step=9)).all()


@pytest.mark.parametrize("cut", [0, 3, 4, 6, 8])
def test_going_on_cuts_and_keeps_the_chunks_that_count(tmp_path, cut):
    """Rows 0 to 3 have numbers, 4 to 7 none: that chunk stays, too, when it is cut through."""
    record = writer(tmp_path)
    record.write("train", {"loss": rows(4)})
    record.write("train", {"loss": blank(4)})
    record.write("train", {"loss": rows(2, 8)})
    record.write("runs", {"diverged_at": blank(1)}, first=0)
    record.commit()
    before = open_results(tmp_path)
    known = Manifest.read(tmp_path)
    known.groups[GROUP].rows["train"] = cut
    again = GroupWriter(tmp_path, known, GROUP, known.groups[GROUP], record.layout)
    there = (
        {path.name for path in (tmp_path / LOSS).iterdir()} if (tmp_path / LOSS).exists() else set()
    )
    assert there == {str(n) for n in range(-(-cut // 4))}
    # A reader who came before finds nothing where it was cut, and no damage.
    loss = before.train.loss.values
    assert np.isfinite(loss[..., : min(cut, 4)]).all() and np.isnan(loss[..., cut:]).all()
    assert open_results(tmp_path).train.loss.load().sizes["step"] == cut
    again.write("train", {"loss": rows(10 - cut, cut)})
    again.finish()
    assert np.isfinite(open_results(tmp_path).train.loss[..., cut:]).all()
    (tmp_path / LOSS / "2").unlink()
    with pytest.raises(InputError, match="gone, c/0/0/0/2"):
        open_results(tmp_path).train.loss.load()
    assert open_results(tmp_path).runs["diverged_at"].isnull().all()


def test_rows_that_were_not_committed_are_not_missed(tmp_path):
    record = writer(tmp_path)
    record.write("train", {"loss": rows(4)})
    record.commit()
    record.write("train", {"loss": rows(4, 4)})  # the process dies here
    (tmp_path / LOSS / "1").unlink()
    assert np.isfinite(open_results(tmp_path).train.loss).all()
