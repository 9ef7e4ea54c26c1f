"""What `ici data list | prepare | show` do; printing is the caller's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ici.data.cache import CachedData, is_prepared
from ici.data.cache import prepare as prepare_cached
from ici.data.dataset import (
    IGNORED,
    PAD,
    SEPARATOR,
    SPLITS,
    UNKNOWN,
    Dataset,
    Split,
    StreamedSplit,
)
from ici.data.language import bytes_per_token
from ici.data.packing import padding_share
from ici.data.registry import names, registered_class, resolve
from ici.data.tokenizers import BYTE_VOCAB_SIZE, is_byte_level
from ici.errors import InputError

SAMPLE = 1024
_VOCABULARY_HEAD = 12
_EXAMPLE_WORDS = 40
_PERCENTILES = (5, 50, 95, 100)


def listing() -> list[dict[str, str]]:
    """One row per registered source: name, kind, needs, prepared ("yes", "no", "not needed").

    `prepared` looks for the source's default settings; "-" where it has none.
    """
    rows = []
    for name in names():
        try:
            config = resolve(name)
        except InputError:  # a source that wants an argument, such as tfds:DIRECTORY
            config, prepared = registered_class(name), "-"
        else:
            prepared = "not needed"
            if isinstance(config, CachedData):
                prepared = "yes" if is_prepared(config) else "no"
        rows.append(
            {"name": name, "kind": config.kind, "needs": config.needs, "prepared": prepared}
        )
    return rows


def prepare(spec: str, rebuild: bool = False) -> Path | None:
    """Builds and stores a source's arrays; returns their directory.

    None for a source that is made on the fly, which is loaded once to check it. `rebuild` builds
    again whatever is stored. Raises `InputError`, with nothing half-written.
    """
    config = resolve(spec)
    if isinstance(config, CachedData):
        return prepare_cached(config, rebuild)
    config.load()
    return None


def show(spec: str) -> dict[str, Any]:
    """Facts about a source, as JSON values.

    name, kind, task, n_classes, notes, digest; `splits`: per split its size, the number of examples
    per label, and for tokens the length percentiles (5, 50, 95, 100, in tokens) and the share of
    unknown words, otherwise the mean and std of the inputs; vocab_size and the head of the
    vocabulary; two examples of train. For language models a split has instead the number of
    documents that begin in its rows, of tokens and of labels that count, and the share of padding;
    for a streamed split these facts, and those above, are of SAMPLE examples at equal distances.
    """
    dataset = resolve(spec).load()
    facts: dict[str, Any] = {
        "name": dataset.name,
        "kind": dataset.input_kind,
        "task": dataset.task,
        "input_shape": list(dataset.train.example_shape),
        "n_classes": dataset.n_classes,
        "notes": dataset.notes,
        "digest": dataset.digest,
        "splits": {name: _split_facts(dataset, getattr(dataset, name)) for name in SPLITS},
        "examples": [_example(dataset, i) for i in range(min(2, len(dataset.train)))],
    }
    if dataset.vocab_size is not None:
        facts["vocab_size"] = dataset.vocab_size
    if dataset.vocabulary is not None:
        is_text = is_byte_level(dataset.vocabulary)
        first = BYTE_VOCAB_SIZE if is_text else 0  # the bytes before are those of every vocabulary
        facts["vocabulary_head"] = list(dataset.vocabulary[first : first + _VOCABULARY_HEAD])
        if is_text and dataset.task == "language_model":
            facts["bytes_per_token"] = bytes_per_token(dataset)
    return facts


def _split_facts(dataset: Dataset, split: Split | StreamedSplit) -> dict[str, Any]:
    if isinstance(split, Split):
        return _facts(dataset, split)
    n = min(SAMPLE, len(split))
    sample = Split(*split.take(np.linspace(0, len(split) - 1, n).astype(np.int64)))
    streamed = {"size": len(split), "streamed": True, "size_of_sample": n}
    return {**_facts(dataset, sample), **streamed}


def _facts(dataset: Dataset, split: Split) -> dict[str, Any]:
    if dataset.task == "language_model":
        return {"size": len(split), **_text_facts(split)}
    if dataset.task == "regression":
        return {"size": len(split)}
    counts = np.bincount(split.labels, minlength=dataset.n_classes)
    facts: dict[str, Any] = {"size": len(split), "label_counts": counts.tolist()}
    if len(split) == 0:
        return facts
    if dataset.input_kind == "tokens":
        lengths = (split.inputs != PAD).sum(axis=1)
        facts["length_tokens"] = {
            f"p{percent}": int(np.percentile(lengths, percent, method="nearest"))
            for percent in _PERCENTILES
        }
        facts["unknown_share"] = float((split.inputs == UNKNOWN).sum() / lengths.sum())
    else:
        facts["mean"] = float(split.inputs.mean(dtype=np.float64))
        facts["std"] = float(split.inputs.std(dtype=np.float64))
    return facts


def _text_facts(split: Split) -> dict[str, Any]:
    if len(split) == 0:
        return {}
    return {
        "documents": int((split.inputs == SEPARATOR).sum()),
        "tokens": int((split.inputs != PAD).sum()),
        "labels": int((split.labels != IGNORED).sum()),
        "padding_share": padding_share(split.inputs),
    }


def _example(dataset: Dataset, i: int) -> dict[str, Any]:
    row, label = (part[0] for part in dataset.train.take(np.array([i])))
    if dataset.task == "language_model":
        return {"text": dataset.decode(row)}
    label = label.tolist()
    if dataset.input_kind == "tokens":
        words = dataset.decode(row).split(" ")
        more = " ..." if len(words) > _EXAMPLE_WORDS else ""
        return {"label": label, "text": " ".join(words[:_EXAMPLE_WORDS]) + more}
    values = ", ".join(f"{value:.3g}" for value in row.ravel()[:8])
    return {"label": label, "text": f"[{values}{', ...' if row.size > 8 else ''}]"}
