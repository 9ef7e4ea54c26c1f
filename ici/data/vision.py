"""Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ici.data.cache import CachedData
from ici.data.dataset import Dataset, Split
from ici.data.registry import register
from ici.data.splits import shuffled, standardize, stratified_split
from ici.data.text import check_seed
from ici.data.tfds_sets import TFDS_NEEDS, build_named
from ici.errors import InputError

# Where Debian's package dataset-fashion-mnist may put the files.
DEBIAN_DIRECTORIES = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path("/usr/share/dataset-fashion-mnist"),
    Path("/usr/share/datasets"),
)
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


@register("fashion_mnist")
@dataclass(frozen=True)
class FashionMnist(CachedData):
    """70,000 articles of clothing (Xiao et al. 2017) as images [N, 28, 28, 1].

    Official train and test; a tenth of train, balanced by label, is held out for validation.
    Scaled by the overall mean and std of the training split. The four IDX files are read from
    `directory` where it is given, else from where Debian's package dataset-fashion-mnist puts them,
    else from what TFDS prepared. Raises `InputError` where they are damaged or in none of these
    places and there is no network.
    """

    split_seed: int = 0
    directory: str = ""

    kind: ClassVar[str] = "images"
    needs: ClassVar[str] = TFDS_NEEDS

    def __post_init__(self) -> None:
        check_seed(self.split_seed)

    def source_stamp(self) -> dict[str, Any]:
        """Size and time of the IDX files, where there are any."""
        directory = self._idx_directory()
        if directory is None:
            return {}
        files = [directory / name for names in _IDX_FILES.values() for name in names]
        return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}

    def build(self, refresh: bool = False) -> Dataset:
        directory = self._idx_directory()
        if directory is None:
            return build_named("fashion_mnist", refresh, self.split_seed)
        images, labels = _read_idx_pair(directory, "train")
        test_images, test_labels = _read_idx_pair(directory, "test")
        rows = stratified_split(labels, self.split_seed, test=0.0)
        order = shuffled(np.arange(len(test_labels)), self.split_seed)
        train, validation, test = standardize(
            Split(images[rows["train"]], labels[rows["train"]]),
            Split(images[rows["validation"]], labels[rows["validation"]]),
            Split(test_images[order], test_labels[order]),
        )
        return Dataset(
            name="fashion_mnist",
            train=train,
            validation=validation,
            test=test,
            n_classes=10,
            input_kind="images",
            notes="IDX files; a tenth of train held out by label; scaled by the training split",
        )

    def _idx_directory(self) -> Path | None:
        wanted = [name for names in _IDX_FILES.values() for name in names]
        if self.directory:
            given = Path(self.directory).expanduser()
            missing = [name for name in wanted if not (given / name).is_file()]
            if missing:
                raise InputError(f"{given} has no {missing[0]}: wanted {', '.join(wanted)} in it")
            return given
        for directory in DEBIAN_DIRECTORIES:
            if all((directory / name).is_file() for name in wanted):
                return directory
        return None


@register("cifar10")
@dataclass(frozen=True)
class Cifar10(CachedData):
    """60,000 colour images in ten classes (Krizhevsky 2009), [N, 32, 32, 3].

    Official train and test; a tenth of train, balanced by label, is held out for validation. Each
    channel is scaled by its own mean and std over the training split. `stream` reads training
    images from disk as they are needed; None keeps them in memory. Raises `InputError` without
    network and prepared data.
    """

    split_seed: int = 0
    stream: bool | None = None

    kind: ClassVar[str] = "images"
    needs: ClassVar[str] = TFDS_NEEDS

    def __post_init__(self) -> None:
        check_seed(self.split_seed)

    def build(self, refresh: bool = False) -> Dataset:
        return build_named("cifar10", refresh, self.split_seed, self)


def _read_idx_pair(directory: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    from ici.data.tfds_builders import read_idx

    images_path, labels_path = (directory / name for name in _IDX_FILES[split])
    images, labels = read_idx(images_path, n_axes=3), read_idx(labels_path, n_axes=1)
    if len(images) != len(labels):
        raise InputError(
            f"{images_path} holds {len(images)} images but {labels_path} "
            f"{len(labels)} labels: wanted one label per image"
        )
    return images[..., None], labels.astype(np.int64)
