"""Reading documents back from language-model data, for the tests of all text sources."""

from __future__ import annotations

import numpy as np

from ici.data import Dataset
from ici.data.dataset import SPLITS
from ici.data.language import tokenizer_of
from ici.data.packing import unpack


def texts_of(dataset: Dataset) -> dict[str, list[str]]:
    """The documents of each split, from its rows alone."""
    tokenizer = tokenizer_of(dataset)
    rows = {name: getattr(dataset, name) for name in SPLITS}
    return {
        name: [tokenizer.decode(d) for d in unpack(part.take(np.arange(len(part)))[0])]
        for name, part in rows.items()
    }


def one_line(error) -> str:
    """The message of a caught `InputError`, which must be a single line."""
    assert "\n" not in str(error.value)
    return str(error.value)
