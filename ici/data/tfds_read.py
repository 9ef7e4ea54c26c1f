"""Reading directories that TFDS prepared as ArrayRecord; TensorFlow is not needed.

Every record is read, so that a damaged file is found before anything is trained on a part of it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ici.errors import InputError

FeatureKind = Literal["text", "image", "tensor"]


@dataclass(frozen=True)
class Prepared:
    """An opened directory: its builder, and which features are the input and the label."""

    directory: Path
    builder: Any
    input_key: str
    label_key: str
    kind: FeatureKind
    n_classes: int | None

    @property
    def split_names(self) -> list[str]:
        return list(self.builder.info.splits)


def find_directory(path: Path) -> Path:
    """The version directory at `path`, or the only one below it.

    Raises `InputError` where there is none, several, or only one that was not finished.
    """
    if not os.path.isdir(path):
        raise InputError(
            f"no directory {path}: wanted a prepared TFDS directory such as DIR/mnist/3.0.1"
        )
    if path.name.startswith("incomplete."):
        raise InputError(f"{path} is half prepared (its name says so): prepare it again")
    if os.path.isfile(path / "dataset_info.json"):
        return path
    found = [
        info.parent
        for pattern in ("*/dataset_info.json", "*/*/dataset_info.json")
        for info in sorted(path.glob(pattern))
        if not info.parent.name.startswith("incomplete.")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{path} holds {len(found)} prepared data sets: wanted one of "
            f"{', '.join(str(directory) for directory in found)}"
        )
    unfinished = sorted(path.rglob("incomplete.*"))
    if unfinished:
        raise InputError(
            f"{path} is half prepared (it holds {unfinished[0].name}): prepare it again"
        )
    raise InputError(
        f"{path} has no dataset_info.json: wanted a prepared TFDS directory such as DIR/mnist/3.0.1"
    )


def import_tfds() -> Any:
    """The module `tensorflow_datasets`; `InputError` names the extra where it is missing."""
    try:
        import array_record.python.array_record_module  # noqa: F401
        import importlib_resources  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"TFDS directories want the package {error.name}, which is not installed: "
            "pip install -e '.[tfds]' in the checkout"
        ) from None
    return tfds


def file_formats(directory: Path) -> list[str]:
    """The formats that a version directory says it holds; none where it cannot be read."""
    try:
        info = json.loads((directory / "dataset_info.json").read_bytes())
        return [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ())]
    except (OSError, ValueError, AttributeError):
        return []


def open_builder(directory: Path, fix: str) -> Any:
    """The builder of a version directory; `fix` ends the message where something is damaged.

    Raises `InputError` for another file format and for damage.
    """
    info_path = directory / "dataset_info.json"
    formats = file_formats(directory)
    if not formats:
        raise InputError(f"{info_path} is damaged or missing: {fix}")
    if "array_record" not in formats:
        raise InputError(
            f"{directory} is in {formats[0]} format, wanted array_record: where TensorFlow is "
            f"installed, run: tfds convert_format --dataset_version_dir={directory} "
            "--out_file_format=array_record --out_dir=NEW_DIR"
        )
    tfds = import_tfds()
    try:
        builder = tfds.builder_from_directory(directory, file_format="array_record")
        _ = builder.info.features
    except Exception as error:
        raise InputError(
            f"{directory / 'features.json'} or {info_path.name} is damaged or missing "
            f"({' '.join(str(error).split())[:120]}): {fix}"
        ) from None
    return builder


def open_directory(
    directory: Path, fix: str, input_feature: str = "", label_feature: str = ""
) -> Prepared:
    """Opens a version directory as `open_builder` does.

    Raises `InputError` also where the input and the label cannot be told from the features.
    """
    builder = open_builder(directory, fix)
    tfds = import_tfds()
    features: Any = builder.info.features
    if not isinstance(features, tfds.features.FeaturesDict):
        raise InputError(f"{directory} has no named features: wanted an input and a label")
    input_key, label_key = _choose(directory, builder.info, input_feature, label_feature)
    label = features[label_key]
    return Prepared(
        directory=directory,
        builder=builder,
        input_key=input_key,
        label_key=label_key,
        kind=_kinds(dict(features))[input_key],
        n_classes=label.num_classes if isinstance(label, tfds.features.ClassLabel) else None,
    )


def read_split(prepared: Prepared, split: str, fix: str) -> tuple[list[Any], np.ndarray]:
    """All inputs (bytes of text, or arrays) and labels int64 [N] of one split.

    Raises `InputError` naming the file for a missing, truncated or altered file.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    info = prepared.builder.info.splits[split]
    files = [Path(path) for path in info.filepaths]
    ends = np.cumsum(info.shard_lengths)
    for path, wanted in zip(files, info.shard_lengths, strict=True):
        try:
            reader = ArrayRecordReader(str(path))
            seen = reader.num_records()
            reader.close()
        except Exception as error:
            raise damaged(path, error, fix) from None
        if seen != wanted:
            raise damaged(path, f"{seen} records where {wanted} are listed", fix)
    inputs, labels = [], np.empty(info.num_examples, np.int64)
    source = prepared.builder.as_data_source(split=split)
    for i in range(len(labels)):
        try:
            example = source[i]
            inputs.append(example[prepared.input_key])
            labels[i] = example[prepared.label_key]
        except Exception as error:  # the reader raises RuntimeError, TypeError, decoders their own
            raise damaged(files[np.searchsorted(ends, i, side="right")], error, fix) from None
    return inputs, labels


def stacked(inputs: list[Any], prepared: Prepared, split: str) -> np.ndarray:
    """Images or tensors as one float32 array; `InputError` where their shapes differ."""
    shapes = {np.shape(value) for value in inputs}
    if len(shapes) > 1:
        raise InputError(
            f"{prepared.directory}: {prepared.input_key!r} of {split} has shapes "
            f"{', '.join(str(shape) for shape in sorted(shapes)[:3])}: wanted one shape"
        )
    return np.asarray(inputs, np.float32)


def _kinds(features: dict[str, Any]) -> dict[str, FeatureKind]:
    """The features that can be inputs, and as what."""
    from tensorflow_datasets import features as f

    kinds: dict[str, FeatureKind] = {}
    for key, feature in features.items():
        if isinstance(feature, f.Text):
            kinds[key] = "text"
        elif isinstance(feature, f.Image):
            kinds[key] = "image"
        elif _is_numeric(feature, n_axes=1, kinds="biuf"):
            kinds[key] = "tensor"
    return kinds


def _is_numeric(feature: Any, n_axes: int, kinds: str) -> bool:
    from tensorflow_datasets import features as f

    if not isinstance(feature, f.Tensor):
        return False
    numeric: Any = feature
    return len(numeric.shape) == n_axes and np.dtype(numeric.np_dtype).kind in kinds


def _choose(directory: Path, info: Any, input_feature: str, label_feature: str) -> tuple[str, str]:
    """The features that the user names, else the supervised keys, else the only candidates."""
    from tensorflow_datasets import features as f

    features: dict[str, Any] = dict(info.features)
    kinds = _kinds(features)
    labels = [key for key, feature in features.items() if _is_numeric(feature, 0, "biu")]
    class_labels = [key for key in labels if isinstance(features[key], f.ClassLabel)]
    told: Any = info.supervised_keys
    if isinstance(told, tuple) and len(told) == 2:
        input_feature = input_feature or (told[0] if told[0] in kinds else "")
        label_feature = label_feature or (told[1] if told[1] in labels else "")
    if not label_feature:
        label_feature = class_labels[0] if len(class_labels) == 1 else "label"
    if not input_feature:
        for kind in ("text", "image", "tensor"):
            of_kind = [key for key in kinds if kinds[key] == kind]
            if len(of_kind) == 1:
                input_feature = of_kind[0]
            if of_kind:
                break
    if input_feature not in kinds or label_feature not in labels:
        raise InputError(
            f"{directory} has the features {', '.join(sorted(features))}: wanted one text, image "
            "or vector and one whole-number label, name them with input_feature and label_feature"
        )
    return input_feature, label_feature


def damaged(path: Path, reason: BaseException | str, fix: str) -> InputError:
    """The error for a file of a prepared directory that cannot be read."""
    text = " ".join(str(reason).split())[:120]
    return InputError(f"{path} is damaged or missing ({text}): {fix}")
