"""From reviews to token arrays: a lower-case word tokenizer and a vocabulary of frequent words."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from ici.data.dataset import PAD, UNKNOWN
from ici.errors import InputError

Text = str | bytes
SPECIAL_WORDS = ("<pad>", "<unk>")

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_LINE_BREAK = re.compile(r"<br\s*/?>")


def check_text_settings(vocab_size: int, max_tokens: int, split_seed: int) -> None:
    """Raises `InputError` for settings that no text source can use."""
    if vocab_size < 3:
        raise InputError(
            f"vocab_size is {vocab_size}: wanted at least 3 (padding, unknown and one word)"
        )
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}: wanted at least 1")
    check_seed(split_seed)


def check_seed(split_seed: int) -> None:
    """Raises `InputError` for a seed that is negative or does not fit 64 bits."""
    if not 0 <= split_seed < 2**64:
        raise InputError(f"split_seed is {split_seed}: wanted 0 to 2**64 - 1")


def words(text: Text, max_tokens: int | None = None) -> list[str]:
    """The first `max_tokens` lower-case words; bytes are read as UTF-8, bad ones as no word."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    text = _LINE_BREAK.sub(" ", text.lower()).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return [match[0] for match in itertools.islice(_WORD.finditer(text), max_tokens)]


def normalized(text: Text) -> str:
    """The text without regard to case and white space: equal for what counts as a duplicate."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    return " ".join(text.lower().split())


def build_vocabulary(documents: Iterable[list[str]], vocab_size: int) -> tuple[str, ...]:
    """The most frequent words behind "<pad>" and "<unk>"; ties in alphabetical order.

    Shorter than `vocab_size` where the documents hold fewer words.
    """
    counts = Counter(itertools.chain.from_iterable(documents))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return SPECIAL_WORDS + tuple(ranked[: vocab_size - len(SPECIAL_WORDS)])


def encode(documents: list[list[str]], vocabulary: tuple[str, ...], max_tokens: int) -> np.ndarray:
    """Tokens int32 [N, max_tokens], padded with 0 at the end.

    A document without words becomes a single unknown word, so that a mean over its tokens exists.
    """
    number = {word: i for i, word in enumerate(vocabulary)}
    tokens = np.full((len(documents), max_tokens), PAD, np.int32)
    for row, document in zip(tokens, documents, strict=True):
        numbers = [number.get(word, UNKNOWN) for word in document[:max_tokens]] or [UNKNOWN]
        row[: len(numbers)] = numbers
    return tokens
