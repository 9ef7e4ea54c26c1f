import dataclasses

import numpy as np
import pytest

from ici.data import Dataset, Split
from ici.errors import InputError


def vectors(**changes):
    inputs = np.arange(12.0).reshape(6, 2)
    fields = {
        "name": "v",
        "train": Split(inputs, np.array([0, 1, 2, 0, 1, 2])),
        "validation": Split(inputs[:2], np.array([0, 2])),
        "test": Split(inputs[:0], np.array([], np.int64)),
        "n_classes": 3,
        "input_kind": "vectors",
    }
    return Dataset(**{**fields, **changes})


def tokens(**changes):
    inputs = np.array([[2, 3, 0], [1, 0, 0], [4, 4, 4]])
    fields = {
        "name": "t",
        "train": Split(inputs, np.array([0, 1, 1])),
        "validation": Split(inputs[:1], np.array([0])),
        "test": Split(inputs[1:], np.array([1, 1])),
        "n_classes": 2,
        "input_kind": "tokens",
        "vocab_size": 5,
        "vocabulary": ("<pad>", "<unk>", "a", "b", "c"),
    }
    return Dataset(**{**fields, **changes})


def test_arrays_are_cast_and_read_only():
    for dataset, kind in ((vectors(), np.float32), (tokens(), np.int32)):
        for split in (dataset.train, dataset.validation, dataset.test):
            assert split.inputs.dtype == kind
            assert split.labels.dtype == np.int32
            with pytest.raises(ValueError, match="read-only"):
                split.labels[...] = 0


def test_the_users_own_array_stays_writeable():
    inputs = np.zeros((6, 2), np.float32)
    vectors(train=Split(inputs, np.zeros(6, np.int32)))
    inputs[0] = 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, bool])
def test_numeric_inputs_keep_their_values(dtype):
    inputs = np.array([[0, 1], [1, 0]]).astype(dtype)
    dataset = vectors(
        train=Split(inputs, np.array([0, 1])), validation=Split(inputs, np.array([0, 1]))
    )
    np.testing.assert_array_equal(dataset.train.inputs, inputs.astype(np.float32))


def replaced(split, at, value, what="inputs"):
    array = getattr(split, what).copy()
    array[at] = value
    return dataclasses.replace(split, **{what: array})


X = np.arange(12.0).reshape(6, 2)
GOOD = Split(X, np.array([0, 1, 2, 0, 1, 2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": replaced(GOOD, (3, 1), np.nan)}, r"train inputs\[3, 1\] is nan.*finite"),
        ({"validation": replaced(GOOD, (4, 0), -np.inf)}, r"validation inputs\[4, 0\] is -inf"),
        ({"train": replaced(GOOD, (2, 0), 1e300)}, r"train inputs\[2, 0\] is 1e\+300"),
        ({"test": replaced(GOOD, 5, 3, "labels")}, r"test labels\[5\] is 3.*0 to 2"),
        ({"train": replaced(GOOD, 1, -1, "labels")}, r"train labels\[1\] is -1"),
        ({"train": Split(X, np.arange(5) % 3)}, "train has 6 inputs but 5 labels"),
        ({"train": Split(X, np.zeros(6))}, "train labels have dtype float64"),
        ({"train": Split(X, np.zeros((6, 1), int))}, r"train labels have shape \(6, 1\)"),
        ({"train": Split(X.astype(object), GOOD.labels)}, "train inputs have dtype object"),
        ({"train": Split(X[:, :, None], GOOD.labels)}, r"wanted \[N, D\] for vectors"),
        ({"train": Split(X[:, :0], GOOD.labels)}, "no axis of length 0"),
        ({"train": Split(X[:0], GOOD.labels[:0])}, "train has no examples"),
        ({"validation": Split(X[:0], GOOD.labels[:0])}, "validation has no examples"),
        ({"test": Split(np.zeros((1, 3)), np.array([0]))}, r"test inputs .*\(3,\).*\(2,\)"),
        ({"n_classes": 1}, "n_classes is 1"),
        ({"input_kind": "sound"}, "input_kind is 'sound'"),
        ({"vocab_size": 9}, "vocab_size is 9 although the inputs are vectors"),
    ],
)
def test_bad_vectors_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        vectors(**changes)
    assert "\n" not in str(error.value)


T = tokens().train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": replaced(T, (2, 1), 5)}, r"train inputs\[2, 1\] is 5.*0 to 4"),
        ({"test": replaced(T, (0, 2), -7)}, r"test inputs\[0, 2\] is -7"),
        ({"train": replaced(T, 1, 0)}, r"train inputs\[1\] is all padding"),
        ({"train": Split(T.inputs * 1.0, T.labels)}, "dtype float64.*integer tokens"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"vocabulary": ("a",)}, "vocabulary has 1 words but vocab_size is 5"),
    ],
)
def test_bad_tokens_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as error:
        tokens(**changes)
    assert "\n" not in str(error.value)


def test_the_first_of_several_faults_is_named_with_their_number():
    labels = np.array([0, 5, 1, 6, 0, 9])
    with pytest.raises(InputError, match=r"labels\[1\] is 5.*3 of 6 are at fault"):
        vectors(train=Split(X, labels))


def test_equal_data_have_equal_digests():
    assert vectors().digest == vectors().digest
    assert vectors().digest == vectors(notes="other prose").digest
    assert vectors(train=Split(X.astype(">f4"), GOOD.labels)).digest == vectors().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"train": replaced(GOOD, (5, 1), 11.000001)},
        {"train": replaced(GOOD, 0, 1, "labels")},
        {"validation": Split(X[1::-1], np.array([0, 2]))},
        {"test": Split(X[:1], np.array([0]))},
        {"name": "w"},
        {"n_classes": 4},
    ],
)
def test_one_changed_value_changes_the_digest(changes):
    assert vectors(**changes).digest != vectors().digest


def test_a_renamed_word_changes_the_digest():
    other = tokens(vocabulary=("<pad>", "<unk>", "a", "b", "d"))
    assert other.digest != tokens().digest


def test_decode_leaves_padding_out():
    dataset = tokens()
    assert dataset.decode(dataset.train.inputs[0]) == "a b"
    assert tokens(vocabulary=None).decode(dataset.train.inputs[0]) == "2 3"
