"""Random ways to cut a sample and to put its parts together again."""

from __future__ import annotations

import jax
import numpy as np


def merged_in_any_order(parts, random):
    """One statistic from many: neighbours or strangers, in any order. Also the deepest nesting."""
    leaves = [(part, 0) for part in parts]
    while len(leaves) > 1:
        a, depth_a = leaves.pop(random.randrange(len(leaves)))
        b, depth_b = leaves.pop(random.randrange(len(leaves)))
        leaves.insert(random.randrange(len(leaves) + 1), (a.merge(b), 1 + max(depth_a, depth_b)))
    return leaves[0]


def cut(x, sizes):
    return np.split(x, np.cumsum(sizes)[:-1])


def assert_same(a, b, rtol=0.0, atol=0.0):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=rtol, atol=atol), a, b)
