import threading

import numpy as np
import pytest

from ici.data import Split, StreamedSplit, batch_indices
from ici.data.loader import Loader
from ici.errors import InputError

N = 50
X = np.arange(N * 2, dtype=np.float32).reshape(N, 2)
Y = np.arange(N, dtype=np.int32) % 7


class OnDisk(StreamedSplit):
    """The same examples, counted as they are read; `broken` cannot be read."""

    example_shape, dtype, n_bytes, digest = (2,), np.dtype(np.float32), X.nbytes + Y.nbytes, "d"

    def __init__(self, broken=()):
        self.broken, self.asked, self.lock = set(broken), [], threading.Lock()

    def __len__(self):
        return N

    def take(self, indices):
        with self.lock:
            self.asked += indices.ravel().tolist()
        if bad := self.broken & set(indices.ravel().tolist()):
            raise InputError(f"record {min(bad)} is damaged")
        return X[indices], Y[indices]


def wanted(first, n, seeds=(0, 1), batch_size=4):
    return np.stack([batch_indices(N, batch_size, seed, first, n) for seed in seeds])


def check(chunk, ids):
    np.testing.assert_array_equal(chunk[2], ids)
    np.testing.assert_array_equal(chunk[0], X[ids])
    np.testing.assert_array_equal(chunk[1], Y[ids])


@pytest.mark.parametrize("prefetch", [0, 1, 2])
@pytest.mark.parametrize("split", [Split(X, Y), OnDisk()], ids=["memory", "disk"])
def test_chunks_are_a_function_of_their_steps(split, prefetch):
    with Loader(split, 4, (0, 1), prefetch=prefetch) as loader:
        # In order, out of order, again, shorter and longer than what was read ahead.
        for first, n in [(0, 3), (3, 3), (6, 2), (8, 3), (40, 3), (0, 3), (3, 5), (1, 1), (2, 0)]:
            check(loader.chunk(first, n), wanted(first, n))
        assert loader.busy_s > 0
        assert loader.waited_s > 0


def test_the_parts_of_processes_make_the_whole():
    ids = wanted(5, 3)
    parts = []
    for index in range(2):
        with Loader(OnDisk(), 4, (0, 1), process=(index, 2)) as loader:
            parts.append(loader.chunk(5, 3))
            assert loader.chunk_bytes(3) == 2 * 3 * 2 * (8 + 4 + 4)
    check([np.concatenate(pair, axis=2) for pair in zip(*parts, strict=True)], ids)


def test_the_next_chunks_are_read_ahead_and_no_further():
    split = OnDisk()
    with Loader(split, 4, (0,), prefetch=2, end_step=8) as loader:
        loader.chunk(0, 3)
        loader._reader.submit(lambda: None).result()
        expected = np.concatenate(
            [np.unique(wanted(f, n, (0,))) for f, n in [(0, 3), (3, 3), (6, 2)]]
        )
        assert sorted(split.asked) == sorted(expected)
        for first, n in [(3, 3), (6, 2)]:
            check(loader.chunk(first, n), wanted(first, n, (0,)))
        assert sorted(split.asked) == sorted(expected)


def test_what_seeds_share_is_read_once():
    split = OnDisk()
    with Loader(split, N, (0, 1, 2), prefetch=0) as loader:
        check(loader.chunk(0, 2), wanted(0, 2, (0, 1, 2), N))
    assert sorted(split.asked) == list(range(N))


def test_an_error_met_while_reading_ahead_is_raised_at_the_next_call():
    first, second = set(wanted(0, 2).ravel()), set(wanted(2, 2).ravel())
    bad = min(second - first)
    for ask in [(2, 2), (0, 2)]:
        with Loader(OnDisk([bad]), 4, (0, 1), prefetch=1) as loader:
            loader.chunk(0, 2)
            loader._reader.submit(lambda: None).result()
            with pytest.raises(InputError, match=f"record {bad} is damaged"):
                loader.chunk(*ask)


def test_closing_ends_the_thread():
    before = threading.active_count()
    loader = Loader(OnDisk(), 4, (0,))
    loader.chunk(0, 2)
    assert threading.active_count() == before + 1
    loader.close()
    loader.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        loader.chunk(2, 2)


def test_training_on_the_first_examples():
    with Loader(OnDisk(), 5, (0,), n_train=10) as loader:
        ids = loader.chunk(0, 2)[2]
    assert sorted(ids.ravel()) == list(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"process": (2, 2)}, r"process is \(2, 2\)"),
        ({"process": (0, 3)}, "batch_size is 4 for 3 processes: wanted a multiple of 3"),
        ({"seeds": ()}, "seeds is empty"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"n_train": 51}, "n_train is 51: wanted 1 to 50"),
        ({"n_train": 3}, "batch_size is 4 but the data hold 3"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Loader(**{"split": OnDisk(), "batch_size": 4, "seeds": (0,), **settings})
