"""Data sets of images out of directories that TFDS prepared: split, scaled, in memory or not."""

from __future__ import annotations

import numpy as np

from ici.data.dataset import Dataset, Split, StreamedSplit
from ici.data.images import Scaling
from ici.data.splits import shuffled, stratified_split
from ici.data.streaming import ImageRecords, StreamedImages, decoded_bytes
from ici.data.tfds_read import Prepared
from ici.errors import InputError

STREAM_BYTES = 2 * 2**30
SCALING_SAMPLE = 16_384

VALIDATION_NAMES = ("validation", "valid", "val", "dev")


def assemble_images(
    name: str,
    prepared: Prepared,
    fix: str,
    seed: int,
    size: int | None = None,
    stream: bool | None = None,
) -> Dataset:
    """Images float32 [N, H, W, C], each channel shifted and scaled by mean and std of training.

    These are over the training images, or over SCALING_SAMPLE of them, at equal distances, where
    all would take more than STREAM_BYTES as float32; then, too, the training split is read from
    the files as it is needed. `stream` decides that instead; the examples are the same either way.
    Without a validation split a tenth of train, balanced by label, is held out; without a test
    split there is none. Raises `InputError` for damage and where there is no training split.
    """
    available = prepared.split_names
    if "train" not in available:
        raise InputError(
            f"{prepared.directory} has the splits {', '.join(available) or 'none'}: wanted train"
        )
    records = {"train": ImageRecords(prepared, "train", fix, size)}
    for split in available:
        role = "validation" if split in VALIDATION_NAMES else split
        if role in ("validation", "test"):
            records[role] = ImageRecords(prepared, split, fix, size)
    rows = {role: shuffled(np.arange(len(part)), seed) for role, part in records.items()}
    if "validation" not in records:
        held_out = stratified_split(records["train"].labels(), seed, test=0.0)
        rows |= {role: held_out[role] for role in ("train", "validation")}
        records["validation"] = records["train"]
    train = records["train"]
    empty = next((role for role in ("train", "validation") if not len(rows[role])), None)
    if empty:
        raise InputError(f"{prepared.directory}: {empty} has no examples: wanted at least one")
    shape = train.take(rows["train"][:1])[0].shape[1:]
    is_large = len(rows["train"]) * decoded_bytes(shape) > STREAM_BYTES
    scaling = Scaling.of(train.batches(_sample(rows["train"], is_large)))
    held = {
        role: _in_memory(records[role], rows[role], scaling)
        for role in ("validation", "test")
        if role in records
    }
    n_classes = prepared.n_classes or 1 + max(
        int(train.labels().max()), *(int(split.labels.max()) for split in held.values())
    )
    if is_large if stream is None else stream:
        training: Split | StreamedSplit = StreamedImages(train, rows["train"], n_classes, scaling)
    else:
        training = _in_memory(train, rows["train"], scaling)
    return Dataset(
        name=name,
        train=training,
        validation=held["validation"],
        test=held.get("test") or _none_like(held["validation"]),
        n_classes=n_classes,
        input_kind="images",
        notes=f"prepared by TFDS: {prepared.builder.info.full_name}, {prepared.input_key!r}",
    )


def _sample(rows: np.ndarray, is_large: bool) -> np.ndarray:
    # Sorted: neighbours on disk are read together, and the sums do not depend on the order.
    rows = np.sort(rows)
    if not is_large or len(rows) <= SCALING_SAMPLE:
        return rows
    return rows[np.linspace(0, len(rows) - 1, SCALING_SAMPLE).astype(np.int64)]


def _in_memory(records: ImageRecords, rows: np.ndarray, scaling: Scaling) -> Split:
    if len(rows) == 0:
        raise InputError(
            f"{records.prepared.directory}: {records.split} has no examples: wanted at least one"
        )
    images: np.ndarray | None = None
    labels = np.empty(len(rows), np.int32)
    # In the order on disk, and into place at once: there is one copy of the whole in memory.
    for part in np.array_split(np.argsort(rows, kind="stable"), max(1, len(rows) // 1024)):
        pixels, labels[part] = records.take(rows[part])
        if images is None:
            images = np.empty((len(rows), *pixels.shape[1:]), np.float32)
        if pixels.shape[1:] != images.shape[1:]:
            raise InputError(
                f"{records.prepared.directory}: {records.prepared.input_key!r} of {records.split} "
                f"has shapes {images.shape[1:]}, {pixels.shape[1:]}: wanted one shape, give the "
                "size that images are to be resized and cut to"
            )
        images[part] = scaling(pixels)
    assert images is not None
    return Split(images, labels)


def _none_like(split: Split) -> Split:
    return Split(split.inputs[:0], split.labels[:0])
