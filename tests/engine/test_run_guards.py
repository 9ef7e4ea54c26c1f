"""What a run refuses, and what it must not record."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_run import experiment  # pyright: ignore[reportMissingImports]

import ici
from ici.store.lock import sole_writer


def one(**changes):
    return experiment(**({"norm": ("none",), "lr": (1e-2,), "seed": (0,), "steps": 20} | changes))


def test_a_run_that_met_its_target_does_not_diverge_afterwards(tmp_path):
    """It trains on, at an absurd rate, until it is repacked: none of that is its record."""
    wild = one(
        optimizer="sgd",
        lr=(1e6,),
        steps=40,
        target_accuracy=0.05,
        stop_at_target=True,
        eval_every=5,
    )
    results = ici.run(wild, tmp_path / "out")
    assert np.isnan(results.runs.diverged_at).all()


def test_two_statistics_with_one_label(tmp_path):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Fourth:
        value: jax.Array

        @classmethod
        def of(cls, x):
            return cls(jnp.mean(x.reshape(-1, x.shape[-1]) ** 4, axis=0))

        def merge(self, other):
            return other

        def labelled(self):
            return {"mean": self.value}

    for name in ("a_fourth", "z_fourth"):  # readings come back in alphabetical order
        ici.register_statistic(name, Fourth)
        with pytest.raises(ici.InputError, match="labelled 'mean': wanted other names"):
            ici.run(one(probe=ici.Probe(stats=("moments", name), every=5)), tmp_path / name)
        assert not (tmp_path / name).exists()


@dataclasses.dataclass(frozen=True)
class WithDropout:
    """A model family of a user's own."""

    def build(self, norm, depth, spec):
        class Net(nnx.Module):
            def __init__(self, rngs):
                self.first = nnx.Linear(spec.n_features, 8, rngs=rngs)
                self.dropout = nnx.Dropout(0.5, rngs=rngs)
                self.head = nnx.Linear(8, spec.n_classes, rngs=rngs)

            def __call__(self, x):
                return self.head(self.dropout(nnx.relu(self.first(x))))

        return lambda rngs: Net(rngs)


def test_an_unchanged_network_with_dropout_has_no_shift(tmp_path):
    still = one(model=WithDropout(), lr=(1e-30,), optimizer="sgd", steps=40)
    reference = ici.run(still, tmp_path / "out").reference
    first = reference["mean"].isel(step=0)
    assert reference.sizes["step"] == 3
    np.testing.assert_array_equal(reference["mean"] - first, xr_zeros(reference["mean"] - first))


def xr_zeros(values):
    return values.where(values.isnull(), 0.0)


def test_one_writer_at_a_time(tmp_path):
    folder = tmp_path / "out"
    with (
        sole_writer(folder),
        pytest.raises(ici.InputError, match=r"is being written by another run \(process \d+\)"),
    ):
        ici.run(one(), folder)
    assert not (folder / "manifest.json").exists()
    assert ici.run(one(), folder).complete  # the lock's own file is in nobody's way


def test_a_probe_without_moments(tmp_path):
    with pytest.raises(ici.InputError, match="the record's shifts want 'moments' too"):
        ici.run(one(probe=ici.Probe(stats=("extremes",), every=5)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@dataclasses.dataclass(frozen=True)
class Broken(WithDropout):
    def build(self, norm, depth, spec):
        return lambda rngs: nnx.Linear(spec.n_features + 1, 2, rngs=rngs)


def test_a_users_model_that_cannot_take_the_data(tmp_path):
    with pytest.raises(ici.InputError, match=r"Broken with norm 'none' and depth 2 cannot take"):
        ici.run(one(model=Broken()), tmp_path / "out")
    assert not (tmp_path / "out").exists()
