"""From documents to packed language-model data: what all text sources share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ici.data.cache import new_part
from ici.data.dataset import IGNORED, PAD, SEPARATOR, Dataset, Split
from ici.data.packing import Packing, check_packing, pack
from ici.data.token_rows import TokenRows, TokenWriter
from ici.data.tokenizers import (
    Tokenizer,
    TokenizerName,
    byte_tokenizer,
    check_tokenizer,
    import_tokenizers,
    train_bpe,
)
from ici.errors import InputError

# A training split whose rows would take more is read from disk.
IN_MEMORY_BYTES = 2 << 30


class TextSettings(Protocol):
    """The settings that every text source has."""

    @property
    def tokenizer(self) -> TokenizerName: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def packing(self) -> Packing: ...
    @property
    def stream(self) -> bool | None: ...


@dataclass(frozen=True)
class Documents:
    """Texts of each split. `train` is called for every pass over what need not fit in memory."""

    train: Callable[[], Iterable[str]]
    validation: Sequence[str]
    test: Sequence[str]


def check_settings(settings: TextSettings) -> None:
    """Raises `InputError` for settings that make no language-model data."""
    check_tokenizer(settings.tokenizer, settings.vocab_size)
    check_packing(settings.packing, settings.sequence_length)


def check_packages(settings: TextSettings) -> None:
    """Raises `InputError` where what the settings need is not installed: before long reading."""
    if settings.tokenizer == "bpe":
        import_tokenizers()


def assemble(name: str, documents: Documents, settings: TextSettings, notes: str) -> Dataset:
    """Tokenizes and packs; the tokenizer learns from the training documents alone.

    Documents without a character are left out. The training split is read from disk as `stream`
    and IN_MEMORY_BYTES say. Raises `InputError` where a split has no text, where the training text
    is shorter than one sequence, and as `train_bpe` and `TokenWriter` do.
    """
    for split, texts in (("train", documents.train()), ("validation", documents.validation)):
        if next(_filled(texts), None) is None:
            raise InputError(
                f"data set {name!r} has no document for its {split} split: wanted text, in two or "
                "more documents"
            )
    tokenizer = byte_tokenizer()
    if settings.tokenizer == "bpe":
        tokenizer = train_bpe(_filled(documents.train()), settings.vocab_size)
    length, packing = settings.sequence_length, settings.packing
    limit = IN_MEMORY_BYTES
    with TokenWriter(new_part, tokenizer.vocab_size, settings.stream, limit) as writer:
        writer.extend(tokenizer.encode_all(_filled(documents.train())))
        if writer.n_tokens < length:
            raise InputError(
                f"data set {name!r} has {writer.n_tokens} training tokens and sequence_length is "
                f"{length}: wanted at least one sequence, choose a shorter one or add text"
            )
        packed = writer.finish(length, packing)
        train = packed if isinstance(packed, TokenRows) else Split(*packed)
        validation, test = (
            Split(*pack(tokenizer.encode_all(_filled(texts)), length, packing))
            for texts in (documents.validation, documents.test)
        )
        padding = 1 - writer.n_tokens / (len(train) * length)
        return Dataset(
            name=name,
            train=train,
            validation=validation,
            test=test,
            n_classes=tokenizer.vocab_size,
            input_kind="tokens",
            vocab_size=tokenizer.vocab_size,
            vocabulary=tokenizer.vocabulary,
            task="language_model",
            notes=(
                f"{notes}; tokenizer {settings.tokenizer}, "
                f"{_bytes_per_token(tokenizer, validation):.4f} bytes of text per token of "
                f"validation; train {writer.n_documents} documents, {writer.n_tokens} tokens, "
                f"{padding:.2%} padding; validation {_size(validation)}; test {_size(test)}; "
                f"rows of {length}, packing {packing}"
            ),
        )


def bytes_per_token(dataset: Dataset, split: str = "validation") -> float:
    """Bytes of text per predicted token of a split in memory.

    A loss in nats per token is loss / (ln 2 * bytes_per_token) bits per byte of text. Separators
    are predicted like any token and stand for no byte. Raises `InputError` for a data set whose
    tokens are not made of bytes.
    """
    return _bytes_per_token(tokenizer_of(dataset), getattr(dataset, split))


def tokenizer_of(dataset: Dataset) -> Tokenizer:
    """The tokenizer that a language-model data set was made with; `InputError` without one."""
    if dataset.vocabulary is None:
        raise InputError(f"data set {dataset.name!r} has no vocabulary: wanted text in tokens")
    return Tokenizer(dataset.vocabulary)


def _bytes_per_token(tokenizer: Tokenizer, split: Split) -> float:
    predicted = split.labels[split.labels != IGNORED]
    return float(tokenizer.byte_counts[predicted].sum() / predicted.size)


def _size(split: Split) -> str:
    documents, tokens = np.sum(split.inputs == SEPARATOR), np.sum(split.inputs != PAD)
    return f"{documents} documents, {tokens} tokens"


def _filled(texts: Iterable[str]) -> Iterator[str]:
    return (text for text in texts if text)
