import math
import sys

import numpy as np
import pytest

from ici.data import Digits, Synthetic
from ici.errors import InputError


def moments(split):
    x = split.inputs.astype(np.float64)
    return x.mean(axis=0), x.std(axis=0)


def test_digits_are_the_originals_up_to_one_affine_map():
    datasets = pytest.importorskip("sklearn.datasets")
    original, labels = datasets.load_digits(return_X_y=True)
    dataset = Digits().load()
    parts = (dataset.train, dataset.validation, dataset.test)
    inputs = np.concatenate([part.inputs for part in parts]).astype(np.float64)
    # The map is recovered from its known range (0 to 16) and must give back whole numbers.
    pixels = 16 * (inputs - inputs.min()) / (inputs.max() - inputs.min())
    np.testing.assert_allclose(pixels, pixels.round(), atol=1e-5)
    seen = np.concatenate([part.labels for part in parts])
    rows = [(*row.round().astype(int), label) for row, label in zip(pixels, seen, strict=True)]
    wanted = [(*row.astype(int), label) for row, label in zip(original, labels, strict=True)]
    assert sorted(rows) == sorted(wanted)


def test_digits_are_scaled_and_balanced():
    dataset = Digits().load()
    assert dataset.train.inputs.mean() == pytest.approx(0, abs=1e-5)
    assert dataset.train.inputs.std() == pytest.approx(1, abs=1e-5)
    assert dataset.train.inputs.shape == (1439, 64)
    for split in (dataset.validation, dataset.test):
        assert set(np.bincount(split.labels)) <= {17, 18}


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"scikit-learn.*pip install -e '\.\[demo\]'"):
        Digits().load()


N = 20_000
DIM = 16


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (2.0, 3.0), (-0.5, 0.25)])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_the_measured_shift_is_the_dialled_one(mean, scale, n_classes):
    config = Synthetic(DIM, n_classes, N, N, N, shift_mean=mean, shift_scale=scale)
    dataset = config.load()
    mean_a, std_a = moments(dataset.train)
    for split in (dataset.validation, dataset.test):
        mean_b, std_b = moments(split)
        # Sampling error of a mean is at most std/sqrt(N), of ln(std) at most 1/sqrt(2N) (the
        # mixtures have lighter tails than a Gaussian); five of the two-sample errors.
        mean_shift = (mean_b - mean_a) / std_a
        floor = 5 * math.sqrt((1 + scale**2 + mean**2 / 2) / N)
        np.testing.assert_allclose(mean_shift, mean, atol=floor)
        scale_shift = np.log(std_b / std_a)
        np.testing.assert_allclose(scale_shift, math.log(scale), atol=5 / math.sqrt(N))
        wasserstein = np.sqrt((mean_b - mean_a) ** 2 + (std_b - std_a) ** 2)
        expected = math.hypot(mean, scale - 1)
        np.testing.assert_allclose(wasserstein, expected, atol=2 * floor)
        kl = scale_shift + (std_a**2 + (mean_a - mean_b) ** 2) / (2 * std_b**2) - 0.5
        closed_form = math.log(scale) + (1 + mean**2) / (2 * scale**2) - 0.5
        np.testing.assert_allclose(kl, closed_form, atol=(1 + mean**2) / scale**3 * floor)


@pytest.mark.parametrize("separation", [0.0, 0.5, 3.0])
def test_separation_is_between_over_within(separation):
    dataset = Synthetic(DIM, 5, N, separation=separation).load()
    x, y = dataset.train.inputs.astype(np.float64), dataset.train.labels
    centres = np.stack([x[y == c].mean(axis=0) for c in range(5)])
    within = math.sqrt(np.mean((x - centres[y]) ** 2))
    # The mean over N/5 examples leaves sqrt(5/N) = 0.016 of noise in each centre.
    between = math.sqrt(np.mean((centres - centres.mean(axis=0)) ** 2))
    assert between / within == pytest.approx(separation, abs=0.05)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=5 / math.sqrt(N))
    np.testing.assert_allclose(x.std(axis=0), 1, atol=5 / math.sqrt(N))


def test_within_a_class_the_noise_is_gaussian():
    x = Synthetic(1, 2, 100_000, separation=0.0).load().train.inputs.astype(np.float64)
    # Standard errors of skewness and excess kurtosis are sqrt(6/N) and sqrt(24/N); five of them.
    assert np.mean(x**3) == pytest.approx(0, abs=5 * math.sqrt(6 / 1e5))
    assert np.mean(x**4) - 3 == pytest.approx(0, abs=5 * math.sqrt(24 / 1e5) + 0.05)


def test_splits_are_independent_draws_of_the_given_sizes():
    dataset = Synthetic(3, 4, 50, 50, 0).load()
    assert dataset.train.inputs.shape == dataset.validation.inputs.shape == (50, 3)
    assert len(dataset.test) == 0
    assert not np.isin(dataset.train.inputs, dataset.validation.inputs).any()
    assert set(np.bincount(dataset.train.labels)) <= {12, 13}


def test_the_shift_is_an_exact_map_of_the_unshifted_draw():
    plain, shifted = Synthetic(), Synthetic(shift_mean=2.0, shift_scale=3.0)
    np.testing.assert_array_equal(plain.load().train.inputs, shifted.load().train.inputs)
    # One rounding to float32 on each side.
    np.testing.assert_allclose(
        shifted.load().test.inputs, 3 * plain.load().test.inputs + 2, rtol=1e-6, atol=1e-6
    )


def test_seeds():
    assert Synthetic().load().digest == Synthetic().load().digest
    assert Synthetic(seed=1).load().digest != Synthetic().load().digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim is 0: wanted at least 1"),
        ({"n_classes": 1}, "n_classes is 1: wanted at least 2"),
        ({"n_train": -3}, "n_train is -3"),
        ({"n_validation": 0}, "n_validation is 0"),
        ({"n_test": -1}, "n_test is -1"),
        ({"separation": -0.1}, "separation is -0.1"),
        ({"shift_scale": 0.0}, "shift_scale is 0.0"),
        ({"shift_mean": math.inf}, "shift_mean is inf"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_refused_at_birth(settings, message):
    with pytest.raises(InputError, match=message):
        Synthetic(**settings)
