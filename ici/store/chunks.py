"""How an array of the record is cut into chunks: what is read, written and checked as one piece."""

from __future__ import annotations

import math

# Above a few MiB a file or an object costs its bytes, not its name; a reader of one run or of one
# step reads whole chunks, and a writer holds a few of them.
MAX_CHUNK_BYTES = 16 * 2**20


def chunk_shape(
    lanes: tuple[int, ...],
    n_rows: int,
    inner: tuple[int, ...],
    itemsize: int,
    max_bytes: int = MAX_CHUNK_BYTES,
) -> tuple[int, ...]:
    """Shape of the chunks of an array ``(*lanes, step, *inner)``, none above `max_bytes`.

    Small arrays have all lanes in a chunk. Larger ones are cut along the outermost lane axis, then
    along the next, into equal parts; then along the steps, so that the rows written at once stay
    whole chunks; then along the inner axes, outermost first.

    Args:
      lanes: sizes of the lane axes, in storage order.
      n_rows: rows that are written at once, the most that a chunk has of them.
      inner: sizes of the axes behind ``step``.
      itemsize: bytes of one value.
      max_bytes: before compression; a single value may have more.
    """
    shape = [*(max(1, n) for n in (*lanes, n_rows, *inner))]
    step = len(lanes)
    for axis, size in enumerate(shape):
        others = math.prod(shape) // size * itemsize
        if others * size <= max_bytes:
            break
        fitting = max(1, max_bytes // others)
        if axis == step:
            # A chunk that straddled two writes would be read, changed and written again.
            shape[axis] = max(n for n in range(1, fitting + 1) if size % n == 0)
        else:
            shape[axis] = math.ceil(size / math.ceil(size / fitting))
    return tuple(shape)
