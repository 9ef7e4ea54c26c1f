"""Reports of records that lack something: moments at the last site, groups, a rate that trains."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console
from tabled import tabled

import ici
from ici.analysis.answers import answers, sensitivity
from ici.analysis.parts import common_sites
from ici.analysis.summary import whole_table
from ici.cli import main
from ici.data import Arrays
from ici.errors import InputError
from ici.report.page.content import content
from ici.report.table import print_summary
from ici.store.manifest import MANIFEST


def experiment(**changes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 96).astype(np.int32)
    inputs = (rng.normal(size=(96, 6)) + 2 * labels[:, None]).astype(np.float32)
    settings = {
        "data": Arrays(train=(inputs[:64], labels[:64]), validation=(inputs[64:], labels[64:])),
        "model": ici.MLPConfig(width=8),
        "norm": ("none",),
        "depth": (2,),
        "seed": (0, 1),
        "steps": 20,
        "batch_size": 16,
        "reference_size": 32,
        "reference_every": 10,
        "eval_every": 10,
    }
    return ici.Experiment(**(settings | changes))


def sentences(digest):
    return " ".join(s for answer in answers(digest) for s in answer.sentences)


@pytest.fixture(scope="module")
def with_logits(tmp_path_factory):
    """As a language model's record: its last site has statistics of logits alone."""
    probe = ici.Probe(every=5, stats=("moments", "output_logits"))
    return ici.run(experiment(probe=probe, lr=(1e-2,)), tmp_path_factory.mktemp("logits") / "out")


def test_the_deepest_site_is_one_with_moments(with_logits):
    sites = with_logits.reference["site"].values.tolist()
    assert sites[-1] == "output" and common_sites(with_logits) == sites[:-1]
    table = whole_table(with_logits)
    assert table.attrs["site"] == sites[-2] and table.attrs["n_features"] > 0
    assert np.isfinite(table["shift"]).all()


def test_a_record_with_logits_is_reported_and_watched(with_logits, capsys):
    assert main(["report", str(with_logits.path), "--no-figures"]) == 0
    assert (with_logits.path / "report.html").exists()
    assert main(["watch", str(with_logits.path), "--once"]) == 0
    assert "at output" not in capsys.readouterr().out


@pytest.fixture
def half(tmp_path):
    """Two norms planned, one begun."""
    tabled(tmp_path, status="running")
    for name in ("norm=batch,depth=2", "norm=batch,depth=2.json"):
        (tmp_path / "records" / name).rename(tmp_path / name)
    return tmp_path


INCOMPLETE = (
    "The record is incomplete: 6 of 12 planned runs have recorded a step; not started: batch."
)


def test_groups_that_are_missing_are_named(half):
    digest = ici.digest(ici.open(half))
    assert INCOMPLETE in sentences(digest)
    assert content(digest)["facts"][0] == INCOMPLETE.rstrip(".")
    console = Console(width=400)
    with console.capture() as said:
        print_summary(ici.open(half), console)
    assert INCOMPLETE in " ".join(said.get().split())


def test_a_complete_record_does_not_call_itself_incomplete(tmp_path):
    digest = ici.digest(tabled(tmp_path))
    assert "incomplete" not in sentences(digest)
    assert "incomplete" not in " ".join(content(digest)["facts"])


def test_what_cannot_be_compared_yet_does_not_cost_the_page(half, capsys):
    assert main(["report", str(half), "--compare", "norm", "--no-figures"]) == 0
    assert "Not compared: norm batch has no recorded step yet" in capsys.readouterr().out
    assert (half / "report.html").exists()


def test_a_baseline_that_is_still_to_come_does_not_cost_the_page(half, capsys):
    manifest = json.loads((half / MANIFEST).read_text())
    manifest["experiment"]["norm"] = ["none", "batch", "layer"]
    (half / MANIFEST).write_text(json.dumps(manifest))
    for name in ("norm=batch,depth=2", "norm=batch,depth=2.json"):
        (half / name).rename(half / "records" / name)
    words = ["report", str(half), "--compare", "norm", "--no-figures"]
    assert main([*words, "--baseline", "layer"]) == 0
    assert "Not compared: norm layer has no recorded step yet" in capsys.readouterr().out
    assert (half / "report.html").exists()
    # With another baseline the two that there are get compared.
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "none against batch" in said and "Norm layer has no recorded step yet." in said


def test_an_unknown_baseline_is_refused_before_anything_is_read(half, capsys):
    assert main(["report", str(half), "--compare", "norm", "--baseline", "foo"]) == 2
    out, err = capsys.readouterr()
    assert "--baseline foo: norm has none, batch" in err and not out


def test_an_export_knows_that_the_writer_is_gone(half, capsys):
    assert main(["export", str(half)]) == 0
    assert "unfinished and its writer is gone" in capsys.readouterr().out


def test_what_never_learns_has_no_sensitivity(tmp_path):
    digest = ici.digest(ici.run(experiment(lr=(1e6, 1e7), optimizer="sgd"), tmp_path / "out"))
    assert np.isnan(sensitivity(digest, {"depth": 2})["none"]).all()
    said = sentences(digest)
    assert "none: no rate ends below the first loss" in said and "none 0 [" not in said


def test_words_follow_the_counts(tmp_path):
    digest = ici.digest(tabled(tmp_path))
    judged = digest.runs["seed"] != digest.runs["seed"][0]
    digest.runs["spikes"] = digest.runs["spikes"].fillna(0).where(judged)
    said = sentences(digest)
    assert "too short to judge" in said
    with pytest.raises(InputError):
        ici.compare(digest, "depth")
