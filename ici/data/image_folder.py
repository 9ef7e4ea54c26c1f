"""A folder of images, DIR/train/CLASS/FILE, as a data source."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ici.data.cache import CachedData, root
from ici.data.dataset import Dataset
from ici.data.registry import register
from ici.data.text import check_seed
from ici.data.tfds_sets import check_image_size
from ici.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")

_ROLES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


@register("image_folder")
@dataclass(frozen=True)
class ImageFolder(CachedData):
    """Images in DIR/train/CLASS and DIR/{val,validation,test}/CLASS, as [N, size, size, 3].

    The encoded files are packed once, as they are, into ArrayRecord files in the data directory;
    when they are read the shorter side is resized to `size` and the centre is cut out. Grey images
    become RGB, transparency is dropped. The classes are the folders of train, sorted by name.
    Without a validation folder a tenth of train, balanced by label, is held out. Each channel is
    scaled by its own mean and std over the training split. `stream` reads training images from
    disk as they are needed; None: where they would take more than 2 GiB of memory. Raises
    `InputError` for a folder of another layout and naming a damaged image.
    """

    path: str
    size: int = 64
    split_seed: int = 0
    stream: bool | None = None

    kind: ClassVar[str] = "images"
    needs: ClassVar[str] = (
        "pip install -e '.[tfds]' in the checkout, and image_folder:DIR with DIR/train/CLASS/*.jpg"
    )

    def __post_init__(self) -> None:
        check_seed(self.split_seed)
        check_image_size(self.size)

    def source_stamp(self) -> dict[str, Any]:
        """A digest over name, size and time of every file: a changed folder is read again."""
        digest = hashlib.sha256()
        for split, files in self._files().items():
            for path, label in files:
                stat = path.stat()
                facts = (split, label, path.name, stat.st_size, stat.st_mtime_ns)
                digest.update(repr(facts).encode())
        return {"files": digest.hexdigest()}

    def build(self, refresh: bool = False) -> Dataset:
        from ici.data.image_sets import assemble_images
        from ici.data.tfds_read import open_directory

        fix = f"run: ici data prepare {self.spec} --rebuild"
        prepared = open_directory(self._packed(refresh), fix)
        name = f"image_folder:{Path(self.path).name}"
        return assemble_images(name, prepared, fix, self.split_seed, self.size, self.stream)

    def _packed(self, refresh: bool) -> Path:
        """The ArrayRecord directory of exactly these files; written where there is none."""
        import shutil

        from ici.data.tfds_read import import_tfds

        tfds = import_tfds()
        from ici.data.tfds_image_builders import ImageFolder as Builder

        data_dir = root() / "tfds" / f"image_folder-{self.source_stamp()['files'][:16]}"
        target = data_dir / "image_folder" / "1.0.0"
        if target.is_dir() and not refresh:
            return target
        shutil.rmtree(target, ignore_errors=True)
        files = self._files()
        classes = sorted({label for _, label in files["train"]})
        try:
            builder = Builder(
                data_dir=str(data_dir), file_format="array_record", classes=classes, files=files
            )
            # TFDS prints its progress; standard output is for what a command is asked for.
            with contextlib.redirect_stdout(sys.stderr):
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
        except InputError:
            raise
        except OSError as error:
            if not os.path.isfile(target / "dataset_info.json"):
                raise InputError(
                    f"cannot pack {self.path} into {target} ({' '.join(str(error).split())}): "
                    "wanted a writable directory with free space, see ICI_DATA_DIR"
                ) from None
        return target

    def _files(self) -> dict[str, list[tuple[Path, str]]]:
        """Path and class of every image, by split, sorted."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise InputError(f"no directory {folder}: wanted DIR with DIR/train/CLASS/*.jpg")
        files: dict[str, list[tuple[Path, str]]] = {}
        for split in sorted(path for path in folder.iterdir() if path.is_dir()):
            role = _ROLES.get(split.name)
            if role is None:
                continue
            if role in files:
                raise InputError(f"{folder} has several folders for {role}: wanted one")
            files[role] = [
                (path, label.name)
                for label in sorted(path for path in split.iterdir() if path.is_dir())
                for path in sorted(label.iterdir())
                if path.suffix.lower() in SUFFIXES
            ]
            if not files[role]:
                raise InputError(
                    f"{split} holds no image: wanted {split}/CLASS/*.jpg ({', '.join(SUFFIXES)})"
                )
        if "train" not in files:
            raise InputError(f"{folder} has no folder train: wanted DIR/train/CLASS/*.jpg")
        classes = {label for _, label in files["train"]}
        if len(classes) < 2:
            raise InputError(f"{folder}/train has the classes {', '.join(classes)}: wanted two")
        for role, found in files.items():
            if unknown := sorted({label for _, label in found} - classes):
                raise InputError(
                    f"{folder}: the class {unknown[0]} of {role} is none of train: wanted folders "
                    f"of the same names ({', '.join(sorted(classes)[:8])})"
                )
        return files
