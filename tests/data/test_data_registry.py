import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

import ici.data
from ici.data import DataConfig, Dataset, Digits, MovieReviews, Split, names, register, resolve
from ici.data.registry import _REGISTRY, registered_class
from ici.data.tfds_sets import ImdbReviews, Mnist, TfdsDirectory
from ici.errors import InputError


@pytest.fixture
def own_names(monkeypatch):
    """Whatever a test registers is gone after it."""
    monkeypatch.setattr(ici.data.registry, "_REGISTRY", dict(_REGISTRY))


def test_built_in_sources_are_known():
    assert names() == [
        "cifar10",
        "digits",
        "fashion_mnist",
        "image_folder",
        "imdb_reviews",
        "linear_teacher",
        "lm1b",
        "mnist",
        "mnist5k",
        "movie_reviews",
        "review_text",
        "synthetic",
        "text_files",
        "tfds",
        "tiny_shakespeare",
    ]


@pytest.mark.parametrize(
    ("spec", "config"),
    [
        ("movie_reviews", MovieReviews()),
        ("movie_reviews/imdb", MovieReviews(source="imdb")),
        ("movie_reviews:all", MovieReviews(source="all")),
        ("digits", Digits()),
        ("digits/7", Digits(split_seed=7)),
        ("imdb_reviews", ImdbReviews()),
        ("mnist", Mnist()),
        ("tfds:/data/mnist/3.0.1", TfdsDirectory(path="/data/mnist/3.0.1")),
        ("tfds:relative", TfdsDirectory(path="relative")),
        ("tfds:/with space/\u00fcber:all", TfdsDirectory(path="/with space/\u00fcber:all")),
    ],
)
def test_resolve_and_its_inverse(spec, config):
    assert resolve(spec) == config
    assert resolve(config.spec) == config


def test_specs_as_they_are_shown():
    assert MovieReviews(vocab_size=99).spec == "movie_reviews"
    assert MovieReviews(source="imdb").spec == "movie_reviews/imdb"
    assert TfdsDirectory("/data/mnist").spec == "tfds:/data/mnist"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("movie_review", r"unknown data set 'movie_review': .*Did you mean 'movie_reviews'\?"),
        ("", "unknown data set ''"),
        ("/imdb", "unknown data set ''"),
        ("movie_reviews/imbd", "unknown movie_reviews source 'imbd'.*Did you mean 'imdb'"),
        ("movie_reviews/", "unknown movie_reviews source ''"),
        ("digits/x", "split_seed, wanted int"),
        ("tfds", "'tfds' needs its path: write tfds:PATH"),
        ("tfds:", "wanted str"),
    ],
)
def test_misspelt_specs_are_refused_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as error:
        resolve(spec)
    assert "\n" not in str(error.value)


def test_a_user_adds_a_source_in_ten_lines(own_names):
    @register("coin")
    @dataclass(frozen=True)
    class Coin(DataConfig):
        side: Literal["head", "tail"] = "head"
        n: int = 4

        def load(self):
            x = np.full((self.n, 1), float(self.side == "head"))
            y = np.arange(self.n) % 2
            return Dataset("coin", Split(x, y), Split(x, y), Split(x, y), 2, "vectors")

    config = resolve("coin/tail")
    assert config == Coin(side="tail")
    assert config.load().train.inputs.tolist() == [[0.0]] * 4
    assert config.fingerprint() == {"data": "coin", "side": "tail", "n": 4}
    assert "coin" in names()
    assert registered_class("coin") is Coin


def test_what_cannot_be_registered(own_names):
    class Plain(DataConfig):
        def load(self):
            raise NotImplementedError

    @dataclass
    class Thawed(Plain):
        pass

    @dataclass(frozen=True)
    class Stranger:
        pass

    @dataclass(frozen=True)
    class Good(Plain):
        pass

    for cls in (Plain, Thawed, Stranger):
        with pytest.raises(InputError, match="wanted a subclass of DataConfig"):
            register("x")(cls)
    for name in ("a/b", "a:b", "a b", ""):
        with pytest.raises(InputError, match="wanted no space"):
            register(name)(Good)
    with pytest.raises(InputError, match=r"'digits' is already registered by ici\.data"):
        register("digits")(Good)
    assert register("good")(Good) is register("good")(Good)
    with pytest.raises(InputError, match="has no settings"):
        resolve("good/1")


@pytest.mark.parametrize("name", ["digits", "imdb_reviews", "mnist", "movie_reviews", "synthetic"])
def test_fingerprints_are_json_and_tell_settings_apart(name):
    config = resolve(name)
    fingerprint = config.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint["data"] == name
    seed = "seed" if name == "synthetic" else "split_seed"
    assert type(config)(**{seed: 1}).fingerprint() != fingerprint


def test_importing_the_package_stays_light():
    heavy = "jax flax tensorflow tensorflow_datasets array_record sklearn pandas requests PIL"
    code = f"import ici.data, sys; print(*(set({heavy.split()}) & set(sys.modules)))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == ""
