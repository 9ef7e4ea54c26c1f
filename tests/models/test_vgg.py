"""VGG: parameters counted by hand, order of the layers, images and depths that do not fit."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from families import (
    KEY,
    built,
    check_shared_weights,
    images,
    n_parameters,
    shapes,
    sites,
    untouched,
)

from ici.errors import InputError
from ici.models import InputSpec, VGGConfig
from ici.models.vgg import Classifier3

# Simonyan & Zisserman 2015, table 1: channels of each convolution.
COLUMNS = {
    11: (64, 128, 256, 256, 512, 512, 512, 512),
    13: (64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    16: (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    19: (64, 64, 128, 128, *[256] * 4, *[512] * 8),
}
IMAGENET = images(224, n_classes=1000)
SMALL = VGGConfig(width=4)


def by_hand(depth):
    count, inputs = 0, 3
    for channels in COLUMNS[depth]:
        count += 9 * inputs * channels + channels
        inputs = channels
    # 224 pixels halved five times are 7.
    return count + (7 * 7 * 512 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000


@pytest.mark.parametrize(
    # The paper's table 2: 133, 133, 138 and 144 million.
    ("depth", "count"),
    [(11, 132_863_336), (13, 133_047_848), (16, 138_357_544), (19, 143_667_240)],
)
def test_parameter_counts_are_the_papers(depth, count):
    assert n_parameters(VGGConfig(), "none", depth, IMAGENET) == count == by_hand(depth)
    # With batch norm, a scale per channel more; its bias takes the place of the convolution's.
    normed = n_parameters(VGGConfig(), "batch", depth, IMAGENET)
    assert normed == count + sum(COLUMNS[depth])


def test_width_is_a_dial_and_small_images_get_a_linear_classifier():
    small = shapes(VGGConfig(width=8), "none", 11, images(32, n_classes=10))
    assert [s[-1] for n, s in small.items() if n.endswith("conv/kernel")] == [
        8, 16, 32, 32, 64, 64, 64, 64
    ]  # fmt: skip
    assert small["classifier/kernel"] == (64, 10)
    paper = shapes(VGGConfig(width=8, classifier="paper", hidden_width=16), "none", 11, images(64))
    assert paper["classifier/hidden/0/kernel"] == (4 * 64, 16)
    assert shapes(VGGConfig(), "none", 11, IMAGENET)["classifier/head/kernel"] == (4096, 1000)


def test_every_layer_in_its_order():
    order = [
        f"stages/{i}/{j}/{layer}"
        for i, n in enumerate((1, 1, 2, 2, 2))
        for j in range(n)
        for layer in ("conv", "norm")
    ]
    model = built(SMALL, "batch", 11, images(32, channels=1))
    assert sites(model, images(32, channels=1)) == [*order, "classifier"]


@pytest.mark.slow
def test_gradient_reaches_every_parameter():
    model = built(SMALL, "batch", 11, images(32, channels=1))
    assert untouched(model, images(32, channels=1)) == []


def test_dropout_in_training_only():
    classifier = Classifier3(5, VGGConfig(hidden_width=64), images(n_classes=4), key=KEY)
    x = jax.random.normal(KEY, (8, 5))
    assert classifier(x).shape == (8, 4)
    assert np.any(classifier(x) != classifier(x))
    classifier.eval()
    np.testing.assert_array_equal(classifier(x), classifier(x))


def test_variants_share_their_weights():
    def params(norm, depth):
        return built(SMALL, norm, depth, images(32)).init(KEY).params

    eleven = params("none", 11)
    assert check_shared_weights(eleven, params("layer", 11)) == 9
    # Each stage of VGG-13 begins with the convolutions of VGG-11.
    assert check_shared_weights(eleven, params("none", 13)) == 9


@pytest.mark.parametrize(
    ("spec", "depth", "message"),
    [
        (images(8), 11, "image too small for 5 poolings: 8x8, wanted >= 32x32"),
        (images(28, channels=1), 11, "too small for 5 poolings: 28x28, wanted >= 32x32"),
        (images(32), 12, "depth is 12: wanted one of 11, 13, 16, 19"),
        (InputSpec((12,), 100, 2), 11, "'vgg' on tokens: wanted images"),
        (InputSpec((12,), None, 2), 11, r"'vgg' on inputs of shape \(12,\): wanted images"),
        (images(32, task="language_model"), 11, "wanted a language model such as 'transformer'"),
    ],
)
def test_data_that_do_not_fit(spec, depth, message):
    with pytest.raises(InputError, match=message):
        VGGConfig().build("none", depth, spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"hidden_width": 1.5}, "hidden_width is 1.5"),
        ({"classifier": "papre"}, "unknown classifier 'papre'.*paper"),
        ({"placement": "x"}, "unknown placement"),
        ({"dropout": 1.0}, "dropout is 1.0: wanted 0 <= dropout < 1"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=message):
        VGGConfig(**change)
