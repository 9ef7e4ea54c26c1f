"""Records in object stores: written, followed, read, reported and exported as on a disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tabled import tabled

import ici
from ici.cli.main import main
from ici.data import Arrays
from ici.errors import InputError
from ici.store.following import Following
from ici.store.manifest import MANIFEST
from ici.store.places import PROBE, place

NODES = ("train", "probe", "reference", "evaluation", "runs")


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def folder(request):
    remote = "bucket" if request.param == "s3" else request.param
    return place(request.getfixturevalue(remote)) / "runs/tabled"


def test_a_record_comes_back_as_from_a_disk(folder, tmp_path):
    remote, local = tabled(folder), tabled(tmp_path / "record")
    assert isinstance(ici.open(str(folder)).path, type(folder))
    for node in NODES:
        assert getattr(remote, node).identical(getattr(local, node)), node


def test_one_run_is_read_alone(memory):
    tabled(place(memory))
    group = ici.open(memory).group("none", 2)
    loss = group.train["loss"]
    lr, seed = loss["lr"].values[1], loss["seed"].values[0]
    one = loss.sel(lr=lr, seed=seed).values
    np.testing.assert_array_equal(one, loss.load().sel(lr=lr, seed=seed).values)


def test_a_record_is_followed_while_it_grows(folder):
    following = Following(folder)
    assert following.refresh() is False and following.manifest is None
    tabled(folder, status="running", committed=8)
    assert following.refresh() is True and following.refresh() is False
    name, entry = next(iter(following.manifest.groups.items()))
    first = following.identity(name)
    labels = following.labels(name)
    ((at, rows),) = following.rows(name, "train", ("loss",), 0, entry.rows["train"])
    assert at == 0 and rows["loss"].shape == (labels.n_lanes, 8)
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"status": "failed"}))
    assert following.refresh() is True and following.manifest.status == "failed"
    (folder / "records" / name / "zarr.json").write_text("{}")
    assert following.identity(name) != first


def test_a_record_that_is_not_there_is_told(folder):
    with pytest.raises(InputError, match=f"{folder} holds no manifest"):
        ici.open(str(folder))


def test_a_flipped_bit_is_noticed(memory):
    import fsspec

    tabled(place(memory) / "run")
    store = fsspec.filesystem("memory")
    chunk = next(name for name in store.find("/place/run/records") if "/train/loss/c/" in name)
    content = bytearray(store.cat_file(chunk))
    content[len(content) // 2] ^= 1
    store.pipe_file(chunk, bytes(content))
    with pytest.raises(Exception, match=r"(?i)crc32c|checksum"):
        ici.open(memory + "/run").train["loss"].load()


def test_figures_and_pages_are_put_whole(memory):
    from matplotlib.figure import Figure

    from ici.report.style import save

    folder = place(memory)
    assert save(Figure(), folder, "empty") == [folder / "empty.png", folder / "empty.pdf"]
    assert (folder / "empty.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == ["empty.pdf", "empty.png"]


def arrays():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 96).astype(np.int32)
    inputs = (rng.normal(size=(96, 6)) + 2 * labels[:, None]).astype(np.float32)
    return Arrays(train=(inputs[:64], labels[:64]), validation=(inputs[64:], labels[64:]))


def experiment(**changes):
    settings = {
        "name": "tiny",
        "data": arrays(),
        "model": ici.MLPConfig(width=8),
        "norm": ("none",),
        "depth": (2,),
        "lr": (1e-2,),
        "seed": (0, 1),
        "steps": 20,
        "batch_size": 16,
        "probe": ici.Probe(every=5),
        "reference_size": 32,
        "reference_every": 10,
        "eval_every": 10,
        "devices": 2,
    }
    return ici.Experiment(**(settings | changes))


@pytest.mark.slow
def test_a_run_into_a_bucket_is_the_run_on_a_disk(bucket, tmp_path, capsys):
    url = f"{bucket}/runs/tiny"
    (place(url) / PROBE).write_text("")  # of a process that was killed just then
    remote = ici.run(experiment(), url)
    local = ici.run(experiment(), tmp_path / "tiny")
    for node in NODES:
        assert getattr(remote, node).identical(getattr(local, node)), node
    assert main(["report", url, "--no-figures"]) == 0
    assert main(["export", url, "--tables", "runs"]) == 0
    assert main(["watch", url, "--once"]) == 0
    assert "done" in capsys.readouterr().out
    names = {path.name for path in place(url).iterdir()}
    assert names == {MANIFEST, "records", "report.html", "tables"}  # and no lock
    assert (place(url) / "report.html").read_text().startswith("<!doctype html>")
    assert (place(url) / "tables" / "runs.parquet").read_bytes().startswith(b"PAR1")
    assert main(["export", url, "--tables", "runs"]) == 2  # there already
    before = (place(url) / MANIFEST).stamp()
    assert ici.run(experiment(), url).complete  # opened, not trained again
    assert (place(url) / MANIFEST).stamp() == before
    with pytest.raises(InputError, match="holds another experiment"):
        ici.run(experiment(lr=(1e-3,)), url)
    ici.run(experiment(lr=(1e-3,)), url, overwrite=True)
    assert ici.open(url).train["lr"].values.tolist() == [1e-3]


def test_a_bucket_that_is_not_there_is_told_before_anything_is_trained(bucket):
    with pytest.raises(InputError, match="cannot write to s3://not-there-at-all/run"):
        ici.run(experiment(), "s3://not-there-at-all/run")
