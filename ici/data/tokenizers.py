"""Lossless tokenizers for language modelling: bytes, and byte-pair encoding over bytes.

Both number tokens alike: 0 is padding, 1 separates documents, byte b is b + 2; what byte-pair
encoding (Sennrich et al. 2016; over bytes: Radford et al. 2019) merges comes behind them in the
order of the merges. A vocabulary in that order says all there is to know: each merge is what the
merges before it leave of the token, so a tokenizer is made again from `Dataset.vocabulary` alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ici.data.dataset import PAD, SEPARATOR
from ici.errors import InputError, unknown_name

TokenizerName = Literal["bytes", "bpe"]
N_SPECIAL = 2
N_BYTES = 256
BYTE_VOCAB_SIZE = N_SPECIAL + N_BYTES

# Byte-pair encoding learns from this much of the training text: its memory is many times that.
TRAINING_BYTES = 64_000_000
# Longer texts are encoded in pieces, for the library keeps some 100 bytes per token of a text.
PIECE_CHARACTERS = 1_000_000

_BATCH = 1024


def _byte_symbols() -> tuple[str, ...]:
    """One printable character for each byte, as Radford et al. 2019 write vocabularies."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return tuple(chr(byte) if byte in plain else chr(next(spare)) for byte in range(N_BYTES))


BYTE_SYMBOLS = _byte_symbols()
# Their brackets stand for no byte, so that no merge can make a token of the same name.
SPECIAL_TOKENS = ("\u27e8pad\u27e9", "\u27e8sep\u27e9")
_BYTE_OF = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into tokens and back without loss.

    `vocabulary` is the two special tokens, the 256 bytes, and merged tokens in the order in which
    they were merged, each written with one character per byte. Raises `InputError` for another
    vocabulary.
    """

    vocabulary: tuple[str, ...]

    def __post_init__(self) -> None:
        if not is_byte_level(self.vocabulary):
            raise InputError(
                f"a vocabulary of {len(self.vocabulary)} tokens is not one of bytes: wanted "
                "padding, separator and the 256 bytes first, as the language-model data have them"
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the two special ones included."""
        return len(self.vocabulary)

    @functools.cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs that were merged, first merge first."""
        ranks: dict[tuple[str, str], int] = {}
        for token in self.vocabulary[BYTE_VOCAB_SIZE:]:
            parts = _merged(token, ranks)
            if len(parts) != 2:
                raise InputError(
                    f"vocabulary token {token!r} is not made of two tokens before it: wanted the "
                    "vocabulary of a byte-pair encoding in the order of its merges"
                )
            ranks[parts[0], parts[1]] = len(ranks)
        return list(ranks)

    def encode(self, text: str) -> np.ndarray:
        """Tokens int32 [n] of one text, without separator.

        Raises:
          InputError: the package `tokenizers` is missing (byte-pair encoding only), or the text
            holds half a surrogate pair, which no UTF-8 text does.
        """
        return next(self.encode_all([text]))

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """`encode` of each text, many at a time and without holding all of them."""
        if self.vocab_size == BYTE_VOCAB_SIZE:
            for text in texts:
                content = np.frombuffer(_utf8(text), np.uint8)
                yield content.astype(np.int32) + N_SPECIAL
            return
        parts: list[str] = []
        counts: list[int] = []
        characters = 0
        for text in texts:
            pieces = list(_pieces(text, PIECE_CHARACTERS))
            parts += pieces
            counts.append(len(pieces))
            characters += len(text)
            if len(parts) >= _BATCH or characters >= PIECE_CHARACTERS:
                yield from self._encode_parts(parts, counts)
                parts, counts, characters = [], [], 0
        yield from self._encode_parts(parts, counts)

    def to_bytes(self, tokens: np.ndarray) -> bytes:
        """The UTF-8 text of tokens [n]; padding and separators are left out."""
        return b"".join(self._contents[int(token)] for token in tokens)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens [n], exactly, but for padding, separators and halves of characters."""
        return self.to_bytes(tokens).decode("utf-8", errors="replace")

    @functools.cached_property
    def byte_counts(self) -> np.ndarray:
        """Bytes of text that each token stands for, int64 [vocab_size]; 0 for the special ones."""
        return np.array([len(content) for content in self._contents], np.int64)

    def to_json(self) -> str:
        """This tokenizer as the package `tokenizers` stores one in a file."""
        return self._library.to_str()

    @functools.cached_property
    def _contents(self) -> list[bytes]:
        merged = self.vocabulary[N_SPECIAL:]
        return [b""] * N_SPECIAL + [bytes(_BYTE_OF[c] for c in token) for token in merged]

    @functools.cached_property
    def _library(self) -> Any:
        tokenizers = import_tokenizers()
        numbers = {token: i for i, token in enumerate(self.vocabulary)}
        library = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, self.merges))
        library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = tokenizers.decoders.ByteLevel()
        return library

    def _encode_parts(self, parts: list[str], counts: list[int]) -> Iterator[np.ndarray]:
        for part in parts:
            _utf8(part)
        encoded = iter(self._library.encode_batch_fast(parts, add_special_tokens=False))
        for count in counts:
            pieces = [np.array(next(encoded).ids, np.int32) for _ in range(count)]
            yield np.concatenate(pieces) if count != 1 else pieces[0]


def byte_tokenizer() -> Tokenizer:
    """The tokenizer whose tokens are the 256 bytes: 258 tokens with padding and separator."""
    return Tokenizer(SPECIAL_TOKENS + BYTE_SYMBOLS)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding learnt from the first TRAINING_BYTES of the texts.

    The pair that occurs most often is merged until there are `vocab_size` tokens. The same texts
    in the same order give the same tokenizer, on any number of threads. Raises `InputError` where
    the text has not enough pairs that occur twice, and where the package `tokenizers` is missing.
    """
    check_tokenizer("bpe", vocab_size)
    tokenizers = import_tokenizers()
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - N_SPECIAL,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=list(BYTE_SYMBOLS),
    )
    library.train_from_iterator(_first_bytes(texts, TRAINING_BYTES), trainer=trainer)
    numbers = library.get_vocab()
    merged = sorted(set(numbers) - set(BYTE_SYMBOLS), key=numbers.__getitem__)
    reached = BYTE_VOCAB_SIZE + len(merged)
    if reached < vocab_size:
        raise InputError(
            f"vocab_size is {vocab_size}, and the training text supports {reached} tokens (no "
            f"other pair occurs twice): choose at most {reached}, or add text"
        )
    return Tokenizer(SPECIAL_TOKENS + BYTE_SYMBOLS + tuple(merged))


def check_tokenizer(name: str, vocab_size: int) -> None:
    """Raises `InputError` for an unknown tokenizer or a vocabulary too small for byte pairs."""
    if name not in get_args(TokenizerName):
        raise unknown_name("tokenizer", name, get_args(TokenizerName))
    if name == "bpe" and vocab_size < BYTE_VOCAB_SIZE:
        raise InputError(
            f"vocab_size is {vocab_size}: wanted at least {BYTE_VOCAB_SIZE} for tokenizer 'bpe' "
            "(padding, separator and 256 bytes)"
        )


def import_tokenizers() -> Any:
    """The package `tokenizers`; `InputError` names the extra where it is missing."""
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            "tokenizer 'bpe' wants the package tokenizers, which is not installed: "
            "pip install -e '.[demo]' in the checkout, or choose tokenizer 'bytes'"
        ) from None
    return tokenizers


def is_byte_level(vocabulary: tuple[str, ...] | None) -> bool:
    """Whether the vocabulary is one of `Tokenizer`."""
    first = SPECIAL_TOKENS + BYTE_SYMBOLS
    return vocabulary is not None and vocabulary[: len(first)] == first


def readable(vocabulary: tuple[str, ...], row: np.ndarray) -> str:
    """The text of a row of tokens [T], with the separator's name where a document begins."""
    contents = Tokenizer(vocabulary)._contents
    name = SPECIAL_TOKENS[SEPARATOR].encode()
    parts = [name if token == SEPARATOR else contents[int(token)] for token in row if token != PAD]
    return b"".join(parts).decode("utf-8", errors="replace")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of a text is half a surrogate pair "
            f"({text[error.start]!r}): wanted text that UTF-8 can hold"
        ) from None


def _first_bytes(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        head = text[:limit]  # no fewer bytes than characters
        yield head
        limit -= len(_utf8(head))
        if limit <= 0:
            return


def _pieces(text: str, limit: int) -> Iterator[str]:
    """The text in parts of about `limit` characters that are encoded as they are in the whole.

    A cut lies between a letter or digit and a blank, where no token can span it.
    """
    start = 0
    while len(text) - start > limit:
        at = start + limit
        while at < len(text) and not (text[at] in " \n" and text[at - 1].isalnum()):
            at += 1
        yield text[start:at]
        start = at
    yield text[start:]


def _merged(token: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """What the merges make of a token's bytes, the earliest merge first."""
    parts = list(token)
    while len(parts) > 1:
        pairs = [pair for pair in itertools.pairwise(parts) if pair in ranks]
        if not pairs:
            break
        first = min(pairs, key=ranks.__getitem__)
        joined, i = [], 0
        while i < len(parts):
            found = tuple(parts[i : i + 2]) == first
            joined.append("".join(first) if found else parts[i])
            i += 2 if found else 1
        parts = joined
    return parts
