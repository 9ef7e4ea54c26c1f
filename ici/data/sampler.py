"""Which examples make up which batch: a pure function of the data size, the seed and the step."""

from __future__ import annotations

import functools

import numpy as np

from ici.errors import InputError

_CACHED_EPOCHS = 16


def batch_indices(
    n_examples: int, batch_size: int, seed: int, first_step: int, n_steps: int
) -> np.ndarray:
    """Example numbers, int32 [n_steps, batch_size], of `n_steps` batches from `first_step` on.

    Every epoch is a fresh permutation, and batches run on across its end: each epoch shows every
    example exactly once, none dropped, none padded. (A batch across the boundary can therefore
    hold an example twice.) A run that resumes needs no iterator state, only its step number.
    Raises `InputError` for a batch larger than the data, and for negative numbers.
    """
    if batch_size < 1 or batch_size > n_examples:
        raise InputError(
            f"batch_size is {batch_size} but the data hold {n_examples} examples: "
            f"wanted 1 to {n_examples}"
        )
    if min(seed, first_step, n_steps) < 0 or seed >= 2**64:
        raise InputError(
            f"seed, first_step and n_steps are {seed}, {first_step} and {n_steps}: "
            "wanted 0 or more, the seed below 2**64"
        )
    flat = np.empty(n_steps * batch_size, np.int32)
    filled = 0
    while filled < len(flat):
        epoch, offset = divmod(first_step * batch_size + filled, n_examples)
        piece = permutation(n_examples, seed, epoch)[offset : offset + len(flat) - filled]
        flat[filled : filled + len(piece)] = piece
        filled += len(piece)
    return flat.reshape(n_steps, batch_size)


@functools.lru_cache(maxsize=_CACHED_EPOCHS)
def permutation(n: int, seed: int, stream: int) -> np.ndarray:
    """A random order of 0..n-1, int32, read-only; the same for (n, seed, stream) for ever.

    Sorts the raw 64-bit output of the counter-based generator Philox (Salmon et al. 2011), whose
    bits are fixed by its definition, where the methods of `numpy.random.Generator` may change
    between NumPy versions.
    """
    order = np.argsort(raw_bits(n, seed, stream), kind="stable").astype(np.int32)
    order.flags.writeable = False
    return order


def raw_bits(n: int, seed: int, stream: int) -> np.ndarray:
    """`n` random uint64, a pure function of the arguments."""
    return np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(n)
