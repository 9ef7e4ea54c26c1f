"""Packing is a bijection between documents and rows, and predicts every token once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ici.data.packing import (
    check_packing,
    document_numbers,
    pack,
    padding_share,
    row_starts,
    rows,
    stream_of,
    unpack,
)
from ici.errors import InputError

PACKINGS = ("concatenate", "whole_documents")
documents_of = st.lists(
    st.lists(st.integers(2, 9), max_size=12).map(lambda d: np.array(d, np.int32)), max_size=12
)
any_packing = {
    "documents": documents_of,
    "length": st.integers(2, 9),
    "packing": st.sampled_from(PACKINGS),
}
enough = settings(max_examples=300, deadline=None)


@enough
@given(**any_packing)
def test_the_documents_come_back(documents, length, packing):
    inputs, labels = pack(documents, length, packing)
    assert inputs.shape == labels.shape == (len(inputs), length)
    assert inputs.dtype == labels.dtype == np.int32
    assert [d.tolist() for d in unpack(inputs)] == [d.tolist() for d in documents]


@enough
@given(**any_packing)
def test_every_token_but_the_first_is_a_label_once(documents, length, packing):
    inputs, labels = pack(documents, length, packing)
    stream = [token for d in documents for token in (1, *d.tolist())]
    assert inputs[inputs != 0].tolist() == stream
    # In order, and without padding, the labels are the stream one token later.
    assert labels[labels != -1].tolist() == stream[1:]
    assert (labels[inputs == 0] == -1).all()
    assert np.count_nonzero((labels == -1) & (inputs != 0)) == (1 if stream else 0)


@enough
@given(**any_packing)
def test_labels_stay_in_the_document_up_to_the_separator_that_ends_it(documents, length, packing):
    # Tokens that name their document: (number, place) as a number above the separator.
    named = [100 * (i + 1) + np.arange(len(d), dtype=np.int32) for i, d in enumerate(documents)]
    inputs, labels = pack(named, length, packing)
    for token, label in zip(inputs.ravel().tolist(), labels.ravel().tolist(), strict=True):
        if token > 1 and label > 1:
            assert label == token + 1
        elif token > 1 and label == 1:
            assert token % 100 == len(documents[token // 100 - 1]) - 1
        elif token == 1 and label > 1:
            assert label % 100 == 0


@enough
@given(**any_packing)
def test_separators_tell_the_documents_of_a_row_apart(documents, length, packing):
    named = [np.full(len(d), 2 + i, np.int32) for i, d in enumerate(documents)]
    inputs, _ = pack(named, length, packing)
    numbers = document_numbers(inputs)
    for row, number in zip(inputs, numbers, strict=True):
        is_text = row > 1
        seen = {}
        for token, n in zip(row[is_text].tolist(), number[is_text].tolist(), strict=True):
            assert seen.setdefault(n, token) == token
        assert len(set(seen.values())) == len(seen)


@enough
@given(documents_of, st.integers(2, 9))
def test_concatenation_wastes_only_the_end(documents, length):
    inputs, _ = pack(documents, length, "concatenate")
    assert (inputs.ravel()[: sum(1 + len(d) for d in documents)] != 0).all()
    assert np.count_nonzero(inputs == 0) < length


@enough
@given(documents_of, st.integers(2, 9))
def test_whole_documents_are_cut_only_where_they_are_too_long(documents, length):
    sizes = [1 + len(d) for d in documents]
    starts = row_starts(sizes, length, "whole_documents")
    heads = np.cumsum([0, *sizes])[:-1].tolist()
    for head, size in zip(heads, sizes, strict=True):
        cuts = [s for s in starts.tolist() if head < s < head + size]
        if size <= length:
            assert not cuts
        else:
            assert len(cuts) <= -(-size // length)
    # A row ends early only where the next document would have been cut.
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert 0 < end - start <= length
        if end - start < length and end != sum(sizes):
            assert end - start + sizes[heads.index(end)] > length


def test_a_case_by_hand():
    documents = [np.array(d) for d in ([2, 3], [4], [5, 6, 7, 8, 9], [])]
    inputs, labels = pack(documents, 4)
    assert inputs.tolist() == [[1, 2, 3, 1], [4, 1, 5, 6], [7, 8, 9, 1]]
    assert labels.tolist() == [[2, 3, 1, 4], [1, 5, 6, 7], [8, 9, 1, -1]]
    inputs, labels = pack(documents, 4, "whole_documents")
    assert inputs.tolist() == [[1, 2, 3, 0], [1, 4, 1, 5], [6, 7, 8, 9], [1, 0, 0, 0]]
    assert labels.tolist() == [[2, 3, 1, -1], [4, 1, 5, 6], [7, 8, 9, 1], [-1] * 4]
    assert padding_share(inputs) == 4 / 16
    assert document_numbers(inputs).tolist() == [[1, 1, 1, 1], [1, 1, 2, 2], [0] * 4, [1] * 4]


@pytest.mark.parametrize("dtype", ["<u2", "<i4"])
def test_a_stream_of_unsigned_numbers_gives_the_same_rows(dtype):
    documents = [np.arange(2, 9), np.arange(2, 4)]
    starts = row_starts([8, 3], 4, "concatenate")
    stream = stream_of(documents).astype(dtype)
    for seen, wanted in zip(
        rows(stream, starts[:-1], starts[1:], 4), pack(documents, 4), strict=True
    ):
        assert seen.dtype == np.int32
        np.testing.assert_array_equal(seen, wanted)


def test_no_documents_are_no_rows():
    for packing in PACKINGS:
        inputs, labels = pack([], 5, packing)
        assert inputs.shape == labels.shape == (0, 5)


@pytest.mark.parametrize(
    ("packing", "length", "message"),
    [
        ("concatenated", 8, "unknown packing 'concatenated'.*Did you mean 'concatenate'"),
        ("concatenate", 1, "sequence_length is 1: wanted at least 2"),
    ],
)
def test_bad_settings(packing, length, message):
    with pytest.raises(InputError, match=message):
        check_packing(packing, length)
    with pytest.raises(InputError, match=message):
        pack([np.array([2])], length, packing)
