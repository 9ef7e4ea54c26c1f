"""Small archives in the original layouts, a loopback server for them, and a private cache."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache and its own, empty, TFDS directory."""
    use_data_dir(monkeypatch, tmp_path)
    return tmp_path / "ici"


def use_data_dir(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("ICI_DATA_DIR", str(directory / "ici"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(directory / "stock"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("ICI_IMDB_REVIEWS_URL", "ICI_MNIST_URL"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Originals:
    """What the small archives hold: (text, label) per split, and images with labels per split."""

    directory: Path
    reviews: dict[str, list[tuple[bytes, int]]] = field(default_factory=dict)
    digits: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def write_originals(directory: Path) -> Originals:
    directory.mkdir(parents=True)
    originals = Originals(directory)
    _write_imdb(originals)
    for prefix, split, n, seed in (("train", "train", 60, 1), ("t10k", "test", 20, 2)):
        images = np.random.default_rng(seed).integers(0, 256, (n, 28, 28), np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        originals.digits[split] = images, labels
        write_idx(directory / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(directory / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return originals


def write_idx(path: Path, values: np.ndarray) -> None:
    header = np.array([0x0800 + values.ndim, *values.shape], ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes()))


def _write_imdb(originals: Originals) -> None:
    odd = [b"bad \xff byte", b"", "caf\u00e9 <br /><br />NO\u00cbL".encode(), b"  white\tspace  "]
    with tarfile.open(originals.directory / "aclImdb_v1.tar.gz", "w:gz") as tar:
        _add(tar, "aclImdb/README", b"no review")
        for split, n in (("train", 20), ("test", 10)):
            rows = originals.reviews[split] = []
            _add(tar, f"aclImdb/{split}/labeledBow.feat", b"9 0:1")
            _add(tar, f"aclImdb/{split}/urls_pos.txt", b"http://no.review")
            for label, folder in enumerate(("neg", "pos")):
                texts = [f"{split} {folder} word{folder}{i} film".encode() for i in range(n)] + odd
                for i, text in enumerate(texts):
                    _add(tar, f"aclImdb/{split}/{folder}/{i}_{9 * label}.txt", text)
                    rows.append((text.strip(), label))
        _add(tar, "aclImdb/train/unsup/0_0.txt", b"unlabelled")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """The base URL of a loopback server for the files of a directory."""
    handler = functools.partial(_QuietHandler, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def serve():
    """Context manager: `with serve(directory) as base_url`."""
    return serving


@pytest.fixture(name="write_idx")
def write_idx_fixture():
    """Writes a uint8 array as a gzipped IDX file: `write_idx(path, values)`."""
    return write_idx


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Originals:
    return write_originals(tmp_path_factory.mktemp("originals") / "files")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, originals: Originals) -> dict[str, Path]:
    """Both data sets, downloaded from loopback and written by the real TFDS machinery."""
    from ici.data.tfds_prepare import base_url_variable, prepare

    directory = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as monkeypatch, serving(originals.directory) as url:
        use_data_dir(monkeypatch, directory)
        names = ("imdb_reviews", "mnist")
        for name in names:
            monkeypatch.setenv(base_url_variable(name), url)
        return {name: prepare(name) for name in names}


@pytest.fixture
def write_tfds():
    """Prepares made-up examples: `write_tfds(directory, features, {split: rows})` -> directory."""
    return _write_tfds


def _write_tfds(directory, features, splits, supervised_keys=None, num_shards=None) -> Path:
    import tensorflow_datasets as tfds

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "made"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    builder = Made(data_dir=str(directory), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=num_shards)
    )
    return Path(builder.data_dir)
