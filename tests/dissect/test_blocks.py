"""Parameters dealt to blocks: one layer and its norm, in execution order."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ici
from ici.dissect.blocks import find_blocks
from ici.models import InputSpec, MLPConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import zoo


def blocks_of(model, inputs):
    variables = model.init(jax.random.key(0), inputs)
    return find_blocks(model, variables, inputs), variables


def by_block(blocks, params):
    """``{block: [parameter paths]}``, rows of stacked ones as ``path[row]``."""
    dealt = {name: [] for name in blocks.names}
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for path, owner in zip(paths, blocks.owners, strict=True):
        if isinstance(owner, int):
            dealt[blocks.names[owner]].append(path)
        else:
            for row, block in enumerate(owner):
                dealt[blocks.names[block]].append(f"{path}[{row}]")
    return dealt


def test_a_norm_belongs_to_the_layer_beside_it():
    chain = ici.from_nnx(lambda rngs: zoo.Chain(rngs=rngs))
    blocks, variables = blocks_of(chain, zoo.data())
    assert blocks.names == ("blocks/0/linear", "blocks/1/linear", "blocks/2/linear", "head")
    dealt = by_block(blocks, variables.params)
    assert dealt["head"] == ["head/bias", "head/kernel"]
    assert sorted(dealt["blocks/1/linear"]) == [
        "blocks/1/linear/bias",
        "blocks/1/linear/kernel",
        "blocks/1/norm/bias",
        "blocks/1/norm/scale",
    ]


def test_a_norm_in_front_goes_with_the_layer_behind():
    config = MLPConfig(width=8, placement="pre")
    model = ici.from_nnx(config.build("layer", 2, InputSpec((4,), None, 2)))
    blocks, variables = blocks_of(model, zoo.data())
    dealt = by_block(blocks, variables.params)
    assert "blocks/1/norm/scale" in dealt["blocks/1/linear"]


def test_rows_of_a_scanned_stack_are_blocks_of_their_own():
    scanned = ici.from_nnx(lambda rngs: zoo.Scanned(rngs=rngs))
    blocks, variables = blocks_of(scanned, zoo.data())
    assert blocks.names == ("blocks/0/linear", "blocks/1/linear", "blocks/2/linear", "head")
    assert "blocks/linear/kernel[2]" in by_block(blocks, variables.params)["blocks/2/linear"]


def test_embeddings_come_first_and_shared_layers_once():
    twice = ici.from_nnx(lambda rngs: zoo.Twice(rngs=rngs))
    blocks, _ = blocks_of(twice, jnp.zeros((3, 5), jnp.int32))
    assert blocks.names == ("embed", "layer")


def test_parameters_held_by_the_network_itself():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.offset = nnx.Param(jnp.zeros(4))
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(x + self.offset[None])

    blocks, variables = blocks_of(ici.from_nnx(lambda rngs: Net(rngs)), zoo.data())
    assert len(blocks) == 2 and blocks.names[-1] == "head"
    assert by_block(blocks, variables.params)[blocks.names[0]] == ["offset"]


@pytest.mark.parametrize("kind", [zoo.Chain, zoo.Scanned])
def test_sums_and_norms_by_block(kind):
    model = ici.from_nnx(lambda rngs: kind(rngs=rngs))
    blocks, variables = blocks_of(model, zoo.data())
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype("f"), variables.params)
    dealt = by_block(blocks, variables.params)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

    def values(name):
        parts = []
        for path in dealt[name]:
            path, _, row = path.partition("[")
            parts.append((flat[path][int(row[:-1])] if row else flat[path]).ravel())
        return np.concatenate(parts)

    # Float32 sums of a few dozen numbers.
    close = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(blocks.total(tree), [values(n).sum() for n in blocks.names], **close)
    norms = [np.linalg.norm(values(n)) for n in blocks.names]
    np.testing.assert_allclose(blocks.norm(tree), norms, **close)
    chosen = jnp.asarray([True, False, False, True])
    mixed = blocks.select(chosen, jax.tree.map(jnp.zeros_like, tree), tree)
    np.testing.assert_allclose(
        blocks.norm(mixed), np.where(chosen, 0.0, np.asarray(norms)), **close
    )


def test_share_that_is_not_finite():
    chain = ici.from_nnx(lambda rngs: zoo.Chain(rngs=rngs))
    blocks, variables = blocks_of(chain, zoo.data())
    params = variables.params | {
        "head": {"bias": jnp.asarray([jnp.nan, 0.0]), "kernel": jnp.zeros((4, 2))}
    }
    np.testing.assert_allclose(blocks.nonfinite(params), [0, 0, 0, 1 / 10], rtol=1e-6)
