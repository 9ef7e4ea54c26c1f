"""The TFDS builders and readers on small archives in the original layout, over loopback."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from ici.data import resolve
from ici.data.text import words
from ici.data.tfds_prepare import base_url_variable, locate, own_directory, prepare
from ici.data.tfds_read import open_directory, read_split
from ici.data.tfds_sets import ImdbReviews, Mnist, TfdsDirectory
from ici.errors import InputError

SPLITS = ("train", "test")


def copied(prepared, name, target):
    shutil.copytree(prepared[name], target)
    return target


def test_reviews_come_back_exactly(prepared, originals):
    opened = open_directory(prepared["imdb_reviews"], fix="")
    assert (opened.kind, opened.n_classes) == ("text", 2)
    assert sorted(opened.split_names) == ["test", "train"]
    for split in SPLITS:
        texts, labels = read_split(opened, split, fix="")
        assert sorted(zip(texts, labels, strict=True)) == sorted(originals.reviews[split])


def test_images_come_back_exactly(prepared, originals):
    opened = open_directory(prepared["mnist"], fix="")
    assert (opened.kind, opened.n_classes) == ("image", 10)
    for split in SPLITS:
        images, labels = read_split(opened, split, fix="")
        assert {(image.dtype, image.shape) for image in images} == {
            (np.dtype(np.uint8), (28, 28, 1))
        }
        seen = [(image.tobytes(), label) for image, label in zip(images, labels, strict=True)]
        wanted = [(i.tobytes(), int(n)) for i, n in zip(*originals.digits[split], strict=True)]
        assert sorted(seen) == sorted(wanted)


def test_the_layout_is_that_of_tfds(prepared):
    assert prepared["imdb_reviews"].parts[-3:] == ("imdb_reviews", "plain_text", "1.0.0")
    assert prepared["mnist"].parts[-2:] == ("mnist", "3.0.1")


def test_nothing_here_loads_tensorflow(prepared):
    code = (
        "import sys; from pathlib import Path\n"
        "from ici.data.tfds_read import open_directory, read_split\n"
        f"opened = open_directory(Path({str(prepared['mnist'])!r}), '')\n"
        "print(len(read_split(opened, 'test', '')[0]), 'tensorflow' in sys.modules)"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "20 False"


def test_imdb_reviews_end_to_end(prepared, originals):
    copied(prepared, "imdb_reviews", own_directory("imdb_reviews"))
    dataset = ImdbReviews(max_tokens=6, vocab_size=1000).load()
    n_train = len(originals.reviews["train"])
    # The odd reviews occur under both labels, so they stay in train.
    assert len(dataset.train) + len(dataset.validation) == n_train
    assert len(dataset.test) == len(originals.reviews["test"])
    assert np.bincount(dataset.validation.labels).tolist() == [2, 2]
    seen = [
        (dataset.decode(row), int(label))
        for row, label in zip(dataset.train.inputs, dataset.train.labels, strict=True)
    ]
    wanted = {(" ".join(words(t, 6)) or "<unk>", n) for t, n in originals.reviews["train"]}
    assert set(seen) <= wanted
    assert ("bad byte", 0) in seen
    assert ("<unk>", 1) in seen


def test_reviews_that_occur_twice_are_never_held_out(prepared):
    copied(prepared, "imdb_reviews", own_directory("imdb_reviews"))
    for seed in range(12):
        dataset = ImdbReviews(max_tokens=6, split_seed=seed).load()
        held_out = [dataset.decode(row) for row in dataset.validation.inputs]
        assert all(text.startswith("train") for text in held_out)


def test_mnist_end_to_end(prepared, originals):
    copied(prepared, "mnist", own_directory("mnist"))
    dataset = Mnist().load()
    assert dataset.train.inputs.shape == (50, 28, 28, 1)
    assert np.bincount(dataset.validation.labels).tolist() == [1] * 10
    assert dataset.train.inputs.mean() == pytest.approx(0, abs=1e-5)
    assert dataset.train.inputs.std() == pytest.approx(1, abs=1e-5)
    # One affine map takes all splits back to the original bytes.
    low = min(part.inputs.min() for part in (dataset.train, dataset.validation, dataset.test))
    high = max(part.inputs.max() for part in (dataset.train, dataset.validation, dataset.test))
    pixels = (255 * (dataset.test.inputs.astype(np.float64) - low) / (high - low)).round()
    seen = sorted(image.astype(np.uint8).tobytes() for image in pixels)
    assert seen == sorted(image.tobytes() for image in originals.digits["test"][0])


def test_a_directory_of_tfds_itself_is_used(prepared, tmp_path):
    stock = copied(prepared, "mnist", tmp_path / "stock" / "mnist" / "3.0.1")
    assert locate("mnist") == stock
    assert len(resolve("mnist").load().test) == 20
    own = copied(prepared, "mnist", own_directory("mnist"))
    assert locate("mnist") == own


def test_a_directory_of_tfds_in_another_format_is_passed_over(prepared, tmp_path):
    stock = copied(prepared, "mnist", tmp_path / "stock" / "mnist" / "3.0.1")
    info = stock / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert locate("mnist") is None


@pytest.mark.parametrize("name", ["imdb_reviews", "mnist"])
def test_the_cached_arrays_need_no_directory(prepared, name):
    directory = copied(prepared, name, own_directory(name))
    before = resolve(name).load().digest
    shutil.rmtree(directory)
    assert resolve(name).load().digest == before


def test_any_directory(prepared, tmp_path):
    directory = copied(prepared, "mnist", tmp_path / "any dir" / "mnist" / "3.0.1")
    named = Mnist
    copied(prepared, "mnist", own_directory("mnist"))
    for spec in (f"tfds:{directory}", f"tfds:{directory.parent}", f"tfds:{directory.parents[1]}"):
        dataset = resolve(spec).load()
        assert dataset.name == "tfds:mnist/3.0.1"
        np.testing.assert_array_equal(dataset.train.inputs, named().load().train.inputs)


def test_a_directory_that_was_prepared_again_is_read_again(prepared, tmp_path):
    directory = copied(prepared, "mnist", tmp_path / "mnist" / "3.0.1")
    config = TfdsDirectory(str(directory))
    config.load()
    shutil.rmtree(directory)
    with pytest.raises(InputError, match="no directory"):
        config.load()
    copied(prepared, "imdb_reviews", directory)
    assert config.load().input_kind == "tokens"


def test_vectors_with_own_validation_and_no_test(tmp_path, write_tfds):
    import tensorflow_datasets as tfds

    features = {
        "x": tfds.features.Tensor(shape=(3,), dtype=np.float32),
        "label": tfds.features.Scalar(dtype=np.int64),
    }
    rows = [{"x": np.full(3, i, np.float32), "label": i % 4} for i in range(20)]
    directory = write_tfds(tmp_path / "t", features, {"train": rows, "valid": rows[:5]})
    dataset = TfdsDirectory(str(directory)).load()
    assert (dataset.input_kind, dataset.n_classes) == ("vectors", 4)
    assert sorted(dataset.train.inputs[:, 0]) == list(range(20))
    np.testing.assert_array_equal(dataset.train.inputs[:, 0] % 4, dataset.train.labels)
    assert sorted(dataset.validation.inputs[:, 2]) == list(range(5))
    assert len(dataset.test) == 0


def test_features_that_leave_a_choice(tmp_path, write_tfds):
    import tensorflow_datasets as tfds

    features = {
        "title": tfds.features.Text(),
        "body": tfds.features.Text(),
        "mood": tfds.features.ClassLabel(num_classes=2),
        "topic": tfds.features.ClassLabel(num_classes=3),
    }
    rows = [{"title": f"t{i}", "body": f"b{i}", "mood": i % 2, "topic": i % 3} for i in range(30)]
    directory = write_tfds(tmp_path / "t", features, {"train": rows})
    with pytest.raises(InputError, match="features body, mood, title, topic: .*input_feature"):
        TfdsDirectory(str(directory)).load()
    dataset = TfdsDirectory(str(directory), input_feature="title", label_feature="topic").load()
    assert dataset.n_classes == 3
    assert dataset.decode(dataset.train.inputs[0])[0] == "t"


def test_labels_that_are_not_whole_numbers_are_refused(tmp_path, write_tfds):
    import tensorflow_datasets as tfds

    features = {
        "x": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "name": tfds.features.Tensor(shape=(1,), dtype=np.str_),
        "label": tfds.features.Scalar(dtype=np.float32),
    }
    rows = [{"x": np.zeros(2, np.float32), "name": ["n"], "label": 0.5} for _ in range(20)]
    directory = write_tfds(tmp_path / "t", features, {"train": rows})
    with pytest.raises(InputError, match="features label, name, x: .*whole-number label"):
        TfdsDirectory(str(directory)).load()


def test_supervised_keys_decide(tmp_path, write_tfds):
    import tensorflow_datasets as tfds

    features = {
        "a": tfds.features.Text(),
        "b": tfds.features.Text(),
        "y": tfds.features.ClassLabel(num_classes=2),
        "z": tfds.features.ClassLabel(num_classes=9),
    }
    rows = [{"a": f"a{i}", "b": f"b{i}", "y": i % 2, "z": 0} for i in range(30)]
    directory = write_tfds(tmp_path / "t", features, {"train": rows}, supervised_keys=("b", "y"))
    dataset = TfdsDirectory(str(directory)).load()
    assert dataset.n_classes == 2
    assert dataset.decode(dataset.train.inputs[0])[0] == "b"


def test_several_shapes_and_missing_train_are_refused(tmp_path, write_tfds):
    import tensorflow_datasets as tfds

    features = {
        "x": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    rows = [{"x": np.zeros(1 + i % 2, np.float32), "label": i % 2} for i in range(20)]
    uneven = write_tfds(tmp_path / "uneven", features, {"train": rows})
    with pytest.raises(InputError, match=r"'x' of .* has shapes \(1,\), \(2,\): wanted one shape"):
        TfdsDirectory(str(uneven)).load()
    without = write_tfds(tmp_path / "without", features, {"test": rows})
    with pytest.raises(InputError, match="has the splits test: wanted train"):
        TfdsDirectory(str(without)).load()


@pytest.mark.multiprocess
def test_two_processes_prepare_at_once(originals, serve, data_dir, monkeypatch):
    code = "from ici.data import resolve; print(resolve('mnist').load().digest)"
    with serve(originals.directory) as url:
        monkeypatch.setenv(base_url_variable("mnist"), url)
        processes = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        digests = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(digests[0]) == 65
    assert digests[0] == digests[1]


def test_the_slower_of_two_takes_the_directory_of_the_faster(
    prepared, originals, serve, monkeypatch
):
    from ici.data import tfds_builders

    def finish_elsewhere_meanwhile(path, n_axes):
        if not own_directory("mnist").exists():
            copied(prepared, "mnist", own_directory("mnist"))
        return read_idx(path, n_axes)

    read_idx = tfds_builders.read_idx
    monkeypatch.setattr(tfds_builders, "read_idx", finish_elsewhere_meanwhile)
    with serve(originals.directory) as url:
        monkeypatch.setenv(base_url_variable("mnist"), url + "/")
        directory = prepare("mnist")
    assert len(read_split(open_directory(directory, ""), "train", "")[0]) == 60
    assert [path.name for path in directory.parent.iterdir()] == ["3.0.1"]


def test_the_split_seed_orders_every_split(prepared):
    copied(prepared, "mnist", own_directory("mnist"))
    first, second = (Mnist(split_seed=seed).load().test for seed in (0, 1))
    assert sorted(first.labels) == sorted(second.labels)
    assert first.labels.tolist() != second.labels.tolist()


def test_other_contents_under_the_same_names_are_read_again(tmp_path, write_tfds):
    import tensorflow_datasets as tfds

    features = {
        "x": tfds.features.Tensor(shape=(1,), dtype=np.float32),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    one, two = (
        write_tfds(
            tmp_path / str(value),
            features,
            {"train": [{"x": np.full(1, value, np.float32), "label": i % 2} for i in range(20)]},
        )
        for value in (1, 2)
    )
    config = TfdsDirectory(str(one))
    assert set(config.load().train.inputs.ravel()) == {1.0}
    shutil.copytree(two, one, dirs_exist_ok=True)
    assert set(config.load().train.inputs.ravel()) == {2.0}
