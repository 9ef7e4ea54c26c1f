import math
from typing import Any

import numpy as np
import pytest

from ici.data import Arrays, LinearTeacher, resolve
from ici.errors import InputError

X = np.linspace(-1, 1, 20).reshape(10, 2)
TOKENS = np.arange(1, 21).reshape(10, 2)
Y = np.arange(10) % 3


def load(config) -> Any:
    return config.load()


@pytest.mark.parametrize(
    ("inputs", "labels", "task", "n_classes"),
    [
        (X, Y, "classification", 3),
        (X, Y / 2, "regression", 1),
        (X, X, "regression", 2),
        (TOKENS, Y, "classification", 3),
        (TOKENS, TOKENS + 1, "language_model", 22),
        (TOKENS, np.full((10, 2), -1), "language_model", 21),
    ],
)
def test_the_task_follows_from_the_labels(inputs, labels, task, n_classes):
    dataset = load(Arrays(train=(inputs, labels), validation=(inputs[:3], labels[:3])))
    assert (dataset.task, dataset.n_classes) == (task, n_classes)
    wanted = labels.reshape(10, -1) if task == "regression" else labels
    np.testing.assert_array_equal(dataset.train.labels, wanted.astype(dataset.train.labels.dtype))
    assert dataset.test.labels.shape == (0, *dataset.train.labels.shape[1:])


def test_a_given_task_overrides():
    dataset = load(Arrays(train=(X, Y), validation=(X, Y), task="regression"))
    assert (dataset.task, dataset.train.labels.dtype) == ("regression", np.float32)
    with pytest.raises(InputError, match="labels have dtype float64"):
        Arrays(train=(X, Y / 2), validation=(X, Y), task="classification")
    with pytest.raises(InputError, match="unknown task"):
        Arrays(train=(X, Y), validation=(X, Y), task="x")  # pyright: ignore[reportArgumentType]


def test_the_teacher_is_recovered():
    config = LinearTeacher(dim=8, n_outputs=3, n_train=64)
    dataset = load(config)
    assert (dataset.task, dataset.n_classes, resolve("linear_teacher").spec) == (
        "regression",
        3,
        "linear_teacher",
    )
    for split in (dataset.train, dataset.validation, dataset.test):
        found, *_ = np.linalg.lstsq(split.inputs.astype(float), split.labels.astype(float))
        # Inputs and targets are rounded to float32.
        np.testing.assert_allclose(found, config.teacher, atol=1e-5)
    assert not np.isin(dataset.train.inputs, dataset.validation.inputs).any()


def test_teacher_and_noise_have_their_sizes():
    config = LinearTeacher(dim=400, n_outputs=50, n_train=500, noise=0.5)
    train = load(config).train
    residual = train.labels - train.inputs @ config.teacher
    # Five standard errors of a std over N draws, 1/sqrt(2N) of it.
    assert residual.std() == pytest.approx(0.5, rel=5 / math.sqrt(2 * 25_000))
    assert config.teacher.std() == pytest.approx(1 / 20, rel=5 / math.sqrt(2 * 20_000))
    assert train.inputs.std() == pytest.approx(1, rel=5 / math.sqrt(2 * 200_000))
    other = LinearTeacher(dim=400, n_outputs=50, n_train=500, noise=0.5, seed=1)
    assert load(other).digest != load(config).digest == load(config).digest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"n_outputs": 0}, "n_outputs is 0"),
        ({"n_test": -1}, "n_test is -1"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        LinearTeacher(**settings)
