"""Records of other versions: read as they were meant, or refused with what helps."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ici.analysis.summary import whole_table
from ici.analysis.tables import tables_of
from ici.errors import InputError
from ici.store.manifest import MANIFEST, SCHEMA, GroupEntry, Manifest, entry_paths
from ici.store.results import open_results
from ici.store.writer import PER_FEATURE, GroupWriter, Layout, Node, Variable

STEPS = 8
# 8 runs of 8 steps on digits, trained and packed by the first version of this package.
KEPT = Path(__file__).with_name("first_schema.zip")
# What that version read from it: one run's losses, and all runs' last accuracy of 179 examples.
ITS_LOSSES = (
    "2.5164194 2.3017342 2.334281 2.1766675 2.0156608 2.0824547 1.9866451 2.116921"  # batch, 1.0, 1
)
ITS_HITS = [[18, 26, 18, 18], [19, 16, 49, 49]]  # by norm; learning rates, then seeds


def written_by_schema_1(folder):
    """What the first version left behind: its fields, its dimensions of the runs, no more."""
    experiment = {
        "name": "old",
        "norm": ["none"],
        "depth": [2],
        "lr": [0.1, 0.2],
        "weight_decay": [0.0],
        "seed": [0, 1],
        "warmup_steps": 3,
        "steps": STEPS,
        "target_accuracy": 0.5,
        "stop_at_target": False,
    }
    at = np.array([0, STEPS])
    layout = Layout(
        {"lr": (0.1, 0.2), "weight_decay": (0.0,), "seed": (0, 1)},
        ("head",),
        (2,),
        {
            "train": Node(np.arange(STEPS), 4, {"loss": Variable(), "grad_norm": Variable()}),
            "probe": Node(at[:1], 1, {"mean": Variable(PER_FEATURE), "std": Variable(PER_FEATURE)}),
            "reference": Node(at, 1, {n: Variable(PER_FEATURE) for n in ("mean", "std")}),
            "evaluation": Node(at, 1, {"loss": Variable(), "accuracy": Variable()}),
            "runs": Node(np.array([STEPS]), 1, {"diverged_at": Variable()}),
        },
    )
    manifest = Manifest(experiment, "print", "digest", {}, status="done")
    writer = GroupWriter(folder, manifest, "norm=none,depth=2", GroupEntry("none", 2, {}), layout)
    loss = np.linspace(1, 0.5, STEPS, dtype=np.float32) + np.zeros((4, 1), np.float32)
    writer.write("train", {"loss": loss, "grad_norm": loss})
    still = {"mean": np.zeros((4, 2, 1, 2)), "std": np.ones((4, 2, 1, 2))}
    writer.write("reference", still)
    scores = np.array([[0.25, 0.75]] * 4)
    writer.write("evaluation", {"loss": 1 - scores, "accuracy": scores})
    writer.finish()
    content = json.loads((folder / MANIFEST).read_text())
    content["groups"] = {}
    for path in entry_paths(folder):
        entry = json.loads(path.read_text())
        kept = ("norm", "depth", "rows", "done")
        content["groups"][path.stem] = {name: entry[name] for name in kept}
        path.unlink()
    del content["error"]
    (folder / MANIFEST).write_text(json.dumps(content | {"schema": 1}))
    rewrite(folder, lambda content: content, drop="task")
    return loss


def rewrite(folder, change, drop=None):
    content = json.loads((folder / MANIFEST).read_text())
    content.pop(drop, None)
    (folder / MANIFEST).write_text(json.dumps(change(content)))


def test_a_record_of_the_first_schema_is_read(tmp_path):
    loss = written_by_schema_1(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    results = open_results(tmp_path)
    assert results.manifest.schema == SCHEMA and results.task == "classification"
    assert results.experiment["warmup_steps"] == [3]
    np.testing.assert_array_equal(results.train["loss"].values.reshape(4, STEPS), loss)
    assert set(whole_table(results)["steps_to_target"].values.ravel()) == {STEPS}
    assert results.to_dataframe("runs")["validation_accuracy"].tolist() == [0.75] * 4
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_record_that_the_first_version_wrote_is_read(tmp_path):
    zipfile.ZipFile(KEPT).extractall(tmp_path)
    results = open_results(tmp_path)
    assert results.complete and results.task == "classification"
    assert results.experiment["warmup_steps"] == [3]
    run = {"norm": "batch", "depth": 2, "lr": 1.0, "seed": 1}
    # The shortest text of a float32 is no other's.
    assert " ".join(str(loss) for loss in results.train["loss"].sel(run).values) == ITS_LOSSES
    accuracy = results.evaluation["accuracy"].isel(step=-1, depth=0)
    hits = accuracy.transpose("norm", "lr", "seed").values.reshape(2, 4) * 179
    np.testing.assert_allclose(hits, ITS_HITS, rtol=1e-6)
    runs = results.to_dataframe("runs")
    np.testing.assert_array_equal(runs["validation_accuracy"], accuracy.values.ravel())
    assert tables_of(results)[1:5] == ("train", "evaluation", "reference", "probe")
    assert all(len(results.to_dataframe(name)) for name in tables_of(results)[:5])


def test_a_manifest_without_times_is_read(tmp_path):
    written_by_schema_1(tmp_path)
    rewrite(tmp_path, lambda content: content | {"schema": 2, "task": "language_model"})
    results = open_results(tmp_path)
    assert results.task == "language_model"
    assert [entry.run_step_s for entry in results.manifest.groups.values()] == [None]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            SCHEMA + 1,
            rf"schema {SCHEMA + 1}: .*reads schema {SCHEMA} and older; install a newer ici",
        ),
        (0, "schema 0: wanted a number from 1"),
        ("1", "schema 1: wanted a number from 1"),
        (None, "schema None: wanted a number from 1"),
    ],
)
def test_other_schemas_are_refused_by_number(tmp_path, schema, message):
    written_by_schema_1(tmp_path)
    rewrite(tmp_path, lambda content: content | {"schema": schema})
    with pytest.raises(InputError, match=message):
        open_results(tmp_path)


@pytest.mark.parametrize("field", ["experiment", "groups", "fingerprint"])
def test_an_old_manifest_with_a_field_missing_is_damaged(tmp_path, field):
    written_by_schema_1(tmp_path)
    rewrite(tmp_path, lambda content: content, drop=field)
    with pytest.raises(InputError, match="damaged"):
        open_results(tmp_path)
