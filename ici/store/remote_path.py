"""Places that fsspec understands, such as ``s3://bucket/run``, with what `pathlib.Path` offers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ici.errors import InputError

# Names without a folder above them: a key with slashes needs none to be made.
_FLAT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}
# What to install; other schemes are told by fsspec itself.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
# Listings go stale while another process writes, and a record is written while it is read.
OPTIONS = {"use_listings_cache": False}


class RemotePath:
    """A place in a remote file system or object store.

    Args:
      url: such as ``s3://bucket/runs/movies``.

    Raises:
      InputError: fsspec does not know the scheme, or the package for it is missing.
    """

    def __init__(self, url: str):
        self.scheme, _, rest = url.partition("://")
        self.parts = tuple(part for part in rest.split("/") if part and part != ".")
        if not self.parts:
            raise InputError(
                f"{url!r} names no place: wanted one such as {self.scheme}://name/run."
            )
        self._fs  # noqa: B018  # tells now what cannot be

    @cached_property
    def _fs(self) -> Any:
        import fsspec

        try:
            return fsspec.filesystem(self.scheme, **OPTIONS)
        except ValueError:
            raise InputError(
                f"{self} has the scheme {self.scheme!r}, which fsspec does not know: wanted a "
                "folder, or s3://, gs:// or another of its protocols."
            ) from None
        except ImportError as error:
            extra = _EXTRAS.get(self.scheme)
            fix = f"pip install 'ici-instrument[{extra}]'" if extra else str(error)
            raise InputError(f"{self} needs a package that is not installed: {fix}.") from None

    @property
    def _key(self) -> str:
        return self._fs._strip_protocol(str(self))

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join(self.parts)}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, other: str | Path) -> RemotePath:
        return RemotePath("/".join((str(self), *PurePosixPath(other).parts)))

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1]

    @property
    def suffix(self) -> str:
        """Of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The place that this one lies in; the outermost is its own."""
        return RemotePath(f"{self.scheme}://{'/'.join(self.parts[:-1] or self.parts)}")

    def with_name(self, name: str) -> RemotePath:
        """Beside this one."""
        return self.parent / name

    def absolute(self) -> RemotePath:
        """This one: remote places are."""
        return self

    resolve = absolute

    def exists(self) -> bool:
        """Whether a file or something below this name is there."""
        return self._fs.exists(self._key)

    def is_dir(self) -> bool:
        """Whether something lies below this name."""
        return self._fs.isdir(self._key)

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self._fs.isfile(self._key)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies directly below."""
        for name in self._fs.ls(self._key, detail=False):
            last = name.rstrip("/").rpartition("/")[2]
            if last != self.name or name.strip("/") != self._key.strip("/"):
                yield self / last

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes the folder, where the store has such a thing."""
        if self.scheme not in _FLAT:
            self._fs.makedirs(self._key, exist_ok=exist_ok)

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self._fs.cat_file(self._key)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole file."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Replaces the file; readers see the old one or the new one."""
        self._fs.pipe_file(self._key, data)

    def write_text(self, data: str, encoding: str = "utf-8") -> None:
        """As `write_bytes`."""
        self.write_bytes(data.encode(encoding))

    def create(self, data: str) -> bool:
        """Writes the file unless there is one; whether it did.

        Of two that try at once, one succeeds where the store knows how to promise that (S3 and
        Google's do); elsewhere the later one may replace the earlier.
        """
        try:
            self._fs.pipe_file(self._key, data.encode(), mode="create")
        except FileExistsError:
            return False
        except (TypeError, ValueError, NotImplementedError):
            self.write_text(data)
        return True

    def upload(self, file: Path) -> None:
        """As `write_bytes`, from a file of this machine."""
        self._fs.put_file(str(file), self._key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the file."""
        try:
            self._fs.rm_file(self._key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_below(self) -> None:
        """Removes this and all that lies below it, if there is any."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._key, recursive=True)

    def names_below(self) -> set[str]:
        """Paths of all files below this, from here."""
        begin = self._key.strip("/") + "/"
        return {name.strip("/").removeprefix(begin) for name in self._fs.find(self._key)}

    def n_bytes(self) -> int:
        """Size of the file."""
        return int(self._fs.size(self._key))

    def stamp(self) -> tuple[int, ...]:
        """Another one whenever the file was written again: identity, time in ns, size."""
        about = self._fs.info(self._key)
        tag = hash(about.get("ETag") or about.get("etag") or about.get("generation"))
        return tag, int(self._fs.modified(self._key).timestamp() * 1e9), int(about["size"])
