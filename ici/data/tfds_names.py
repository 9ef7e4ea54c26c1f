"""What follows "tfds:": the path of a prepared directory, or the name of one."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ici.data.cache import root
from ici.data.registry import names
from ici.data.tfds_read import find_directory, import_tfds
from ici.errors import InputError


def find_named(path: str) -> Path:
    """The prepared directory at a path, or of that name in TFDS's own directory or in ours.

    Raises `InputError` as `find_directory` does, and for a name that is not prepared: with the
    command that prepares it where TFDS knows it, with the nearest names where nobody does.
    """
    given = Path(path).expanduser()
    if os.path.isdir(given) or given.is_absolute() or len(given.parts) != 1:
        return find_directory(given)
    stock = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    places = [directory / given for directory in (root() / "tfds", stock)]
    for directory in places:
        if os.path.isdir(directory):
            return find_directory(directory)
    known = import_tfds().list_builders(with_community_datasets=False)
    if path in names():
        raise InputError(
            f"no directory {path} and no {places[-1]}: wanted a prepared TFDS directory, or write "
            f"{path!r} without 'tfds:'"
        )
    if path in known:
        raise InputError(
            f"{path!r} is not prepared in {places[-1]}: where TensorFlow and a network are, run: "
            f"tfds build {path} --file_format=array_record, and copy the directory to {places[-1]}"
        )
    near = difflib.get_close_matches(path, [*known, *names()], n=3, cutoff=0.5)
    hint = f", did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    raise InputError(
        f"no directory {path}, and TFDS knows no data set of that name: wanted tfds:DIRECTORY or "
        f"tfds:NAME{hint}"
    )
