"""Residual networks: parameters counted by hand, order, identities at initialisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import (
    KEY,
    built,
    check_shared_weights,
    flat,
    images,
    n_parameters,
    output_shape,
    shapes,
    sites,
    untouched,
)
from flax import nnx

from ici.adapt import Variables, from_nnx
from ici.errors import InputError
from ici.models import InputSpec, ResNetConfig
from ici.models.norms import parse
from ici.models.resnet import PaddedShortcut, ResidualBlock

CIFAR, IMAGENET = images(32, n_classes=10), images(224, n_classes=1000)


def small_by_hand(depth):
    """He et al. 2016a, section 4.2: convolutions without bias, scale and bias of each norm."""
    n = (depth - 2) // 6
    count, inputs = 9 * 3 * 16 + 2 * 16, 16
    for channels in (16, 32, 64):
        for _ in range(2 * n):
            count += 9 * inputs * channels + 2 * channels
            inputs = channels
    return count + 64 * 10 + 10


def large_by_hand(blocks, is_bottleneck):
    """Table 1: kernels, norms, and projections where the shape changes (option B)."""
    count, inputs = 49 * 3 * 64 + 2 * 64, 64
    for stage, n in enumerate(blocks):
        inner = 64 * 2**stage
        out = inner * (4 if is_bottleneck else 1)
        for block in range(n):
            if is_bottleneck:
                count += inputs * inner + 9 * inner * inner + inner * out + 2 * (2 * inner + out)
            else:
                count += 9 * inputs * inner + 9 * inner * inner + 4 * inner
            if block == 0 and inputs != out:
                count += inputs * out + 2 * out
            inputs = out
    return count + inputs * 1000 + 1000


@pytest.mark.parametrize(
    # Table 6 of the paper: 0.27, 0.85 and 1.7 million.
    ("depth", "count"),
    [(20, 269_722), (56, 853_018), (110, 1_727_962)],
)
def test_small_parameter_counts_are_the_papers(depth, count):
    assert n_parameters(ResNetConfig(), "batch", depth, CIFAR) == count == small_by_hand(depth)


@pytest.mark.parametrize(
    ("depth", "blocks", "count"),
    [
        (18, (2, 2, 2, 2), 11_689_512),
        (34, (3, 4, 6, 3), 21_797_672),
        (50, (3, 4, 6, 3), 25_557_032),
        (101, (3, 4, 23, 3), 44_549_160),
    ],
)
def test_large_parameter_counts_are_those_of_the_table(depth, blocks, count):
    assert n_parameters(ResNetConfig(), "batch", depth, IMAGENET) == count
    assert large_by_hand(blocks, depth >= 50) == count


def test_v2_has_its_norms_before_the_convolutions():
    # A norm takes the channels that come in: the stem's is gone, and the last is 64 wide.
    v2 = n_parameters(ResNetConfig(version="v2"), "batch", 20, CIFAR)
    assert v2 == small_by_hand(20) + 2 * (-16 + 64 - (32 - 16) - (64 - 32))
    large = shapes(ResNetConfig(version="v2"), "batch", 50, IMAGENET)
    assert large["norm/scale"] == (2048,)
    assert large["stages/0/0/shortcut/kernel"] == (1, 1, 64, 256)
    assert not any("shortcut/norm" in name for name in large)


def test_a_bias_where_no_norm_cancels_it():
    for version in ("v1", "v2"):
        config = ResNetConfig(version=version)
        for norm, has in (
            ("batch", False),
            ("none", True),
            ("layer", True),
            ("batch:ghost=4", False),
        ):
            names = shapes(config, norm, 8, CIFAR)
            assert has == any(name.endswith("conv/bias") for name in names)


def units(block, order):
    return [f"stages/{block}/layers/{i}/{layer}" for i in (0, 1) for layer in order]


def test_every_layer_in_its_order():
    blocks = ("0/0", "1/0", "2/0")
    v1 = [name for block in blocks for name in units(block, ("conv", "norm"))]
    v2 = [name for block in blocks for name in units(block, ("norm", "conv"))]
    assert sites(built(ResNetConfig(), "batch", 8, CIFAR), CIFAR) == [
        "stem/conv", "stem/norm", *v1, "head"
    ]  # fmt: skip
    v2_model = built(ResNetConfig(version="v2"), "layer", 8, CIFAR)
    assert sites(v2_model, CIFAR) == ["stem", *v2, "norm", "head"]


@pytest.mark.parametrize(
    ("config", "depth", "spec"),
    [
        (ResNetConfig(), 8, images(8, channels=1)),
        (ResNetConfig(), 8, images(28, channels=1)),
        (ResNetConfig(version="v2"), 8, images(9, 5)),
        (ResNetConfig(size="large", width=8), 18, images(32, channels=1)),
        (ResNetConfig(version="v2", width=8), 50, images(64)),
    ],
)
def test_output_shape(config, depth, spec):
    assert output_shape(built(config, "batch", depth, spec), spec) == (8, 4)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradient_reaches_every_parameter(version):
    model = built(ResNetConfig(version=version, width=4), "batch", 8, images(8))
    assert untouched(model, images(8)) == []


def test_the_shortcut_without_weights():
    x = jax.random.normal(KEY, (2, 5, 4, 3))
    y = PaddedShortcut(3, 6, 2)(x)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], 0)
    assert y.shape == (2, 3, 2, 6)


def block(version="v1", norm="batch", zero_init=True, strides=1, features=4, bottleneck=False):
    return ResidualBlock(
        4,
        features,
        strides=strides,
        config=ResNetConfig(version=version, zero_init=zero_init),
        norm=parse(norm),
        is_bottleneck=bottleneck,
        is_small=not bottleneck,
        key=KEY,
    )


@pytest.mark.parametrize("norm", ["batch", "none", "rms", "weight", "batch:affine=false"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_zero_init_makes_a_block_its_shortcut(version, norm):
    x = jnp.abs(jax.random.normal(KEY, (4, 3, 3, 4)))  # what a ReLU leaves
    np.testing.assert_array_equal(block(version, norm)(x), x)
    assert np.any(block(version, norm, zero_init=False)(x) != x)
    # One parameter holds the branch at 0, and the gradient moves it away.
    model = from_nnx(lambda rngs: block(version, norm))
    params, state = model.init(KEY)
    grads = jax.grad(lambda p: jnp.sum(model.apply(Variables(p, state), x)[0] * x))(params)
    last = jax.tree.leaves(grads["layers"][1])
    assert any(np.any(np.asarray(g)) for g in last)


@pytest.mark.slow
def test_blocks_against_their_definition():
    x = jax.random.normal(KEY, (4, 4, 4, 4))
    for strides, features, bottleneck in ((1, 4, False), (2, 8, False), (2, 8, True)):
        shape = {"strides": strides, "features": features, "bottleneck": bottleneck}
        v1 = block("v1", "layer", zero_init=False, **shape)
        y = x
        for i, unit in enumerate(v1.layers):
            y = unit.norm(unit.conv(nnx.relu(y) if i else y))
        shortcut = x if v1.shortcut is None else v1.shortcut(x)
        np.testing.assert_allclose(v1(x), nnx.relu(y + shortcut), rtol=1e-5, atol=1e-6)
        v2 = block("v2", "layer", zero_init=False, **shape)
        y = x
        for unit in v2.layers:
            y = unit.conv(nnx.relu(unit.norm(y)))
        # He et al. 2016b: where the shape changes, the shortcut too begins after the activation.
        first = nnx.relu(v2.layers[0].norm(x))
        shortcut = x if v2.shortcut is None else v2.shortcut(first)
        np.testing.assert_allclose(v2(x), y + shortcut, rtol=1e-5, atol=1e-6)


def test_variants_share_their_weights():
    def params(norm, depth, **config):
        return built(ResNetConfig(width=4, **config), norm, depth, images(8)).init(KEY).params

    plain = params("none", 8)
    assert check_shared_weights(plain, params("layer", 8)) == 8  # stem, 3 blocks of 2, head
    assert check_shared_weights(plain, params("none", 14)) == 8
    kernels = [a for name, a in flat(plain).items() if name.startswith("stages/0")]
    assert np.any(kernels[1] != kernels[3])


@pytest.mark.parametrize(
    ("config", "spec", "depth", "message"),
    [
        ({}, images(32), 50 + 1, "depth is 51: wanted 6n.2, such as 20, 56 or 110"),
        ({}, images(32), 18, "depth is 18: .* need size='large'"),
        ({}, images(224), 20, "depth is 20: wanted one of 18, 34, 50, 101, 152"),
        ({}, images(3), 20, "too small for 2 strides of 2: 3x3, wanted >= 4x4"),
        ({"size": "large"}, images(28), 18, "too small for 5 halvings: 28x28, wanted >= 32x32"),
        ({}, InputSpec((12,), 100, 2), 20, "'resnet' on tokens: wanted images"),
        ({}, InputSpec((32, 32), None, 2), 20, r"inputs of shape \(32, 32\): wanted images"),
        ({}, images(32, task="language_model"), 20, "wanted a language model such as"),
    ],
)
def test_data_that_do_not_fit(config, spec, depth, message):
    with pytest.raises(InputError, match=message):
        ResNetConfig(**config).build("none", depth, spec)


def test_bad_settings():
    for change, message in (
        ({"width": 0}, "width is 0"),
        ({"version": "v3"}, "unknown version 'v3'"),
        ({"size": "medium"}, "unknown size 'medium'"),
    ):
        with pytest.raises(InputError, match=message):
            ResNetConfig(**change)
