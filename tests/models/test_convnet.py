"""Plain convnets: parameters counted by hand, order, and learning."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from families import (
    KEY,
    batch,
    built,
    check_shared_weights,
    images,
    n_parameters,
    output_shape,
    shapes,
    sites,
    untouched,
)

from ici.adapt import Variables
from ici.engine.step import cross_entropy, gradients
from ici.errors import InputError
from ici.models import ConvNetConfig, InputSpec, resolve
from ici.models.convnet import ConvBlock

TINY = ConvNetConfig(width=4, stages=2)


def by_hand(width, stages, depth, channels, n_classes, normed):
    """Kernels, and per channel a bias, or the scale and bias of a batch norm."""
    per_channel = 2 if normed else 1
    count, inputs = (9 * channels + per_channel) * width, width
    for i in range(depth):
        # Convolution i is in the stage whose share of the depth reaches it.
        shares = np.cumsum([len(part) for part in np.array_split(np.arange(depth), stages)])
        outputs = width * 2 ** int(np.searchsorted(shares, i, side="right"))
        count += (9 * inputs + per_channel) * outputs
        inputs = outputs
    return count + inputs * n_classes + n_classes


@pytest.mark.parametrize(("width", "stages", "depth"), [(16, 3, 18), (8, 3, 7), (4, 1, 5)])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_parameter_counts(width, stages, depth, norm):
    config, spec = ConvNetConfig(width=width, stages=stages), images(32, n_classes=10)
    expected = by_hand(width, stages, depth, 3, 10, norm == "batch")
    assert n_parameters(config, norm, depth, spec) == expected


def test_the_plain_network_of_the_paper_has_the_residual_networks_weights():
    # He et al. 2016a: option A adds none, so plain-20 and ResNet-20 have as many.
    assert n_parameters(ConvNetConfig(), "batch", 18, images(32, n_classes=10)) == 269_722


def test_every_layer_in_its_order():
    order = [
        f"{block}/{layer}"
        for block in ("stem", "stages/0/0", "stages/0/1", "stages/1/0")
        for layer in ("conv", "norm")
    ]
    model = built(TINY, "group:groups=2", 3, images(8))
    assert sites(model, images(8)) == [*order, "head"]


@pytest.mark.parametrize("spec", [images(8, channels=1), images(28, channels=1), images(5, 9)])
@pytest.mark.parametrize("placement", ["post", "pre", "after"])
def test_output_shape(spec, placement):
    config = ConvNetConfig(width=4, placement=placement)
    assert output_shape(built(config, "layer", 3, spec), spec) == (8, 4)


def test_order_inside_a_block():
    from flax import nnx

    from ici.models.norms import parse

    x = jax.random.normal(KEY, (4, 4, 4, 2))
    for placement in ("post", "pre", "after"):
        block = ConvBlock(
            2, 3, norm=parse("layer"), activation="relu", placement=placement, key=KEY
        )
        conv, norm, relu = block.conv, block.norm, nnx.relu
        expected = {
            "post": lambda: relu(norm(conv(x))),
            "pre": lambda: relu(conv(norm(x))),
            "after": lambda: norm(relu(conv(x))),
        }
        np.testing.assert_array_equal(block(x), expected[placement]())


def test_he_init_and_bias():
    kernel = built(ConvNetConfig(width=64), "none", 3, images(8)).init(KEY).params
    kernel = np.asarray(kernel["stages"][0][0]["conv"]["kernel"])
    # 36,864 draws: the standard error of a standard deviation is 0.4 %.
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.03)
    for norm, placement, has in (
        ("batch", "post", False),
        ("instance", "post", False),
        ("batch", "after", True),
        ("layer", "post", True),
        ("weight", "post", True),
    ):
        config = ConvNetConfig(placement=placement)
        assert ("stem/conv/bias" in shapes(config, norm, 3, images(8))) == has


@pytest.mark.slow
def test_variants_share_their_weights():
    plain = built(TINY, "none", 4, images(8)).init(KEY).params
    normed = built(TINY, "weight", 4, images(8)).init(KEY).params
    assert check_shared_weights(plain, normed) == 6
    # Each stage is longer by one at its end.
    deeper = built(TINY, "none", 6, images(8)).init(KEY).params
    assert check_shared_weights(plain, deeper) == 6
    kernels = [plain["stages"][0][i]["conv"]["kernel"] for i in (0, 1)]
    assert np.any(np.asarray(kernels[0]) != np.asarray(kernels[1]))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch_noisy", "weight"])
def test_it_learns_and_every_parameter_is_reached(norm):
    spec = images(8)
    model, data = built(TINY, norm, 3, spec), batch(spec, 16)
    assert untouched(model, spec) == []
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(variables, opt_state):
        def step(carry, _):
            (params, state), opt_state = carry
            result = gradients(model, cross_entropy, Variables(params, state), data)
            updates, opt_state = optimizer.update(result.grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (Variables(params, result.state), opt_state), result.loss

        return jax.lax.scan(step, (variables, opt_state), length=40)[1]

    variables = model.init(KEY)
    losses = train(variables, optimizer.init(variables.params))
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("spec", "depth", "message"),
    [
        (images(3), 3, "too small for 2 strides of 2: 3x3, wanted >= 4x4"),
        (images(8), 2, "depth is 2: wanted an integer >= 3, one convolution per stage"),
        (InputSpec((12,), 100, 2), 3, "'convnet' on tokens: wanted images"),
        (images(8, task="language_model"), 3, "wanted a language model such as 'transformer'"),
    ],
)
def test_data_that_do_not_fit(spec, depth, message):
    with pytest.raises(InputError, match=message):
        ConvNetConfig().build("none", depth, spec)


def test_bad_settings():
    for change, message in (
        ({"width": 0}, "width is 0"),
        ({"stages": 0}, "stages is 0"),
        ({"activation": "rleu"}, "unknown activation 'rleu'"),
        ({"placement": "middle"}, "unknown placement 'middle'.*post"),
    ):
        with pytest.raises(InputError, match=message):
            ConvNetConfig(**change)
    with pytest.raises(InputError, match="unknown norm"):
        ConvNetConfig().build("nope", 3, images(8))
    assert {type(resolve(n)).__name__ for n in ("convnet", "vgg", "resnet")} == {
        "ConvNetConfig", "VGGConfig", "ResNetConfig"
    }  # fmt: skip
