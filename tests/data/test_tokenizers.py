"""Lossless tokenizers: every text comes back, and the vocabulary alone says how it is cut."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ici.data import tokenizers as module
from ici.data.tokenizers import (
    BYTE_SYMBOLS,
    SPECIAL_TOKENS,
    Tokenizer,
    byte_tokenizer,
    check_tokenizer,
    is_byte_level,
    readable,
    train_bpe,
)
from ici.errors import InputError

TRAINING = [f"the film {i % 7} was as good as the other film was bad" for i in range(40)] + [
    "na\u00efve caf\u00e9 \U0001f600\U0001f600 it's  \n\n 1234 <pad> <pad> "
    "\u27e8sep\u27e9 \u27e8sep\u27e9"
] * 3
VOCAB_SIZE = 308
ODD = [
    "",
    " ",
    "\n\n\n",
    "\x00\x01\x7f",
    "\ufeffbom",
    "a\r\nb\rc",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "<pad>\u27e8sep\u27e9\u27e8pad\u27e9<|endoftext|>",
    "\u00a0\u2028\u3000 \u0130\u0131\u00df",
    "the film",
]


@pytest.fixture(scope="module")
def bpe():
    pytest.importorskip("tokenizers")
    return train_bpe(TRAINING, VOCAB_SIZE)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return byte_tokenizer() if request.param == "bytes" else bpe


@pytest.mark.parametrize("text", ODD + TRAINING[-1:])
def test_odd_texts_come_back(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == text
    # Padding and the separator are no text: nothing that a document says becomes one of them.
    assert (tokens >= 2).all()


def test_any_text_comes_back(bpe):
    @settings(max_examples=100, deadline=None)
    @given(st.text(max_size=60))
    def check(text):
        for tokenizer in (byte_tokenizer(), bpe):
            tokens = tokenizer.encode(text)
            assert tokenizer.decode(tokens) == text
            assert tokenizer.byte_counts[tokens].sum() == len(text.encode())

    check()


def test_bytes_are_numbered_from_two():
    assert byte_tokenizer().vocab_size == 258
    assert byte_tokenizer().encode("a\u00e9").tolist() == [97 + 2, 0xC3 + 2, 0xA9 + 2]
    assert byte_tokenizer().to_bytes(np.arange(258)) == bytes(range(256))


def test_byte_pairs_keep_the_numbers_of_the_bytes(bpe):
    assert bpe.vocabulary[:258] == byte_tokenizer().vocabulary
    assert len(set(bpe.vocabulary)) == bpe.vocab_size == VOCAB_SIZE
    assert bpe.to_bytes(np.arange(258)) == bytes(range(256))


def test_the_first_merge_is_the_most_frequent_pair():
    pytest.importorskip("tokenizers")
    tokenizer = train_bpe(["xyxyxyxy ab"] * 2, 259)
    assert tokenizer.vocabulary[258:] == ("xy",)
    assert tokenizer.encode("xyab").tolist() == [258, 99, 100]


def test_the_vocabulary_tells_the_merges(bpe):
    """Those that the library learnt, read from the library itself."""
    import json

    import tokenizers

    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(TRAINING, trainer=trainer)
    learnt = [tuple(pair) for pair in json.loads(library.to_str())["model"]["merges"]]
    assert bpe.merges == learnt
    assert len(learnt) == VOCAB_SIZE - 258
    for text in TRAINING[-2:] + ODD:
        pieces = library.encode(text).tokens
        assert [bpe.vocabulary[token] for token in bpe.encode(text)] == pieces


def test_a_tokenizer_made_again_gives_the_same_tokens(bpe):
    again = Tokenizer(tuple(list(bpe.vocabulary)))
    for text in TRAINING[:3] + ODD:
        np.testing.assert_array_equal(again.encode(text), bpe.encode(text))


def test_the_file_of_the_library_gives_the_same_tokens(bpe):
    import tokenizers

    library = tokenizers.Tokenizer.from_str(bpe.to_json())
    for text in TRAINING[-2:] + ODD:
        assert library.encode(text).ids == bpe.encode(text).tolist()
        assert library.decode(bpe.encode(text).tolist()) == text


@pytest.mark.multiprocess
def test_training_does_not_depend_on_threads_or_process(bpe):
    code = (
        "import sys, hashlib; from ici.data.tokenizers import train_bpe\n"
        f"v = train_bpe({TRAINING!r}, {VOCAB_SIZE}).vocabulary\n"
        "sys.stdout.buffer.write('\\n'.join(v).encode())"
    )
    for threads in ("1", "3"):
        seen = subprocess.run(
            [sys.executable, "-c", code],
            env={"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            check=True,
        )
        assert tuple(seen.stdout.decode().split("\n")) == bpe.vocabulary


def test_pieces_of_a_long_text_change_nothing(bpe, monkeypatch):
    text = "".join(f"{a}{b}" for a in ("film", "1", ".", " ", "\n", "\u00e9") for b in TRAINING[:6])
    blanks = "one    two\n\n\n\nthree    .    four" * 9
    for tokenizer, content in ((bpe, text), (train_bpe([blanks], 277), blanks)):
        monkeypatch.undo()
        whole = tokenizer.encode(content)
        for size in (1, 7, 50):
            monkeypatch.setattr(module, "PIECE_CHARACTERS", size)
            assert len(list(module._pieces(content, size))) > 5
            np.testing.assert_array_equal(tokenizer.encode(content), whole)


def test_many_texts_are_encoded_in_their_order(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 3)
    texts = [*ODD, *TRAINING, *ODD]
    encoded = list(tokenizer.encode_all(iter(texts)))
    assert [tokenizer.decode(tokens) for tokens in encoded] == texts
    assert list(tokenizer.encode_all([])) == []


def test_only_the_first_part_of_much_text_is_learnt_from(monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(module, "TRAINING_BYTES", 40)
    assert train_bpe(["xyxyxyxy" * 5, "zwzwzwzw" * 99], 259).vocabulary[-1] == "xy"
    assert list(module._first_bytes(["\u00e9" * 3, "ab", "cd"], 7)) == ["\u00e9" * 3, "a"]


def test_a_vocabulary_larger_than_the_text_supports():
    pytest.importorskip("tokenizers")
    # "aa" occurs four times, then "aaaa" twice; no pair of the third text occurs twice.
    texts = ["aaaa", "aaaa", "xyz"]
    with pytest.raises(InputError, match="vocab_size is 300, .* supports 260 tokens") as error:
        train_bpe(texts, 300)
    assert "\n" not in str(error.value)
    assert train_bpe(texts, 260).vocabulary[258:] == ("aa", "aaaa")


def test_258_tokens_are_the_bytes():
    pytest.importorskip("tokenizers")
    assert train_bpe(TRAINING, 258) == byte_tokenizer()


@pytest.mark.parametrize(
    ("name", "vocab_size", "message"),
    [
        ("bytess", 300, "unknown tokenizer 'bytess'.*Did you mean 'bytes'"),
        ("bpe", 257, "vocab_size is 257: wanted at least 258"),
    ],
)
def test_bad_settings(name, vocab_size, message):
    with pytest.raises(InputError, match=message):
        check_tokenizer(name, vocab_size)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"tokenizers, which is not installed: pip install"):
        train_bpe(TRAINING, 300)
    assert byte_tokenizer().decode(byte_tokenizer().encode("x")) == "x"


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(InputError, match="character 2 of a text is half a surrogate"):
        tokenizer.encode("ab\ud83d")


@pytest.mark.parametrize(
    "vocabulary",
    [
        ("<pad>", "<unk>", "film"),
        SPECIAL_TOKENS + BYTE_SYMBOLS[::-1],
        (SPECIAL_TOKENS + BYTE_SYMBOLS)[:-1],
    ],
)
def test_other_vocabularies_are_refused(vocabulary):
    assert not is_byte_level(vocabulary)
    with pytest.raises(InputError, match="not one of bytes"):
        Tokenizer(vocabulary)


def test_a_vocabulary_that_no_merges_make_is_refused():
    with pytest.raises(InputError, match="token 'abc' is not made of two tokens"):
        _ = Tokenizer(byte_tokenizer().vocabulary + ("abc",)).merges


def test_a_row_is_readable_where_characters_are_cut():
    tokenizer = byte_tokenizer()
    row = np.array([0xA9 + 2, *tokenizer.encode(" end"), 1, *tokenizer.encode("\u00e9"), 0, 0])
    assert readable(tokenizer.vocabulary, row) == "\ufffd end\u27e8sep\u27e9\u00e9"
