"""Experiments are validated at birth and described without loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import ici
from ici.config import differences
from ici.data import Synthetic
from ici.description import plain
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
        ({"name": ".."}, "name is '..'"),
        ({"name": "."}, "name is '.'"),
        ({"name": ""}, "name is ''"),
        ({"name": 3}, "name is 3: wanted a text"),
        ({"warmup_steps": 601}, "warmup_steps is 601 and steps is 600"),
        ({"steps": 1.5}, "steps is 1.5: wanted an integer"),
        ({"steps": "10"}, "steps is '10': wanted an integer"),
        ({"steps": None}, "steps is None: wanted an integer"),
        ({"batch_size": 64.0}, "batch_size is 64.0: wanted an integer"),
        ({"devices": 1.5}, "devices is 1.5: wanted an integer"),
        ({"depth": (True,)}, "depth is True: wanted an integer"),
        ({"seed": ("0",)}, "seed is '0': wanted an integer"),
        ({"lr": "1e-3"}, "lr is '1e-3': wanted a number"),
        ({"weight_decay": "0.1"}, "weight_decay is '0.1': wanted a number"),
        ({"target_accuracy": "x"}, "target_accuracy is 'x': wanted a number"),
        ({"stop_at_target": 1}, "stop_at_target is 1: wanted True or False"),
        ({"norm": None}, "norm is None: wanted a text"),
        ({"norm": (1,)}, "norm is 1: wanted a text"),
        ({"measure": None}, "measure is None: wanted a text"),
        ({"optimizer": None}, "optimizer is None: wanted a text"),
        ({"probe": None}, "probe is None: wanted a probe"),
        ({"probe": ici.Probe}, "probe is <class .*: wanted a probe"),
        ({"model": ici.MLPConfig}, "model is <class .*: wanted a family's name"),
        ({"model": {}}, "model is {}: wanted a family's name"),
        ({"data": Synthetic}, "data is <class .*: wanted a data set's name"),
        ({"data": {}}, "data is {}: wanted a data set's name"),
        ({"data": np.zeros((30, 30))}, r"data is \[\[0.0.*\.\.\.: wanted a data set's name"),
    ],
)
def test_what_cannot_be_is_told_at_birth(change, message):
    with pytest.raises(ici.InputError, match=message) as caught:
        experiment(**change)
    assert "\n" not in str(caught.value)


def test_numpy_numbers_are_pythons():
    e = experiment(
        depth=np.arange(1, 3), lr=np.float32(0.5), seed=np.array(4), steps=np.int64(20),
        target_accuracy=np.float64(0.5), stop_at_target=np.bool_(True), eval_every=np.int32(10),
    )  # fmt: skip
    assert (e.depth, e.lr, e.seed, e.steps) == ((1, 2), (0.5,), (4,), 20)
    assert json.loads(json.dumps(e.describe())) == e.describe()
    usual = experiment(
        depth=(1, 2), lr=0.5, seed=4, steps=20, target_accuracy=0.5, stop_at_target=True,
        eval_every=10,
    )  # fmt: skip
    assert e.fingerprint == usual.fingerprint


def test_whole_numbers_are_the_same_rates_as_floats():
    whole = experiment(lr=(1,), weight_decay=0, divergence_ratio=1000, target_accuracy=1)
    floats = experiment(lr=1.0, weight_decay=0.0, divergence_ratio=1e3, target_accuracy=1.0)
    assert whole.fingerprint == floats.fingerprint and whole == floats
    assert type(whole.lr[0]) is float  # pyright: ignore[reportOptionalSubscript]


FUNCTIONS = """
import functools, jax

KEEP = {KEEP!r}

def beside(site):
    return site.name in KEEP

def calls(site):
    return (lambda s: beside(s))(site)

def recursive(site):
    return recursive(site)

def enclosing(threshold):
    return lambda site: len(site.name) > threshold

class Named:
    def __init__(self, name):
        self.name = name
    def __call__(self, site):
        return site.name == self.name
    def ends(self, site):
        return site.name.endswith(self.name)

functions = dict(
    a=lambda site: site.name == "a",
    b=lambda site: site.name == "b",
    attribute=lambda site: site.module == "a",
    negated=lambda site: site.name != "a",
    default=lambda site, name="a": site.name == name,
    other_default=lambda site, name="b": site.name == name,
    keyword=lambda site, *, name="b": site.name == name,
    in_set=lambda site: site.name in {{"q", "w", "e", "r", "t", "y"}},
    nested=lambda site: [k for k in site.name if k == "a"],
    other_nested=lambda site: [k for k in site.name if k == "b"],
    near=enclosing(3),
    far=enclosing(4),
    beside=beside,
    calls=calls,
    recursive=recursive,
    partial=functools.partial(enclosing, 3),
    other_partial=functools.partial(enclosing, 4),
    jitted=jax.jit(lambda site: site + 1),
    other_jitted=jax.jit(lambda site: site + 2),
    object=Named("a"),
    other_object=Named("b"),
    method=Named("a").ends,
    other_method=Named("b").ends,
)
"""


def described(keep=("q", "w")):
    space: dict[str, Any] = {"__name__": "users_own"}
    exec(FUNCTIONS.format(KEEP=set(keep)), space)
    return {k: plain(f) for k, f in space["functions"].items()}


def test_functions_that_differ_are_told_apart_and_the_same_source_is_the_same():
    first = described()
    assert len(set(first.values())) == len(first)
    assert described() == first
    assert not any("0x" in text for text in first.values())
    changed = described(keep=("q",))
    assert {name for name in first if changed[name] != first[name]} == {"beside", "calls"}


def test_description_of_functions_is_the_same_in_another_process():
    code = "import json, test_config; print(json.dumps(test_config.described()))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == described()


def test_another_predicate_is_another_experiment():
    def with_probe(**settings):
        return experiment(probe=ici.Probe(**settings)).fingerprint

    assert with_probe(select=lambda s: s.name == "a") != with_probe(select=lambda s: s.name == "b")
    assert with_probe(mask=lambda x: x != 0) != with_probe(mask=lambda x: x != 1)
    assert with_probe(select=nnx.Linear) == with_probe(select=nnx.Linear)
    described = experiment(probe=ici.Probe(select=nnx.Linear)).describe()
    assert described["probe"]["select"].endswith("Linear")  # types go by name


def test_a_users_own_model_needs_only_a_build_method(tmp_path):
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
