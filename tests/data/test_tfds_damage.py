"""Half-prepared, damaged and foreign directories and archives: one line that names the file."""

import os
import shutil
import sys

import numpy as np
import pytest

from ici.data import resolve
from ici.data.cache import prepare as prepare_cached
from ici.data.cache import root
from ici.data.tfds_prepare import base_url_variable, own_directory, prepare
from ici.errors import InputError

SHARD = "mnist-train.array_record-00000-of-00001"


@pytest.fixture
def directory(prepared, tmp_path):
    return shutil.copytree(prepared["mnist"], tmp_path / "any" / "mnist" / "3.0.1")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def truncate(to):
    def damage(path):
        with path.open("r+b") as file:
            file.truncate(to if to >= 0 else path.stat().st_size + to)

    return damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def swap_for_the_shorter_split(path):
    shutil.copyfile(path.with_name(SHARD.replace("train", "test")), path)


@pytest.mark.parametrize(
    "damage",
    [truncate(0), truncate(65536), truncate(-1), flip, os.remove, swap_for_the_shorter_split],
)
def test_a_damaged_shard_is_named(directory, damage):
    damage(directory / SHARD)
    with pytest.raises(InputError, match="damaged or missing .*prepare or copy") as error:
        resolve(f"tfds:{directory}").load()
    assert str(directory / SHARD) in one_line(error)
    assert not (root() / "prepared").exists()


def test_a_shard_with_more_records_than_listed_is_named(directory):
    test_shard = directory / SHARD.replace("train", "test")
    shutil.copyfile(directory / SHARD, test_shard)
    with pytest.raises(InputError, match="60 records where 20 are listed") as error:
        resolve(f"tfds:{directory}").load()
    assert str(test_shard) in one_line(error)


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_of_several_shards_the_damaged_one_is_named(tmp_path, write_tfds, shard):
    import tensorflow_datasets as tfds

    features = {
        "x": tfds.features.Tensor(shape=(8,), dtype=np.float32),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    rows = [{"x": np.full(8, i, np.float32), "label": i % 2} for i in range(30)]
    directory = write_tfds(tmp_path / "t", features, {"train": rows}, num_shards=3)
    paths = sorted(directory.glob("*.array_record-*"))
    assert len(paths) == 3
    content = bytearray(paths[shard].read_bytes())
    content[100] ^= 1  # in the header of the first record, which only reading it reveals
    paths[shard].write_bytes(content)
    with pytest.raises(InputError, match="damaged or missing") as error:
        resolve(f"tfds:{directory}").load()
    assert str(paths[shard]) in one_line(error)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", [truncate(40), truncate(0)])
def test_damaged_metadata_are_named(directory, name, damage):
    damage(directory / name)
    with pytest.raises(InputError, match=f"{name}.* damaged or missing") as error:
        resolve(f"tfds:{directory}").load()
    assert str(directory) in one_line(error)


def test_missing_features_are_named(directory):
    (directory / "features.json").unlink()
    with pytest.raises(InputError, match="features.json"):
        resolve(f"tfds:{directory}").load()


def test_a_tfrecord_directory_is_refused_with_the_conversion(directory):
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="in tfrecord format, wanted array_record") as error:
        resolve(f"tfds:{directory}").load()
    assert f"tfds convert_format --dataset_version_dir={directory}" in one_line(error)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record"])
def test_without_tfds_the_extra_is_named(directory, monkeypatch, package):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    for spec in ("mnist", f"tfds:{directory}"):
        wanted = r"not installed: pip install -e '\.\[tfds\]'"
        with pytest.raises(InputError, match=wanted) as error:
            resolve(spec).load()
        assert package in one_line(error)
    assert not root().exists()


def test_a_half_prepared_directory_is_refused(directory):
    half = directory.rename(directory.with_name("incomplete.ABC_3.0.1"))
    for path in (half, half.parent):
        with pytest.raises(InputError, match="half prepared.*prepare it again"):
            resolve(f"tfds:{path}").load()


def test_a_finished_directory_beside_an_unfinished_one_is_read(directory):
    shutil.copytree(directory, directory.with_name("incomplete.ABC_3.0.1"))
    assert len(resolve(f"tfds:{directory.parent}").load().test) == 20


def test_other_paths_are_refused(directory, tmp_path):
    with pytest.raises(InputError, match=f"no directory {tmp_path / 'none'}"):
        resolve(f"tfds:{tmp_path / 'none'}").load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no dataset_info.json"):
        resolve(f"tfds:{tmp_path / 'empty'}").load()
    shutil.copytree(directory, directory.with_name("2.0.0"))
    with pytest.raises(InputError, match="holds 2 prepared data sets") as error:
        resolve(f"tfds:{directory.parent}").load()
    assert str(directory) in one_line(error)


def test_a_rebuild_mends_our_own_directory(prepared, originals, serve, monkeypatch):
    own = shutil.copytree(prepared["mnist"], own_directory("mnist"))
    expected = resolve("mnist").load().digest
    shutil.rmtree(root() / "prepared")
    truncate(0)(own / SHARD)
    with pytest.raises(InputError, match="run: ici data prepare mnist --rebuild$") as error:
        resolve("mnist").load()
    assert str(own / SHARD) in one_line(error)
    with serve(originals.directory) as url:
        monkeypatch.setenv(base_url_variable("mnist"), url)
        prepare_cached(resolve("mnist"), rebuild=True)
    assert resolve("mnist").load().digest == expected


def test_a_rebuild_steps_around_a_damaged_stock_directory(
    prepared, originals, serve, monkeypatch, tmp_path
):
    stock = shutil.copytree(prepared["mnist"], tmp_path / "stock" / "mnist" / "3.0.1")
    truncate(0)(stock / SHARD)
    before = sorted(path.stat().st_mtime_ns for path in stock.iterdir())
    with pytest.raises(InputError, match="--rebuild"):
        resolve("mnist").load()
    with serve(originals.directory) as url:
        monkeypatch.setenv(base_url_variable("mnist"), url)
        prepare_cached(resolve("mnist"), rebuild=True)
    assert len(resolve("mnist").load().test) == 20
    assert sorted(path.stat().st_mtime_ns for path in stock.iterdir()) == before


def tar_without_reviews(directory):
    shutil.copyfile(directory / "other.tar.gz", directory / "aclImdb_v1.tar.gz")


def cut_archive(directory):
    truncate(-200)(directory / "aclImdb_v1.tar.gz")


def no_archive(directory):
    (directory / "aclImdb_v1.tar.gz").write_bytes(b"<html>not found</html>")


def foreign_archive(directory):
    import tarfile

    with tarfile.open(directory / "aclImdb_v1.tar.gz", "w:gz") as tar:
        tar.add(directory / "t10k-labels-idx1-ubyte.gz", "aclImdb/train/pos.gz")


def cut_images(directory):
    truncate(-100)(directory / "train-images-idx3-ubyte.gz")


def images_for_labels(directory):
    shutil.copyfile(
        directory / "train-images-idx3-ubyte.gz", directory / "train-labels-idx1-ubyte.gz"
    )


def labels_of_the_other_split(directory):
    shutil.copyfile(
        directory / "t10k-labels-idx1-ubyte.gz", directory / "train-labels-idx1-ubyte.gz"
    )


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("imdb_reviews", cut_archive, "is damaged"),
        ("imdb_reviews", no_archive, "is damaged"),
        ("imdb_reviews", foreign_archive, "holds no aclImdb/train/"),
        ("mnist", cut_images, "is damaged"),
        ("mnist", images_for_labels, "no IDX file of bytes with 1 axes"),
        ("mnist", labels_of_the_other_split, "60 images but 20 labels"),
    ],
)
def test_damaged_downloads_are_named_and_leave_no_directory(
    originals, serve, monkeypatch, tmp_path, name, damage, message
):
    files = shutil.copytree(originals.directory, tmp_path / "damaged")
    damage(files)
    with serve(files) as url:
        monkeypatch.setenv(base_url_variable(name), url)
        with pytest.raises(InputError, match=message) as error:
            resolve(name).load()
    assert str(root() / "tfds" / "downloads") in one_line(error)
    assert "delete it and prepare again" in one_line(error)
    assert list((root() / "tfds").rglob("dataset_info.json")) == []
    assert list((root() / "tfds").rglob("incomplete.*")) == []


def test_an_idx_file_with_the_wrong_number_of_values(write_idx, tmp_path):
    import gzip

    from ici.data.tfds_builders import read_idx

    path = tmp_path / "x.gz"
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(path, values)
    np.testing.assert_array_equal(read_idx(path, 3), values)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(InputError, match=r"holds 23 values, not \(2, 3, 4\)"):
        read_idx(path, 3)
    path.write_bytes(gzip.compress(b"ab"))
    with pytest.raises(InputError, match="no IDX file"):
        read_idx(path, 3)


def test_old_litter_of_killed_processes_goes(originals, serve, monkeypatch):
    parent = own_directory("mnist").parent
    for name, age_s in (("incomplete.OLD_3.0.1", 2 * 24 * 3600), ("incomplete.NEW_3.0.1", 0)):
        (parent / name).mkdir(parents=True)
        time_s = (parent / name).stat().st_mtime - age_s
        os.utime(parent / name, (time_s, time_s))
    with serve(originals.directory) as url:
        monkeypatch.setenv(base_url_variable("mnist"), url)
        prepare("mnist")
    assert sorted(path.name for path in parent.iterdir()) == ["3.0.1", "incomplete.NEW_3.0.1"]
