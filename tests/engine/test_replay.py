"""Replays: the recorded trajectory, looked at closely."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr
from test_run import experiment

import ici
from ici.cli import main
from ici.engine.checkpoint import FOLDER
from ici.engine.replay import Replay
from ici.report.replay import draw_replay

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run with checkpoints at every chunk, one of whose rates diverges on the way."""
    e = experiment(lr=(1e-3, 1e-2, 3e38), norm=("batch", "none"))
    out = tmp_path_factory.mktemp("recorded") / "out"
    return e, ici.run(e, out, checkpoint_every_s=0, keep_checkpoints=9)


def lane(results, node, **labels):
    return getattr(results, node).sel(**labels).squeeze(drop=True)


@pytest.mark.parametrize("first", [7, 20])
def test_the_trajectory_is_the_recorded_one_bit_for_bit(recorded, first):
    e, results = recorded
    labels = {"norm": "batch", "lr": 1e-2, "seed": 1}
    made = ici.replay(e, results.path, from_step=first, to_step=first + 12, **labels)
    assert made.n_deviating == 0 and made.deviation == 0 and "bit for bit" in made.describe()
    assert made.n_deviating_gradients == 0 and not made.elsewhere
    assert made.restored_step == first // 10 * 10
    again = made.results
    assert again.train["step"].values.tolist() == list(range(first, first + 12))
    steps = slice(first, first + 11)
    for name in ("loss", "grad_norm"):
        np.testing.assert_array_equal(
            lane(results, "train", **labels, step=steps)[name].values,
            lane(again, "train")[name].values,
        )
    # What was recorded seldom is the same where both have it.
    for node in ("probe", "reference", "evaluation"):
        seldom, often = lane(results, node, **labels), lane(again, node)
        shared = [s for s in seldom["step"].values if s in often["step"].values]
        assert shared or node != "evaluation"
        for name in seldom.data_vars:
            np.testing.assert_array_equal(
                seldom[name].sel(step=shared).values, often[name].sel(step=shared).values
            )


def test_measurements_of_every_step(recorded):
    e, results = recorded
    made = ici.replay(
        e, results.path, from_step=10, to_step=14, norm="none", lr=1e-3, seed=0,
        measure=("gradient_shift", "sharpness"),
    )  # fmt: skip
    measured = made.results.measurement("gradient_shift")
    assert measured["step"].values.tolist() == [10, 11, 12, 13]
    assert all(np.isfinite(v).all() for v in measured.data_vars.values())
    assert np.isfinite(made.results.reference["std"]).any("feature").all()
    assert made.n_deviating == 0
    assert set(results.probe) < set(made.results.probe)
    draw_replay(made.results)


def test_a_run_that_diverged_is_replayed_to_its_end(recorded):
    e, results = recorded
    labels = {"norm": "none", "lr": 3e38, "seed": 0}
    ended = float(results.runs["diverged_at"].sel(labels).squeeze())
    assert np.isfinite(ended)
    made = ici.replay(e, results.path, from_step=0, to_step=30, **labels)
    assert made.last == ended + 1 and made.n_deviating == 0
    with pytest.raises(ici.InputError, match=f"the run ended at step {int(ended) + 1}"):
        ici.replay(e, results.path, from_step=20, to_step=30, **labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "group"}, "no run has norm group: wanted one of batch, none"),
        ({"lr": 0.5}, "no run has lr 0.5"),
        ({"width": 3}, "runs have no width"),
        ({"to_step": 51}, "wanted 0 <= from < to <= 50"),
        ({"from_step": 9, "to_step": 9}, "wanted 0 <= from < to"),
        ({"measure": ("nonsense",)}, "unknown measurement"),
    ],
)
def test_what_cannot_be_replayed(recorded, changes, message):
    e, results = recorded
    asked = {"norm": "none", "lr": 1e-3, "seed": 0, "from_step": 1, "to_step": 5} | changes
    with pytest.raises(ici.InputError, match=message):
        ici.replay(e, results.path, **asked)


def test_what_is_not_said_is_asked(recorded):
    e, results = recorded
    with pytest.raises(ici.InputError, match="seed is not given: wanted one of 0, 1"):
        ici.replay(e, results.path, norm="none", lr=1e-3, from_step=1, to_step=5)
    with pytest.raises(ici.InputError, match="another experiment"):
        other = experiment(lr=(0.5,))
        ici.replay(other, results.path, norm="none", lr=0.5, seed=0, from_step=1, to_step=5)


FILE = """
import numpy as np
import ici
from ici.data import Arrays

rng = np.random.default_rng(0)
labels = rng.integers(0, 2, 96).astype(np.int32)
inputs = (rng.normal(size=(96, 6)) + 2 * labels[:, None]).astype(np.float32)
experiment = ici.Experiment(
    name="small",
    data=Arrays(train=(inputs[:64], labels[:64]), validation=(inputs[64:], labels[64:])),
    model=ici.MLPConfig(width=8), norm=("none",), depth=(2,), lr=(0.01,), seed=(0, 1),
    steps=30, batch_size=16, reference_size=32, reference_every=10, eval_every=10,
)
"""


def test_the_command_knows_the_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(FILE)
    assert main(["run", "small.py", "--lr", "0.02", "--out", "out", "--no-figures"]) == 0
    words = ["replay", "out", "--lr", "0.02", "--seed", "1", "--from", "3", "--to", "9"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "all 6 losses are the recorded ones, bit for bit" in out
    assert len(list(tmp_path.glob("out/replays/*/figures/replay.png"))) == 1
    assert main([*words[:2], "--seed", "7", "--from", "3", "--to", "9"]) == 2
    assert "no run has seed 7" in capsys.readouterr().err
    # A replay is no part of the record, and overwriting takes it along.
    assert main(["run", "small.py", "--out", "out", "--overwrite", "--no-figures"]) == 0
    assert not (tmp_path / "out" / "replays").exists()


def test_without_a_checkpoint_it_begins_at_the_beginning(tmp_path):
    import shutil

    e = experiment(norm=("none",), lr=(1e-2,), seed=(0,))
    out = tmp_path / "out"
    results = ici.run(e, out)
    shutil.rmtree(out / FOLDER)
    made = ici.replay(e, results.path, from_step=33, to_step=41)
    assert made.restored_step == 0 and made.n_deviating == 0


def test_what_is_off_is_told_with_its_reason():
    def told(*off, **why):
        return Replay(None, 10, 20, 5, *off, **why).describe()  # pyright: ignore[reportArgumentType]

    other = "recorded with cpu other"
    assert told(0.0, 0).endswith("all 10 losses are the recorded ones, bit for bit.")
    summed = told(1.2e-7, 3, 0, elsewhere=other)
    assert "the recorded trajectory, all 10 gradient norms bit for bit; 3 of 10" in summed
    assert "sums them in another order" in summed and other not in summed
    assert told(0.1, 3, 2).endswith(
        "2 gradient norms: the compiler made something else of this run alone."
    )
    assert told(0.1, 3, 2, elsewhere=other).endswith(f"2 gradient norms: {other}.")


def test_gradients_that_are_not_the_recorded_ones_are_counted(recorded, tmp_path):
    e, results = recorded
    out = tmp_path / "out"
    shutil.copytree(results.path, out)
    norms = zarr.open_array(out / "records/norm=batch,depth=2/train/grad_norm", mode="r+")
    norms[..., 12] *= 1 + 1e-6
    labels = {"norm": "batch", "lr": 1e-2, "seed": 1}
    made = ici.replay(e, out, from_step=10, to_step=14, **labels)
    assert (made.n_deviating, made.n_deviating_gradients) == (0, 1)
    assert "not bit for bit the recorded trajectory" in made.describe()
