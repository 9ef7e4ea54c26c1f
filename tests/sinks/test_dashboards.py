"""TensorBoard and W&B files hold what the record holds, and change nothing in it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import ici
from ici.cli import main
from ici.sinks import TensorBoardSink, WandbSink

EXPERIMENT = ici.Experiment(
    name="small",
    data="synthetic",
    model=ici.MLPConfig(width=4),
    norm=("none",),
    depth=(1,),
    lr=(1e-2, 1e4),
    seed=(0, 1),
    steps=40,
    batch_size=8,
    optimizer="sgd",
    probe=ici.Probe(every=5),
    reference_every=20,
    eval_every=20,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return ici.run(EXPERIMENT, tmp_path_factory.mktemp("plain") / "out")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("followed") / "out"
    return ici.run(EXPERIMENT, folder, sinks=[TensorBoardSink()])


def arrays(results):
    (group,) = (path for path in (results.path / "records").iterdir() if path.is_dir())
    members = zarr.open_group(group, mode="r").members(max_depth=None)
    return {path: np.asarray(a[:]) for path, a in members if isinstance(a, zarr.Array)}


@pytest.mark.slow
def test_training_is_bit_for_bit_the_same_with_sinks(plain, followed):
    one, other = arrays(plain), arrays(followed)
    assert set(one) == set(other) and any(path.endswith("train/loss") for path in one)
    for path, values in one.items():
        assert values.tobytes() == other[path].tobytes(), path


def events(folder: Path):
    """Every event of a TFRecord file: length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


@pytest.mark.slow
def test_event_files_hold_the_record(followed):
    root = followed.path / "tensorboard"
    lanes = [(lr, seed) for lr in EXPERIMENT.learning_rates for seed in EXPERIMENT.seed]
    assert len(list(root.rglob("events*"))) == len(lanes)
    for lr, seed in lanes:
        found = {}
        for event in events(root / f"norm=none/lr={lr:g}/seed={seed}"):
            for value in event.summary.value:
                if not value.HasField("metadata"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
        run = dict(lr=lr, seed=seed)
        train = followed.train.squeeze().sel(run)
        for name in ("loss", "grad_norm"):
            wanted = {
                int(s): v
                for s, v in zip(train["step"].values, train[name].values, strict=True)
                if np.isfinite(v)
            }
            assert found[name] == pytest.approx(wanted)
        evaluated = followed.evaluation.squeeze().sel(run)["accuracy"]
        wanted = {int(s): float(v) for s, v in zip(evaluated["step"], evaluated, strict=True)}
        wanted = {s: v for s, v in wanted.items() if np.isfinite(v)}
        assert found["evaluation/accuracy"] == pytest.approx(wanted) and wanted
        diverged_at = float(followed.runs["diverged_at"].squeeze().sel(run))
        assert found.get("diverged", {}) == ({} if np.isnan(diverged_at) else {diverged_at: 1.0})
        if np.isnan(diverged_at):
            assert set(found["shift/deepest"]) == {0, 20, 40}
    assert np.isfinite(followed.runs["diverged_at"]).any(), "no run diverged: nothing tested"


@pytest.mark.slow
def test_event_files_name_the_hyperparameters(followed):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    folder = followed.path / "tensorboard/norm=none/lr=0.01/seed=1"
    contents = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("metadata")
    ]
    (given,) = [c.session_start_info.hparams for c in contents if c.HasField("session_start_info")]
    assert given["norm"].string_value == "none" and given["lr"].number_value == 0.01
    assert given["seed"].number_value == 1 and given["depth"].number_value == 1


def wandb_records(file: Path):
    """Every record of a W&B file: blocks of 32 KiB, in them checksum, length, type, content."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, joined = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        joined += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(joined)
            joined = b""


@pytest.mark.slow
def test_offline_wandb_file_holds_the_record(tmp_path, monkeypatch, plain):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    out = tmp_path / "out"
    results = ici.run(EXPERIMENT, out, sinks=[WandbSink()])
    one, other = arrays(plain), arrays(results)
    assert all(values.tobytes() == other[path].tobytes() for path, values in one.items())
    (file,) = (out / "wandb").glob("offline-run-*/*.wandb")
    losses, config, project = {}, {}, None
    for record in wandb_records(file):
        if record.HasField("run"):
            project = record.run.project
        for update in (record.run.config, record.config):
            config |= {item.key: json.loads(item.value_json) for item in update.update}
        row = {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for item in record.history.item
        }
        if "norm=none/lr=0.01/seed=0/loss" in row:
            losses[row["step"]] = row["norm=none/lr=0.01/seed=0/loss"]
    wanted = results.train["loss"].squeeze().sel(lr=0.01, seed=0).values
    assert losses == pytest.approx(dict(enumerate(wanted.tolist())))
    assert project == "small" and config["steps"] == 40 and config["lr"] == [0.01, 1e4]


def test_wandb_without_a_key_is_refused_before_anything(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb").teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ici.InputError, match="wandb login"):
        WandbSink()


@pytest.mark.parametrize(
    ("option", "package"), [("--tensorboard", "tensorboardX"), ("--wandb", "wandb")]
)
def test_a_missing_package_is_told_before_any_compute(
    tmp_path, monkeypatch, capsys, option, package
):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    file = tmp_path / "x.py"
    file.write_text("import ici\nexperiment = ici.Experiment(data='synthetic', steps=10)")
    assert main(["run", str(file), "--out", str(tmp_path / "out"), option]) == 2
    said = capsys.readouterr().err
    extra = package.lower().removesuffix("x")
    assert package in said and f"pip install 'ici-instrument[{extra}]'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--tensorboard"], ["--tensorboard", "--steps", "40"]])
def test_the_folder_of_tensorboard_may_be_left_out(words):
    from ici.cli.overrides import override

    changed, options = override(EXPERIMENT, words, "ici run x.py")
    assert options.tensorboard == "" and changed == EXPERIMENT
    changed, options = override(EXPERIMENT, [*words[:1], "logs/a", *words[1:]], "ici run x.py")
    assert options.tensorboard == "logs/a" and changed == EXPERIMENT
    assert override(EXPERIMENT, words[1:], "x")[1].tensorboard is None


@pytest.mark.slow
def test_overwriting_replaces_the_event_files(tmp_path, followed):
    other = dataclasses.replace(EXPERIMENT, lr=(1e-3,))
    out = tmp_path / "out"
    shutil.copytree(followed.path, out)
    root = out / "tensorboard"
    assert (root / "norm=none/lr=0.01").exists()
    ici.run(other, out, overwrite=True, sinks=[TensorBoardSink(tmp_path / "elsewhere")])
    assert not root.exists()
    assert (tmp_path / "elsewhere/norm=none/lr=0.001/seed=0").exists()
