"""Prepared data on disk: written whole or not at all, and checked at every reading."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import time
import uuid
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ici.data.dataset import SPLITS, Dataset, Split
from ici.data.registry import DataConfig
from ici.data.token_rows import TokenRows, file_sha256
from ici.errors import InputError

SCHEMA = 2
MANIFEST = "manifest.json"
ARRAYS = "arrays.npz"

_LITTER_AGE_S = 24 * 3600.0


class CachedData(DataConfig):
    """A data source whose arrays are built once and then read from the cache directory.

    Subclasses write `build`. `revision` goes up when `build` changes what it returns for the same
    settings, so that older prepared data are not taken for it.
    """

    revision: ClassVar[int] = 1

    @abstractmethod
    def build(self, refresh: bool = False) -> Dataset:
        """The arrays from their source; `refresh` also remakes whatever `build` keeps on disk."""

    def source_stamp(self) -> dict[str, Any]:
        """What tells one state of the source from another; part of the cache key."""
        return {}

    def load(self) -> Dataset:
        return load_or_build(self)


def root() -> Path:
    """The directory for data: $ICI_DATA_DIR, else ~/.cache/ici."""
    chosen = os.environ.get("ICI_DATA_DIR")
    try:
        return (Path(chosen) if chosen else Path("~/.cache/ici")).expanduser().absolute()
    except RuntimeError:
        raise InputError(
            "no home directory for the data cache: set ICI_DATA_DIR to a writable directory"
        ) from None


def entry_path(config: CachedData) -> Path:
    """The directory that holds, or will hold, the arrays of exactly these settings."""
    key = {
        "schema": SCHEMA,
        # A subclass inherits its parent's registered name, not its arrays.
        "class": f"{type(config).__module__}.{type(config).__qualname__}",
        "revision": config.revision,
        "config": config.fingerprint(),
        "source": config.source_stamp(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return root() / "prepared" / f"{config.registered_name}-{digest[:16]}"


def is_prepared(config: CachedData) -> bool:
    """Whether arrays of these settings are on disk (their checksum is not looked at)."""
    # os.path, unlike pathlib, answers "no" where a parent directory may not be searched.
    return os.path.exists(entry_path(config) / MANIFEST)


def new_part() -> Path:
    """A directory for files that `CachedData.build` writes itself and `TokenRows` reads.

    They are moved from there to where they are kept; what a killed process leaves goes after a
    day. Raises `InputError` where it cannot be made.
    """
    parent = root() / "prepared"
    part = parent / f".part-{uuid.uuid4().hex}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
    except OSError as error:
        raise _unwritable(parent, error) from None
    return part


def load_or_build(config: CachedData) -> Dataset:
    """The prepared arrays; built, and stored for the next time, where there are none.

    Where they cannot be stored (no write permission, disk full) a warning says so and the arrays
    are used from memory. Raises `InputError` where stored arrays are damaged, and where streamed
    ones cannot be stored.
    """
    entry = entry_path(config)
    if os.path.exists(entry):
        return _read(entry, config)
    dataset = config.build()
    try:
        return _store(entry, config, dataset)
    except OSError as error:
        if not isinstance(dataset.train, Split):
            raise _unwritable(entry, error) from None
        warnings.warn(
            f"cannot keep prepared data in {root()} ({error.strerror or error}): going on in "
            "memory; set ICI_DATA_DIR to a writable directory with free space",
            RuntimeWarning,
            stacklevel=3,
        )
        return dataset


def prepare(config: CachedData, rebuild: bool = False) -> Path:
    """Builds and stores the arrays unless they are there, verified; returns their directory.

    `rebuild` builds them again and drops every other stored copy of this data set. Raises
    `InputError` where they are damaged and `rebuild` is off, or where they cannot be written.
    """
    entry = entry_path(config)
    if os.path.exists(entry) and not rebuild:
        _read(entry, config)
        return entry
    dataset = config.build(refresh=rebuild)
    # Building may have remade the source, and with it the cache key.
    entry = entry_path(config)
    try:
        stored = _store(entry, config, dataset, replace=rebuild)
    except OSError as error:
        raise _unwritable(entry, error) from None
    return entry if os.path.exists(entry) else getattr(stored.train, "directory", entry)


def _store(entry: Path, config: CachedData, dataset: Dataset, replace: bool = False) -> Dataset:
    if not isinstance(dataset.train, Split | TokenRows):
        return dataset  # its files are kept by whoever wrote them
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_litter(entry.parent)
    part = entry.parent / f".part-{uuid.uuid4().hex}"
    part.mkdir()
    streamed = dataset.train if isinstance(dataset.train, TokenRows) else None
    try:
        if streamed is not None:
            for name in streamed.checksums:
                (streamed.directory / name).rename(part / name)
        with (part / ARRAYS).open("wb") as file:
            np.savez(file, allow_pickle=False, **_arrays(dataset))
            _flush(file)
        body = {
            "schema": SCHEMA,
            "config": config.fingerprint(),
            "dataset": {**dataset.metadata(), "notes": dataset.notes},
            "files": {ARRAYS: _sha256((part / ARRAYS).read_bytes())},
        }
        if streamed is not None:
            body["files"] |= streamed.checksums
            body["rows"] = {"sequence_length": streamed.sequence_length}
        with (part / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump({**body, "sha256": _sha256(_canonical(body))}, file, indent=1)
            _flush(file)
        _sync_directory(part)
        if replace:
            _remove_all(entry.parent, config.registered_name)
        try:
            part.rename(entry)
        except OSError:
            # Another process was faster: its copy is complete, or it would not have the name.
            if entry.is_dir():
                return _read(entry, config)
            raise
        _sync_directory(entry.parent)
        if streamed is None:
            return dataset
        moved = TokenRows(entry, streamed.sequence_length, streamed.checksums)
        return dataclasses.replace(dataset, train=moved)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if streamed is not None:
            shutil.rmtree(streamed.directory, ignore_errors=True)


def _read(entry: Path, config: CachedData) -> Dataset:
    manifest = _manifest(entry, config)
    path = entry / ARRAYS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, config, error.strerror or str(error)) from None
    if _sha256(content) != manifest["files"][ARRAYS]:
        raise _damaged(path, config, "its checksum is not the one in the manifest")
    splits: dict[str, Any] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for name in SPLITS:
            if f"{name}_inputs" in arrays:
                splits[name] = Split(arrays[f"{name}_inputs"], arrays[f"{name}_labels"])
    if "rows" in manifest:
        splits["train"] = _read_rows(entry, config, manifest)
    metadata = manifest["dataset"]
    vocabulary = metadata.pop("vocabulary")
    return Dataset(
        **splits, vocabulary=None if vocabulary is None else tuple(vocabulary), **metadata
    )


def _read_rows(entry: Path, config: CachedData, manifest: dict[str, Any]) -> TokenRows:
    checksums = {name: value for name, value in manifest["files"].items() if name != ARRAYS}
    for name, wanted in checksums.items():
        try:
            seen = file_sha256(entry / name)
        except OSError as error:
            raise _damaged(entry / name, config, error.strerror or str(error)) from None
        if seen != wanted:
            raise _damaged(entry / name, config, "its checksum is not the one in the manifest")
    return TokenRows(entry, checksums=checksums, **manifest["rows"])


def _manifest(entry: Path, config: CachedData) -> dict[str, Any]:
    path = entry / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        stated = manifest.pop("sha256")
    except OSError as error:
        raise _damaged(path, config, error.strerror or str(error)) from None
    except (ValueError, KeyError, AttributeError):
        raise _damaged(path, config, "it is not a complete manifest") from None
    if stated != _sha256(_canonical(manifest)):
        raise _damaged(path, config, "its checksum is not the one it states")
    return manifest


def _damaged(path: Path, config: CachedData, reason: str) -> InputError:
    return InputError(
        f"prepared data are damaged: {path} ({reason}): "
        f"run: ici data prepare {config.spec} --rebuild"
    )


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write prepared data to {path} ({error.strerror or error}, {_free_bytes(root())} "
        "free): set ICI_DATA_DIR to a writable directory with free space"
    )


def _arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    splits = {name: getattr(dataset, name) for name in SPLITS}
    if not isinstance(dataset.train, Split):  # it keeps its examples in files of its own
        del splits["train"]
    return {
        f"{name}_{field.name}": getattr(split, field.name)
        for name, split in splits.items()
        for field in dataclasses.fields(Split)
    }


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_all(directory: Path, name: str) -> None:
    for entry in directory.glob(f"{name}-*"):
        if not re.fullmatch(r"-[0-9a-f]{16}", entry.name.removeprefix(name)):
            continue
        # Renamed first: no reader ever sees half a directory under a name that it looks for.
        doomed = directory / f".part-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            entry.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _remove_litter(directory: Path) -> None:
    for part in directory.glob(".part-*"):
        try:
            if time.time() - part.stat().st_mtime > _LITTER_AGE_S:
                shutil.rmtree(part, ignore_errors=True)
        except OSError:  # its owner has just finished with it
            continue


def _free_bytes(path: Path) -> str:
    existing = next(p for p in (path, *path.parents) if os.path.isdir(p))
    return f"{shutil.disk_usage(existing).free / 1e9:.1f} GB"
