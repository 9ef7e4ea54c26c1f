import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ici.data import augment
from ici.data.augment import augmentation_names, augmented, register_augmentation
from ici.errors import InputError

NAMES = ("flip", "crop", "crop_flip")
N = 4096


def coloured(n, size=6):
    """Images in which every pixel has a value of its own, none of them 0."""
    return np.tile(
        1 + np.arange(size * size, dtype=np.float32).reshape(1, size, size, 1), (n, 1, 1, 1)
    )


@pytest.fixture(scope="module")
def change():
    return jax.jit(augmented, static_argnums=0)


def test_the_names():
    assert augmentation_names()[0] == "none"
    assert set(NAMES) <= set(augmentation_names())
    images = coloured(2)
    assert augmented("none", images, np.arange(2), 0, 0) is images
    with pytest.raises(InputError, match="unknown augment 'flop'.*Did you mean 'flip'"):
        augmented("flop", images, np.arange(2), 0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_changed_alike_in_any_batch(change, name):
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)
    ids = np.array([5, 3, 90, 7, 11, 2, 0, 41])
    whole = change(name, images, ids, 3, 17)
    assert whole.shape == images.shape
    order = np.array([6, 0, 3])
    part = change(name, images[order], ids[order], jnp.int32(3), jnp.int32(17))
    np.testing.assert_array_equal(part, whole[order])
    assert not np.array_equal(whole, images)


@pytest.mark.parametrize("name", NAMES)
def test_seed_step_and_example_all_count(change, name):
    images, ids = coloured(64), np.arange(64)
    seen = [
        np.asarray(change(name, images, i, seed, step)).tobytes()
        for i, seed, step in ((ids, 0, 0), (ids, 1, 0), (ids, 0, 1), (ids + 64, 0, 0))
    ]
    assert len(set(seen)) == 4


def test_half_of_the_images_are_flipped(change):
    images = coloured(N)
    out = np.asarray(change("flip", images, np.arange(N), 0, 5))
    flipped = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (flipped | (out == images).all(axis=(1, 2, 3))).all()
    # Five standard deviations of a binomial: fewer than one in a million seeds fall outside.
    assert abs(flipped.sum() - N / 2) < 5 * math.sqrt(N) / 2


def windows(out):
    """(top, left) of each crop, from where the pixel of value 1 (or its absence) puts it."""
    padded = np.pad(coloured(1, 10)[0, :, :, 0], 4)
    found = {padded[t : t + 10, s : s + 10].tobytes(): (t, s) for t in range(9) for s in range(9)}
    assert len(found) == 81
    return [found[image[:, :, 0].tobytes()] for image in out]


def test_crops_are_uniform_windows_of_the_padded_image(change):
    out = np.asarray(change("crop", coloured(N, 10), np.arange(N), 0, 5))
    places = np.array(windows(out))
    counts = np.bincount(places[:, 0] * 9 + places[:, 1], minlength=81)
    chi_squared = ((counts - N / 81) ** 2 / (N / 81)).sum()
    # 80 degrees of freedom: mean 80, std sqrt(160); five of them either way.
    assert abs(chi_squared - 80) < 5 * math.sqrt(160)


def test_crop_and_flip_are_independent(change):
    out = np.asarray(change("crop_flip", coloured(N, 10), np.arange(N), 0, 5))
    padded = np.pad(coloured(1, 10)[0, :, :, 0], 4)
    plain = {padded[t : t + 10, s : s + 10].tobytes(): t for t in range(9) for s in range(9)}
    flips = np.array([image[:, :, 0].tobytes() not in plain for image in out])
    unflipped = [x[:, ::-1] if f else x for x, f in zip(out, flips, strict=True)]
    tops = np.array([t for t, _ in windows(np.ascontiguousarray(unflipped))])
    assert abs(flips.sum() - N / 2) < 5 * math.sqrt(N) / 2
    # The correlation of independent draws has std 1/sqrt(N).
    assert abs(np.corrcoef(tops, flips)[0, 1]) < 5 / math.sqrt(N)


def test_the_keys_are_not_those_of_weights(monkeypatch):
    monkeypatch.setattr(augment, "_REGISTRY", dict(augment._REGISTRY))

    @register_augmentation("spy")
    def spy(key, image):
        return jnp.full_like(image, jax.random.key_data(key)[0].astype(jnp.float32))

    assert "spy" in augmentation_names()
    out = augmented("spy", coloured(4), np.arange(4), 0, np.int32(2))
    seen = set(np.asarray(out)[:, 0, 0, 0])
    root = jax.random.key(0)
    folded = [
        jax.random.fold_in(jax.random.fold_in(root, i), j) for i in range(5) for j in range(5)
    ]
    used = {float(jax.random.key_data(k)[0].astype(jnp.float32)) for k in [root, *folded]}
    assert len(seen) == 4
    assert not seen & used
    with pytest.raises(InputError, match="already registered"):
        register_augmentation("spy")(lambda key, image: image)
