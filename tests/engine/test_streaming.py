"""Batches from the host are the batches from the device, and so is all that is trained on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_run import arrays, experiment

import ici
from ici.data import Arrays, DataConfig, Dataset, StreamedSplit
from ici.data.augment import register_augmentation
from ici.engine.feed import Feed
from ici.engine.group import MAX_SPLIT_BYTES, is_streamed
from ici.engine.mesh import make_mesh
from ici.models import ConvNetConfig


class FromFile(StreamedSplit):
    def __init__(self, split, fail_at=None):
        self.split, self.fail_at = split, fail_at
        self.example_shape, self.dtype = split.example_shape, split.dtype
        self.n_bytes, self.digest = split.n_bytes, split.digest

    def __len__(self):
        return len(self.split)

    def take(self, indices):
        if self.fail_at is not None and self.fail_at in indices:
            raise ici.InputError("train-00000.array_record is damaged: prepare it again")
        return self.split.take(indices)


class Streamed(DataConfig):
    def __init__(self, data, fail_at=None):
        self.data, self.fail_at = data, fail_at

    def load(self):
        whole = self.data.load()
        return Dataset(
            whole.name,
            FromFile(whole.train, self.fail_at),
            whole.validation,
            whole.test,
            whole.n_classes,
            whole.input_kind,
        )

    def fingerprint(self):
        return self.data.fingerprint()


def images():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8, 8, 1)).astype(np.float32), rng.integers(0, 2, 64)
    return Arrays(train=(x[:48], y[:48]), validation=(x[48:], y[48:]))


def same(a, b):
    for node in ("train", "probe", "reference", "evaluation"):
        left, right = getattr(a, node), getattr(b, node)
        assert set(left) == set(right)
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=f"{node} {name}")


@pytest.mark.slow
def test_the_record_is_the_same_bit_for_bit(tmp_path):
    e = experiment(norm="batch", measure=("gradient_shift@20",))
    on_device = ici.run(replace(e, stream=False), tmp_path / "device")
    from_host = ici.run(replace(e, stream=True), tmp_path / "host")
    same(on_device, from_host)
    shift = "gradient_shift"
    np.testing.assert_array_equal(
        on_device.measurement(shift)[shift], from_host.measurement(shift)[shift]
    )


@pytest.mark.slow
def test_a_streamed_split_trains_as_one_in_memory(tmp_path):
    e = experiment(norm="none", lr=1e-2, seed=(0, 3), steps=25, probe=ici.Probe(every=5))
    same(
        ici.run(replace(e, stream=False), tmp_path / "memory"),
        ici.run(replace(e, data=Streamed(arrays())), tmp_path / "streamed"),
    )


@pytest.mark.slow
def test_augmented_images_are_the_same_either_way(tmp_path):
    e = experiment(
        data=images(), model=ConvNetConfig(width=4, stages=2), norm="none", lr=1e-2, steps=10,
        augment="crop_flip", reference_every=10,
    )  # fmt: skip
    on_device = ici.run(replace(e, stream=False), tmp_path / "device")
    same(on_device, ici.run(replace(e, stream=True), tmp_path / "host"))
    plain = ici.run(replace(e, augment="none"), tmp_path / "plain")
    assert not np.array_equal(plain.train.loss, on_device.train.loss)
    # The reference batch and evaluations are of the images as they are.
    start = {"step": 0}
    np.testing.assert_array_equal(
        plain.reference["mean"][start], on_device.reference["mean"][start]
    )


@pytest.mark.slow
def test_measurements_see_the_images_of_the_step(tmp_path, monkeypatch):
    monkeypatch.setattr("ici.data.augment._REGISTRY", {})
    register_augmentation("blank")(lambda key, image: 0.0 * image)
    e = experiment(
        data=images(), norm="none", lr=1e-2, seed=0, steps=5, augment="blank",
        reference_every=5, eval_every=5, measure=("gradient_shift@5",),
    )  # fmt: skip
    results = ici.run(e, tmp_path / "blank")
    norms = results.measurement("gradient_shift").block_gradient_norm.squeeze()
    # A blank image gives no gradient to the first weights but their bias: that of the record's step
    assert np.isfinite(norms).all()
    assert float(results.probe["std"].isel(site=0, feature=0).max()) == 0.0


def test_what_is_streamed():
    data = arrays().load()
    assert not is_streamed(experiment(), data)
    assert is_streamed(experiment(stream=True), data)
    streamed = Streamed(arrays()).load()
    assert is_streamed(experiment(), streamed)
    with pytest.raises(ici.InputError, match="stream is False and arrays is read from files"):
        is_streamed(experiment(stream=False), streamed)
    streamed.train.n_bytes = MAX_SPLIT_BYTES + 1
    assert is_streamed(experiment(), streamed)


def test_indices_point_at_the_chunks_examples():
    e = experiment(seed=(1, 4))
    mesh = make_mesh(1)
    resident = Feed(e, arrays().load(), mesh)
    streamed = Feed(replace(e, stream=True), arrays().load(), mesh)
    with resident, streamed:
        for first in (0, 10, 5):  # in any order
            rows, nothing = resident.chunk(first, 5)
            indices, examples = streamed.chunk(first, 5)
            assert nothing is None and streamed.resident is None
            for at, wanted in zip(indices.reshape(-1, 16), rows.reshape(-1, 16), strict=True):
                np.testing.assert_array_equal(examples.ids_at(at), wanted)
                for part, whole in zip(
                    examples.take(at), resident.resident.take(wanted), strict=True
                ):
                    np.testing.assert_array_equal(part, whole)
        assert resident.waited_s == 0 and streamed.waited_s > 0


def test_a_damaged_file_ends_the_run_with_its_name(tmp_path):
    e = experiment(norm="none", data=Streamed(arrays(), fail_at=40), reference_size=4)
    with pytest.raises(ici.InputError, match="train-00000.array_record is damaged"):
        ici.run(e, tmp_path / "out")
