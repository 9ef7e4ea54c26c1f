"""Experiments are validated at birth and described without loss."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

import ici
from ici.config import differences
from ici.data import Synthetic
from ici.optimizers import default_learning_rates, optimizer_names


def experiment(**changes):
    return ici.Experiment(**({"data": Synthetic(), "name": "x"} | changes))


def test_grid_is_the_product_in_storage_order():
    e = experiment(norm=("none", "rms"), depth=(2, 4), lr=(0.1, 0.2), seed=(5, 6))
    assert [(g.norm, g.depth) for g in e.groups] == [
        ("none", 2),
        ("rms", 2),
        ("none", 4),
        ("rms", 4),
    ]
    assert [(lane.lr, lane.seed) for lane in e.lanes] == [(0.1, 5), (0.1, 6), (0.2, 5), (0.2, 6)]
    assert [g.name for g in e.groups][:2] == ["norm=none,depth=2", "norm=rms,depth=2"]


def test_single_values_are_grids_of_one():
    e = experiment(norm="batch", depth=3, lr=0.1, seed=4)
    assert (e.norm, e.depth, e.learning_rates, e.seed) == (("batch",), (3,), (0.1,), (4,))


@pytest.mark.parametrize("optimizer", optimizer_names())
def test_no_learning_rate_means_the_optimizers_grid_of_eight(optimizer):
    rates = experiment(optimizer=optimizer).learning_rates
    assert rates == default_learning_rates(optimizer) and len(rates) == 8
    # half decades: each about √10 times the one before
    assert all(2.9 < b / a < 3.4 for a, b in zip(rates, rates[1:], strict=False))


def test_names_become_configs():
    e = experiment(data="digits", model="mlp")
    assert type(e.data).__name__ == "Digits" and e.model == ici.MLPConfig()


def test_description_is_json_and_decides_identity():
    e = experiment(lr=(0.1,), probe=ici.Probe(select="blocks/*", every=5), reference_every=5)
    assert json.loads(json.dumps(e.describe())) == e.describe()
    assert e.fingerprint == replace(e).fingerprint
    for change in ({"lr": (0.2,)}, {"steps": 7}, {"model": ici.MLPConfig(width=3)}, {"seed": (9,)}):
        assert replace(e, **change).fingerprint != e.fingerprint
    # where it runs does not make it another experiment
    assert replace(e, devices=1, lane_width=2).fingerprint == e.fingerprint
    # a grid spelt out is the default grid
    spelt = experiment(lr=default_learning_rates("adam"))
    assert spelt.fingerprint == experiment().fingerprint


def test_differences_name_nested_fields():
    a, b = experiment(lr=(0.1,)), experiment(lr=(0.2,), model=ici.MLPConfig(width=3))
    assert differences(a.describe(), b.describe()) == [
        "lr: [0.1] -> [0.2]",
        "model.width: 128 -> 3",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": (0,)}, "depth is 0"),
        ({"depth": (2.5,)}, "depth is 2.5"),
        ({"lr": (float("nan"),)}, "lr is nan"),
        ({"lr": (-0.1,)}, "lr is -0.1"),
        ({"lr": ()}, "lr is empty"),
        ({"norm": ()}, "norm is empty"),
        ({"norm": ("batch", "batch")}, "every value once"),
        ({"seed": (-1,)}, "seed is -1"),
        ({"weight_decay": (-1.0,)}, "weight_decay is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -2}, "batch_size is -2"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"eval_every": 25}, "eval_every is 25 and probe.every is 10"),
        ({"target_accuracy": 70.0}, "target_accuracy is 70.0"),
        ({"stop_at_target": True}, "without a target"),
        ({"divergence_ratio": 0.5}, "divergence_ratio is 0.5"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"devices": 0}, "devices is 0"),
    ],
)
def test_what_cannot_be_is_told_at_birth(change, message):
    with pytest.raises(ici.InputError, match=message) as caught:
        experiment(**change)
    assert "\n" not in str(caught.value)


def test_a_users_own_model_needs_only_a_build_method(tmp_path):
    from flax import nnx

    class Line(nnx.Module):
        def __init__(self, features, classes, rngs):
            self.only = nnx.Linear(features, classes, rngs=rngs)

        def __call__(self, x):
            return self.only(x)

    @dataclass(frozen=True)
    class LineConfig:
        scale: float = 1.0

        def build(self, norm, depth, spec):
            return lambda rngs: Line(spec.n_features, spec.n_classes, rngs)

    e = experiment(
        model=LineConfig(), norm="none", depth=1, lr=(0.1,), seed=(0,), steps=10, batch_size=8,
        eval_every=10, reference_every=10,
    )  # fmt: skip
    results = ici.run(e, tmp_path / "out")
    assert results.probe.site.values.tolist() == ["only"]
    assert results.experiment["model"] == {"scale": 1.0}
