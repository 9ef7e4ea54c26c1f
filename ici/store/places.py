"""Where records lie: folders of this machine, and places that fsspec understands, such as s3://.

Only this module knows one from the other. A `RemotePath` has those methods of `pathlib.Path` that
records need, so that code which joins, reads and writes whole files is the same for both.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ici.errors import InputError
from ici.store.remote_path import OPTIONS, RemotePath

# Orbax writes through TensorStore, and to nothing else but disks and this.
_CHECKPOINTED = {"gs"}
PROBE = ".ici.probe"


Place = Path | RemotePath


def place(path: str | os.PathLike[str] | RemotePath) -> Place:
    """What a user named: a folder of this machine, or a URL of fsspec's.

    Raises:
      InputError: fsspec does not know the scheme, or the package for it is missing.
    """
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    # One slash is enough: pathlib takes the other. A single letter is a drive.
    found = re.match(r"([A-Za-z][\w+.-]+):/", text)
    if found is None:
        return Path(text)
    if found[1] in ("file", "local"):
        return Path(url2pathname(urlsplit(text).path))
    return RemotePath(f"{found[1]}://{text[found.end() :]}")


def zarr_store(folder: Place) -> Any:
    """What Zarr and xarray take for `folder`."""
    if isinstance(folder, Path):
        return folder
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(folder), storage_options=OPTIONS)


def write_whole(file: Place, text: str) -> None:
    """Replaces a file in one step, on the disk before the name changes."""
    if isinstance(file, RemotePath):
        file.write_text(text)
        return
    # Two threads may write at once: the one that leaves in haste and the one that trains.
    temporary = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "w") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(file: Place) -> Iterator[Path]:
    """A file of this machine to write, which becomes `file` in one step if all went well."""
    if isinstance(file, Path):
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            yield part
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / file.name
        yield part
        file.upload(part)


def remove(folder: Place) -> None:
    """Removes a folder and all in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.remove_below()


def names_below(folder: Place, names: Collection[str]) -> set[str]:
    """Those of the names, paths below `folder`, that files have; others may be among them."""
    if isinstance(folder, RemotePath):
        # One listing costs less than asking for each.
        return folder.names_below() if names else set()
    return {name for name in names if os.path.isfile(f"{folder}/{name}")}


def stamp(file: Place) -> tuple[int, ...] | None:
    """Another one whenever a file was written again: identity, time in ns, size; None without."""
    try:
        if isinstance(file, RemotePath):
            return file.stamp()
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def n_bytes(file: Place) -> int:
    """Size of a file."""
    return file.stat().st_size if isinstance(file, Path) else file.n_bytes()


def free_bytes(folder: Place) -> int | None:
    """What the disk that holds `folder` has free; None where there is no such number."""
    if isinstance(folder, RemotePath):
        return None
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def check_writable(folder: Place) -> None:
    """Raises `InputError` where nothing can be written to `folder`, which need not exist."""
    if isinstance(folder, RemotePath):
        probe = folder / PROBE
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except Exception as error:
            # Stores have errors of their own: of credentials, names, connections.
            raise InputError(
                f"cannot write to {folder} ({type(error).__name__}: {_line(error)}): wanted a "
                "place that exists and credentials that may write to it."
            ) from error
        return
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{folder}: {existing} is a file: wanted a folder; choose another --out.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{folder} is not writable: wanted a folder you may write; change --out.")


def check_path(folder: Place) -> None:
    """Raises `InputError` where Orbax would save to `folder` and not find it again: it globs."""
    path = str(folder.absolute() if isinstance(folder, Path) else folder)
    found = [sign for sign in "[]*?\\" if sign in path]
    if found:
        raise InputError(
            f"{path} has {' and '.join(map(repr, found))} in it: checkpoints could not be found "
            "again there; wanted a path without [ ] * ? and \\; choose another --out."
        )


def check_local(folder: Place, what: str) -> Path:
    """`folder`, where it is of this machine.

    Raises:
      InputError: it is remote, and `what` wants a folder.
    """
    if isinstance(folder, RemotePath):
        raise InputError(f"{what} cannot be written to {folder}: wanted a folder of this machine.")
    return folder


def has_checkpoints(folder: Place) -> bool:
    """Whether Orbax can write to `folder`."""
    return isinstance(folder, Path) or folder.scheme in _CHECKPOINTED


def checkpoint_folder(folder: Place) -> Any:
    """What Orbax takes for `folder`.

    Raises:
      InputError: Orbax cannot write there.
    """
    if isinstance(folder, Path):
        return folder.absolute()
    if not has_checkpoints(folder):
        raise InputError(
            f"checkpoints cannot be written to {folder}: Orbax writes to folders and gs:// only; "
            "wanted one of these."
        )
    from etils import epath

    return epath.Path(str(folder))


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else "no message"
