"""Fashion-MNIST, CIFAR-10 and folders of images as TFDS builders without TensorFlow.

As in `tfds_builders`: the same directories as those of the builders that ship with TFDS. Import
this module only where data are prepared.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from ici.data.images import decoded
from ici.data.tfds_builders import Example, Mnist, damaged_archive, png, urls
from ici.errors import InputError


class FashionMnist(Mnist, skip_registration=True):
    """70,000 articles of clothing of 28 x 28 pixels (Xiao et al. 2017), from four IDX files."""

    name = "fashion_mnist"
    BASE_URL: ClassVar[str] = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    VERSION = tfds.core.Version("3.0.1")
    CLASSES: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def __init__(self, *, base_url: str = BASE_URL, **kwargs: Any) -> None:
        super().__init__(base_url=base_url, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Articles of clothing.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=list(self.CLASSES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 colour images of 32 x 32 pixels in ten classes (Krizhevsky 2009)."""

    name = "cifar10"
    BASE_URL: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/"
    ARCHIVES: ClassVar[tuple[str, ...]] = ("cifar-10-binary.tar.gz",)
    VERSION = tfds.core.Version("3.0.2")
    CLASSES: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    FILES: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    }

    def __init__(self, *, base_url: str = BASE_URL, **kwargs: Any) -> None:
        self._urls: Any = urls(type(self), base_url)  # pyright: ignore[reportArgumentType]
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs of ten kinds of things.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(names=list(self.CLASSES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files: Any = dl_manager.download(self._urls)
        archive = Path(files[self.ARCHIVES[0]])
        return {split: self._generate_examples(archive, split) for split in self.FILES}

    def _generate_examples(self, archive: Path, split: str) -> Iterator[Example]:
        contents: dict[str, bytes] = {}
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    name = member.name.rsplit("/", 1)[-1]
                    file = tar.extractfile(member) if name in self.FILES[split] else None
                    if file:
                        contents[name] = file.read()
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise damaged_archive(archive, str(error)) from None
        number = 0
        for name in self.FILES[split]:
            for label, image in _cifar_records(archive, name, contents.get(name)):
                example_id = f"{split}_{number:05d}"
                yield number, {"id": example_id, "image": png(image), "label": label}
                number += 1


def _cifar_records(
    archive: Path, name: str, content: bytes | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Label and image uint8 [32, 32, 3] of each record: one byte, then the planes R, G and B."""
    size = 1 + 3 * 32 * 32
    if not content or len(content) % size:
        seen = "is missing" if content is None else f"holds {len(content)} bytes"
        raise damaged_archive(archive, f"{name} {seen}, wanted records of {size} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    if records[:, 0].max() > 9:
        raise damaged_archive(archive, f"{name} holds the label {records[:, 0].max()}, above 9")
    for record in records:
        yield int(record[0]), np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))


class ImageFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of a folder SPLIT/CLASS/FILE; the encoded files are kept as they are."""

    name = "image_folder"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, classes: list[str], files: dict[str, list[tuple[Path, str]]], **kwargs: Any
    ) -> None:
        self._classes, self._files = classes, files
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images of a folder.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=self._classes),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(files) for split, files in self._files.items()}

    def _generate_examples(self, files: list[tuple[Path, str]]) -> Iterator[Example]:
        for number, (path, label) in enumerate(files):
            try:
                content = path.read_bytes()
                decoded(content, channels=3)
            except Exception as error:  # Pillow raises whatever its decoders do
                raise InputError(
                    f"image {path} is damaged ({' '.join(str(error).split())[:120]}): repair it or "
                    "take it away"
                ) from None
            yield number, {"image": io.BytesIO(content), "label": label}


IMAGE_BUILDERS: dict[str, type[FashionMnist] | type[Cifar10]] = {
    "fashion_mnist": FashionMnist,
    "cifar10": Cifar10,
}
