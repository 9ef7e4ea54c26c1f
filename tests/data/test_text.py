import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ici.data.text import build_vocabulary, encode, normalized, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's GOOD, isn't it?", ["it's", "good", "isn't", "it"]),
        ("one<br />two<BR>three", ["one", "two", "three"]),
        ("caf\u00e9 No\u00ebl 1990s", ["caf\u00e9", "no\u00ebl", "1990s"]),
        ("don\u2019t 'quote' rock'n'roll", ["don't", "quote", "rock'n'roll"]),
        ("snake_case well-made", ["snake", "case", "well", "made"]),
        ("a < b and c > d", ["a", "b", "and", "c", "d"]),
        ("", []),
        (" \n\t ...!? ", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected
    assert words(text.encode()) == expected
    assert words(text, max_tokens=2) == expected[:2]


def test_bad_utf8_is_no_word_and_breaks_none_around_it():
    assert words(b"good \xff\xfe film") == ["good", "film"]
    assert words(b"bro\xffken") == ["bro", "ken"]


@given(st.text())
def test_str_and_bytes_give_the_same_words(text):
    encoded = text.encode("utf-8", errors="ignore")
    assert words(encoded) == words(encoded.decode())
    assert normalized(encoded) == normalized(encoded.decode())


@given(st.binary())
def test_any_bytes_can_be_read(content):
    assert words(content) == words(content.decode("utf-8", errors="replace"))


def test_normalized_ignores_case_and_white_space_only():
    assert normalized(" A  film\n") == normalized(b"a FILM")
    assert normalized("a film") != normalized("a film!")


def test_the_vocabulary_ranks_by_count_then_alphabet():
    documents = [["b", "a", "c"], ["b", "a"], ["b", "d"]]
    assert build_vocabulary(documents, 10) == ("<pad>", "<unk>", "b", "a", "c", "d")
    assert build_vocabulary(documents, 4) == ("<pad>", "<unk>", "b", "a")


def test_encode_pads_truncates_and_marks_the_unknown():
    vocabulary = ("<pad>", "<unk>", "good", "film")
    documents = [["good", "film"], ["bad", "film", "good", "good"], []]
    tokens = encode(documents, vocabulary, 3)
    assert tokens.tolist() == [[2, 3, 0], [1, 3, 2], [1, 0, 0]]
    assert tokens.dtype == np.int32
