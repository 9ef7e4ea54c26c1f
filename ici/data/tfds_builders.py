"""IMDB reviews and MNIST as TFDS builders that prepare without TensorFlow.

The builders that ship with `tensorflow-datasets` call TensorFlow while they prepare. These write
the same directories (name, config, version, features), so that either reads the other's. Published
checksums of the archives are in `checksums.tsv`, where TFDS looks for them; files from another
`base_url` are not held against them. Import this module only where data are prepared.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from ici.errors import InputError

Example = tuple[Any, dict[str, Any]]


class ImdbReviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """50,000 film reviews with sentiment (Maas et al. 2011), from `aclImdb_v1.tar.gz`."""

    name = "imdb_reviews"
    BASE_URL: ClassVar[str] = "http://ai.stanford.edu/~amaas/data/sentiment/"
    ARCHIVES: ClassVar[tuple[str, ...]] = ("aclImdb_v1.tar.gz",)
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain_text", version="1.0.0")]

    def __init__(self, *, base_url: str = BASE_URL, **kwargs: Any) -> None:
        self._urls = urls(type(self), base_url)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Film reviews labelled negative or positive.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["neg", "pos"]),
                }
            ),
            supervised_keys=("text", "label"),
            homepage="http://ai.stanford.edu/~amaas/data/sentiment/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files: Any = dl_manager.download(self._urls)
        archive = Path(files[self.ARCHIVES[0]])
        return {split: self._generate_examples(archive, split) for split in ("train", "test")}

    def _generate_examples(self, archive: Path, split: str) -> Iterator[Example]:
        member_name = re.compile(rf"(?:\./)?aclImdb/{split}/(neg|pos)/[^/]+\.txt")
        found = False
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    match = member_name.fullmatch(member.name)
                    file = tar.extractfile(member) if match else None
                    if match and file:
                        found = True
                        yield member.name, {"text": file.read().strip(), "label": match[1]}
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise damaged_archive(archive, str(error)) from None
        if not found:
            raise damaged_archive(archive, f"it holds no aclImdb/{split}/{{neg,pos}}/*.txt")


class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """70,000 handwritten digits of 28 x 28 pixels (LeCun et al. 1998), from four IDX files."""

    name = "mnist"
    BASE_URL: ClassVar[str] = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    ARCHIVES: ClassVar[tuple[str, ...]] = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    VERSION = tfds.core.Version("3.0.1")

    def __init__(self, *, base_url: str = BASE_URL, **kwargs: Any) -> None:
        self._urls = urls(type(self), base_url)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yann.lecun.com/exdb/mnist/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files: Any = dl_manager.download(self._urls)
        train_images, train_labels, test_images, test_labels = (
            Path(files[name]) for name in self.ARCHIVES
        )
        return {
            "train": self._generate_examples(train_images, train_labels),
            "test": self._generate_examples(test_images, test_labels),
        }

    def _generate_examples(self, images_path: Path, labels_path: Path) -> Iterator[Example]:
        images, labels = read_idx(images_path, n_axes=3), read_idx(labels_path, n_axes=1)
        if len(images) != len(labels):
            raise damaged_archive(
                images_path, f"{len(images)} images but {len(labels)} labels in {labels_path}"
            )
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield number, {"image": png(image), "label": int(label)}


BUILDERS: dict[str, type[ImdbReviews] | type[Mnist]] = {"imdb_reviews": ImdbReviews, "mnist": Mnist}


def urls(builder: type[ImdbReviews] | type[Mnist], base_url: str) -> dict[str, str]:
    """The address of each archive of a builder, by file name."""
    return {name: f"{base_url.rstrip('/')}/{name}" for name in builder.ARCHIVES}


def read_idx(path: Path, n_axes: int) -> np.ndarray:
    """The uint8 array of a gzipped IDX file with `n_axes` axes (format: LeCun's MNIST page).

    Raises `InputError` naming the file where it is damaged or of another kind.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise damaged_archive(path, str(error)) from None
    header_bytes = 4 * (1 + n_axes)
    header = np.frombuffer(content[:header_bytes], ">u4") if len(content) >= header_bytes else None
    if header is None or header[0] != 0x0800 + n_axes:
        raise damaged_archive(path, f"it is no IDX file of bytes with {n_axes} axes")
    shape = tuple(int(size) for size in header[1:])
    if len(content) - header_bytes != np.prod(shape):
        raise damaged_archive(path, f"it holds {len(content) - header_bytes} values, not {shape}")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def damaged_archive(path: Path, reason: str) -> InputError:
    """The error for a downloaded file that is not what it should be."""
    return InputError(f"downloaded file {path} is damaged ({reason}): delete it and prepare again")


def png(image: np.ndarray) -> io.BytesIO:
    """An image uint8 [H, W] or [H, W, 3] as an open PNG file."""
    # TFDS takes encoded images as they are; encoding an array is what it needs TensorFlow for.
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer
