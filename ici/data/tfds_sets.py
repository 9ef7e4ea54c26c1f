"""IMDB reviews, MNIST and any directory that TFDS prepared, as data sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ici.data.cache import CachedData
from ici.data.dataset import Dataset, Split
from ici.data.registry import register
from ici.data.splits import repeated, shuffled, stratified_split
from ici.data.text import (
    build_vocabulary,
    check_seed,
    check_text_settings,
    encode,
    normalized,
    words,
)
from ici.errors import InputError

TFDS_NEEDS = "pip install -e '.[tfds]', and network once or a directory prepared as ArrayRecord"


@register("imdb_reviews")
@dataclass(frozen=True)
class ImdbReviews(CachedData):
    """50,000 film reviews (Maas et al. 2011), negative 0 or positive 1, as tokens [N, max_tokens].

    Official train and test halves; a tenth of train, balanced by label and without texts that
    occur twice, is held out for validation. Raises `InputError` without network and prepared data.
    """

    vocab_size: int = 8192
    max_tokens: int = 256
    split_seed: int = 0

    kind: ClassVar[str] = "text"
    needs: ClassVar[str] = TFDS_NEEDS

    def __post_init__(self) -> None:
        check_text_settings(self.vocab_size, self.max_tokens, self.split_seed)

    def build(self, refresh: bool = False) -> Dataset:
        return build_named("imdb_reviews", refresh, self.split_seed, self)


@register("mnist")
@dataclass(frozen=True)
class Mnist(CachedData):
    """70,000 digits (LeCun et al. 1998) as images [N, 28, 28, 1].

    Official train and test; a tenth of train, balanced by label, is held out for validation.
    Scaled by the overall mean and std of the training split. Raises `InputError` without network
    and prepared data.
    """

    split_seed: int = 0

    kind: ClassVar[str] = "images"
    needs: ClassVar[str] = TFDS_NEEDS

    def __post_init__(self) -> None:
        check_seed(self.split_seed)

    def build(self, refresh: bool = False) -> Dataset:
        return build_named("mnist", refresh, self.split_seed)


@register("tfds")
@dataclass(frozen=True)
class TfdsDirectory(CachedData):
    """Any directory that TFDS prepared as ArrayRecord: "tfds:/data/mnist/3.0.1".

    Wants one text, image or vector feature and one label, found by themselves or named. Without a
    validation split a tenth of train is held out; without a test split there is none. Text and
    images are treated as in `ImdbReviews` and `Mnist`, each channel of an image by its own mean and
    std; vectors are left as they are. With `image_size` the shorter side of an image is resized to
    it and the centre is cut out. `stream` reads training images from the files as they are needed;
    None: where they would take more than 2 GiB of memory. A name without a path is looked for in
    $TFDS_DATA_DIR.
    """

    path: str
    vocab_size: int = 8192
    max_tokens: int = 256
    split_seed: int = 0
    input_feature: str = ""
    label_feature: str = ""
    image_size: int | None = None
    stream: bool | None = None

    kind: ClassVar[str] = "any"
    needs: ClassVar[str] = (
        "pip install -e '.[tfds]' in the checkout, and tfds:DIRECTORY, prepared as ArrayRecord"
    )

    def __post_init__(self) -> None:
        check_text_settings(self.vocab_size, self.max_tokens, self.split_seed)
        check_image_size(self.image_size)

    def source_stamp(self) -> dict[str, Any]:
        """Name, size and time of every file: data that were prepared again are read again."""
        from ici.data.tfds_names import find_named

        directory = find_named(self.path)
        return {
            file.name: [file.stat().st_size, file.stat().st_mtime_ns]
            for file in sorted(directory.iterdir())
        }

    def build(self, refresh: bool = False) -> Dataset:
        from ici.data.tfds_names import find_named
        from ici.data.tfds_read import open_directory

        directory = find_named(self.path)
        fix = "prepare or copy the directory again"
        prepared = open_directory(directory, fix, self.input_feature, self.label_feature)
        name = f"tfds:{prepared.builder.info.full_name}"
        return _assemble(name, prepared, fix, self.split_seed, self)


def check_image_size(size: int | None) -> None:
    """Raises `InputError` for a size that no image can have."""
    if size is not None and size < 1:
        raise InputError(f"image size is {size}: wanted at least 1 pixel")


def build_named(name: str, refresh: bool, seed: int, settings: Any = None) -> Dataset:
    """A data set that we have a builder for, from where it is prepared, or prepared now.

    `settings` has, for text, those of `ImdbReviews`; for images, `image_size` and `stream` or not.
    """
    from ici.data.tfds_prepare import locate, prepare
    from ici.data.tfds_read import open_directory

    fix = f"run: ici data prepare {name} --rebuild"

    def read(directory: Path) -> Dataset:
        return _assemble(name, open_directory(directory, fix), fix, seed, settings)

    directory = locate(name)
    if directory is None:
        return read(prepare(name))
    try:
        return read(directory)
    except InputError:
        if not refresh:
            raise
        return read(prepare(name, overwrite=True))


def _assemble(name: str, prepared: Any, fix: str, seed: int, settings: Any) -> Dataset:
    """Reads the splits, holds out a validation split where there is none, and encodes."""
    from ici.data.image_sets import VALIDATION_NAMES, assemble_images
    from ici.data.tfds_read import read_split

    stream = getattr(settings, "stream", None)
    if prepared.kind == "image":
        size = getattr(settings, "image_size", None)
        return assemble_images(name, prepared, fix, seed, size, stream)
    if stream:
        raise InputError(
            f"stream is True and {prepared.input_key!r} of {prepared.directory} holds no images: "
            "wanted stream None or False"
        )
    available = prepared.split_names
    if "train" not in available:
        raise InputError(
            f"{prepared.directory} has the splits {', '.join(available) or 'none'}: wanted train"
        )
    inputs, labels = read_split(prepared, "train", fix)
    raw: dict[str, tuple[list[Any], np.ndarray]] = {"test": ([], labels[:0])}
    for split in available:
        role = "validation" if split in VALIDATION_NAMES else split
        if role in ("validation", "test"):
            raw[role] = _reordered(*read_split(prepared, split, fix), seed)
    if "validation" in raw:
        raw["train"] = _reordered(inputs, labels, seed)
    else:
        is_text = prepared.kind == "text"
        pinned = repeated([normalized(value) for value in inputs]) if is_text else None
        rows = stratified_split(labels, seed, test=0.0, keep_in_train=pinned)
        for role in ("train", "validation"):
            raw[role] = ([inputs[i] for i in rows[role]], labels[rows[role]])
    n_classes = prepared.n_classes or 1 + max(int(part.max(initial=1)) for _, part in raw.values())
    encoder: Callable[..., dict[str, Any]] = _as_text if prepared.kind == "text" else _as_arrays
    return Dataset(
        name=name,
        n_classes=n_classes,
        notes=f"prepared by TFDS: {prepared.builder.info.full_name}, {prepared.input_key!r}",
        **encoder(raw, prepared, settings),
    )


def _reordered(inputs: list[Any], labels: np.ndarray, seed: int) -> tuple[list[Any], np.ndarray]:
    order = shuffled(np.arange(len(labels)), seed)
    return [inputs[i] for i in order], labels[order]


def _as_text(raw: dict[str, Any], prepared: Any, text: Any) -> dict[str, Any]:
    documents = {
        role: [words(value, text.max_tokens) for value in inputs]
        for role, (inputs, _) in raw.items()
    }
    vocabulary = build_vocabulary(documents["train"], text.vocab_size)
    splits = {
        role: Split(encode(documents[role], vocabulary, text.max_tokens), labels)
        for role, (_, labels) in raw.items()
    }
    return {
        **splits,
        "input_kind": "tokens",
        "vocab_size": len(vocabulary),
        "vocabulary": vocabulary,
    }


def _as_arrays(raw: dict[str, Any], prepared: Any, text: Any) -> dict[str, Any]:
    from ici.data.tfds_read import stacked

    roles = ("train", "validation", "test")
    arrays = {role: stacked(raw[role][0], prepared, role) for role in roles}
    if not raw["test"][0]:
        arrays["test"] = arrays["train"][:0]
    splits = {role: Split(arrays[role], raw[role][1]) for role in roles}
    return {**splits, "input_kind": "vectors"}
