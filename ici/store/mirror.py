"""Copies of folders in places that their own writer cannot reach, such as checkpoints at s3://.

A copy counts once the list of its files is there, which is put last and removed first: one that was
cut short does not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ici.errors import InputError
from ici.store.places import RemotePath

FILES = ".ici.files.json"


def put_folder(folder: Path, copy: RemotePath) -> None:
    """Copies all files of `folder`; what was at `copy` is replaced."""
    (copy / FILES).unlink(missing_ok=True)
    copy.remove_below()
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        (copy / name).upload(file)
        sizes[name] = file.stat().st_size
    (copy / FILES).write_text(json.dumps(sizes))


def complete_copies(parent: RemotePath) -> list[str]:
    """Names of the complete copies directly below `parent`, sorted."""
    try:
        return sorted(each.name for each in parent.iterdir() if (each / FILES).exists())
    except FileNotFoundError:
        return []


def get_folder(copy: RemotePath, folder: Path) -> None:
    """Copies back into `folder`, which appears only when all is there.

    Raises:
      InputError: there is no complete copy, or a file of it is missing or of another size.
    """
    try:
        sizes = json.loads((copy / FILES).read_text())
    except (FileNotFoundError, ValueError):
        raise InputError(f"{copy} holds no complete copy: wanted one with its {FILES}.") from None
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, size in sizes.items():
            target = part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                (copy / name).download(target)
            except FileNotFoundError:
                raise InputError(f"{copy / name} is missing: wanted {size} bytes.") from None
            if (found := target.stat().st_size) != size:
                raise InputError(f"{copy / name} has {found} bytes: wanted {size}.")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
