import json

import numpy as np
import pytest

from ici.data import Arrays
from ici.errors import InputError

X = np.linspace(-1, 1, 20).reshape(10, 2)
Y = np.arange(10) % 3


@pytest.mark.parametrize(
    ("inputs", "kind", "vocab_size"),
    [
        (X, "vectors", None),
        (np.arange(1, 21).reshape(10, 2), "tokens", 21),
        (X.reshape(10, 2, 1, 1), "images", None),
        (np.ones((10, 2, 2, 3), np.uint8), "images", None),
    ],
)
def test_the_kind_follows_from_the_inputs(inputs, kind, vocab_size):
    dataset = Arrays(train=(inputs, Y), validation=(inputs[:3], Y[:3])).load()
    assert (dataset.input_kind, dataset.vocab_size, dataset.n_classes) == (kind, vocab_size, 3)
    np.testing.assert_array_equal(dataset.train.inputs, inputs.astype(dataset.train.inputs.dtype))
    np.testing.assert_array_equal(dataset.validation.labels, Y[:3])
    assert len(dataset.test) == 0


def test_given_settings_override():
    counts = np.arange(1, 21).reshape(10, 2)
    config = Arrays(
        train=(counts, Y),
        validation=(counts, Y),
        test=(counts[:4], Y[:4]),
        n_classes=7,
        input_kind="vectors",
        name="mine",
    )
    dataset = config.load()
    assert (dataset.n_classes, dataset.input_kind, dataset.name) == (7, "vectors", "mine")
    assert len(dataset.test) == 4


def test_lists_will_do():
    dataset = Arrays(train=([[0.5], [1.5]], [0, 1]), validation=([[1.0]], [1])).load()
    assert dataset.train.inputs.tolist() == [[0.5], [1.5]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": (X, Y), "n_classes": 2}, r"train labels\[2\] is 2: wanted 0 to 1"),
        ({"train": (X, Y - 1)}, r"train labels\[0\] is -1"),
        ({"train": (np.where(X > 0.9, np.nan, X), Y)}, r"train inputs\[9, 1\] is nan"),
        ({"validation": (X[:, 0], Y)}, r"validation inputs have shape \(10,\)"),
        ({"validation": (X * np.inf, Y)}, r"validation inputs\[0, 0\] is -inf"),
        ({"train": (X[:0], Y[:0])}, "train has no examples"),
        ({"train": (X, Y[:4])}, "train has 10 inputs but 4 labels"),
        ({"train": X}, r"train is not a pair of arrays .*wanted \(inputs, labels\)"),
        ({"train": ([[1.0], [1.0, 2.0]], [0, 1])}, "train is not a pair of arrays"),
        ({"train": (X.reshape(10, 2, 1), Y)}, "add a channel axis"),
        ({"train": (X.ravel(), Y)}, r"wanted \[N, T\] tokens, \[N, D\] vectors"),
        ({"train": (X.astype(str), Y)}, "train inputs have dtype <U"),
    ],
)
def test_bad_arrays_are_refused_at_birth(fields, message):
    with pytest.raises(InputError, match=message) as error:
        Arrays(**{"train": (X, Y), "validation": (X, Y), **fields})
    assert "\n" not in str(error.value)


def test_the_fingerprint_is_the_digest_of_the_arrays():
    first, same, other = (Arrays(train=(x, Y), validation=(X, Y)) for x in (X, X.copy(), -X))
    assert json.dumps(first.fingerprint()) == json.dumps(same.fingerprint())
    assert first.fingerprint() != other.fingerprint()
    assert first.fingerprint()["digest"] == first.load().digest
