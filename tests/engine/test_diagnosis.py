"""Why a run diverged: the step, the cause, and what was not finite first."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_run import arrays, experiment
from test_streaming import FromFile

import ici
from ici.analysis.digest import digest
from ici.analysis.divergences import divergences
from ici.data import DataConfig, batch_indices
from ici.engine import diagnosis
from ici.engine.diagnosis import Inquest
from ici.probe import Site
from ici.store.diagnoses import Diagnosis
from ici.store.results import open_results

pytestmark = pytest.mark.slow

# The second is a step of the first epoch, which has 6.
NORM, STEP, EARLY = "norm=none,depth=3", 7, 4
# What happens behind which layer in that step of a run, and what is to be said of it.
TRAPS = {
    ("nothing", 0): None,
    ("inf", 1): ("loss not finite", "input", "layers/2"),
    ("inf", 2): ("loss not finite", "input", "head"),
    ("inf", 3): ("loss not finite", "output", "the model"),
    # Layers 0 and 1 have such gradients too: the last is the first on the way back.
    ("root", 1): ("gradient not finite", "gradient", "layers/1/bias"),
    ("steep", 2): ("gradient not finite", "norm", "the gradient"),
}


def sprung(what, x, now):
    if what == "root":  # of 0, where it has no derivative
        return x + jnp.sqrt(jnp.where(now, jnp.abs(x) * 0.0, 1.0)) - 1.0
    if what == "steep":  # the square of this gradient is more than float32 holds
        return x + jnp.where(now, 1e25, 0.0) * (x - jax.lax.stop_gradient(x))
    return x + jnp.where(now, jnp.inf if what == "inf" else 0.0, 0.0)


class Trapped(nnx.Module):
    """Three layers and a head, and one of the traps: the seed says which."""

    def __init__(self, n_in, n_out, rngs):
        self.trap = nnx.Variable(jax.random.randint(rngs.params(), (), 0, len(TRAPS)))
        self.n_calls = nnx.Variable(jnp.int32(0))
        widths = [n_in, 8, 8, 8]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])
        self.head = nnx.Linear(8, n_out, rngs=rngs)

    def __call__(self, x):
        for i, layer in enumerate([*self.layers, self.head]):
            x = layer(x)
            for k, (what, at) in enumerate(TRAPS):
                if at == i:
                    x = sprung(what, x, (self.n_calls[...] == STEP) & (self.trap[...] == k))
        self.n_calls[...] += 1
        return x


@dataclass(frozen=True)
class TrappedConfig:
    def build(self, norm, depth, spec):
        return lambda rngs: Trapped(spec.n_features, spec.n_classes, rngs)


def seeds():
    """A seed for each of the traps, in their order."""
    keys = jax.vmap(jax.random.key)(jnp.arange(60))
    traps = jax.jit(jax.vmap(lambda key: Trapped(6, 2, nnx.Rngs(key)).trap[...]))(keys).tolist()
    return tuple(traps.index(k) for k in range(len(TRAPS)))


def small(**changes):
    settings = {"norm": ("none",), "depth": (3,), "lr": (1e-3,), "seed": (0,), "devices": 1}
    return experiment(**(settings | {"steps": 20, "eval_every": 20} | changes))


def trapped():
    return small(model=TrappedConfig(), seed=seeds(), steps=40, eval_every=10, devices=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return ici.run(trapped(), tmp_path_factory.mktemp("trapped") / "out")


def diagnoses(results, group=NORM):
    return [Diagnosis(**each) for each in results.manifest.groups[group].diagnoses]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: f"{trap[0]} behind layer {trap[1]}")
def test_the_first_tensor_that_is_not_finite_is_named(results, trap):
    lane = list(TRAPS).index(trap)
    found = [each for each in diagnoses(results) if each.lane == lane]
    row = results.to_dataframe().iloc[lane]
    if TRAPS[trap] is None:
        assert not found and np.isnan(row["diverged_at"]) and row["first_nonfinite"] == ""
        return
    cause, tensor, at = TRAPS[trap]
    assert found == [Diagnosis(lane, STEP, cause, tensor, at)]
    assert row["diverged_at"] == STEP and row["cause"] == cause
    assert row["first_nonfinite"] == f"the {tensor} of {at}"


def test_the_report_says_it_once_for_all_that_ended_alike(results):
    question, *said = divergences(digest(results))
    assert question == "How did the runs end that diverged?" and len(said) == 5
    assert (
        "none, lr 0.001: 1 of 6 runs: gradient not finite, first non-finite: the gradient of "
        "layers/1/bias, at step 7." in said
    )


def test_it_changes_nothing_of_the_runs(results, tmp_path, monkeypatch):
    monkeypatch.setattr(Inquest, "see", lambda *args, **kwargs: None)
    without = ici.run(trapped(), tmp_path / "out")
    assert not diagnoses(without)
    ours, theirs = (r.manifest.groups[NORM] for r in (results, without))
    assert ours.state_digest == theirs.state_digest
    for node in ("train", "probe", "reference", "evaluation"):
        assert getattr(results, node).identical(getattr(without, node)), node


def test_a_run_that_goes_on_keeps_what_was_found_before_its_checkpoint(results, tmp_path):
    out = tmp_path / "out"

    def stop(progress):
        if progress.step == 20:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ici.run(trapped(), out, on_progress=stop, checkpoint_every_s=0)
    before = open_results(out)
    assert not before.complete and diagnoses(before) == diagnoses(results)
    # As if it had been killed between the record of a step and its checkpoint.
    entry = before.manifest.groups[NORM]
    later = Diagnosis(0, 39, "loss not finite", "loss", "the batch")
    entry.diagnoses.append(later.__dict__)
    entry.write(out, NORM)
    again = ici.run(trapped(), out)
    assert again.complete and diagnoses(again) == diagnoses(results)
    assert again.runs.identical(results.runs)


def test_a_run_that_begins_again_says_it_once(results, tmp_path, monkeypatch):
    # As in a place that holds no checkpoints.
    monkeypatch.setattr("ici.engine.training.has_checkpoints", lambda folder: False)
    out = tmp_path / "out"

    def stop(progress):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ici.run(trapped(), out, on_progress=stop)
    assert diagnoses(open_results(out)) == diagnoses(results)
    again = ici.run(trapped(), out)
    assert diagnoses(again) == diagnoses(results)
    onsets = [entry.manifest.groups[NORM].onsets for entry in (again, results)]
    assert [each[:3] for each in onsets[0]] == [each[:3] for each in onsets[1]]


class Poisoned(FromFile):
    """A file with one example that is no number, which that early step is the first to read."""

    def __init__(self, split, of_labels):
        super().__init__(split)
        self.bad = batch_indices(96, 16, 0, EARLY, 1)[0, 3]
        self.of_labels = of_labels

    def take(self, indices):
        parts = [np.array(part) for part in super().take(indices)]
        parts[self.of_labels][np.asarray(indices) == self.bad] = np.nan
        return tuple(parts)


@dataclass(frozen=True)
class PoisonedConfig(DataConfig):
    of_labels: bool

    def load(self):
        inputs, labels = arrays().train
        pairs = [(inputs, labels.astype(np.float32)), (inputs[:8], labels[:8].astype(np.float32))]
        whole = ici.data.Arrays(*pairs).load()
        return replace(whole, train=Poisoned(whole.train, self.of_labels))

    def fingerprint(self):
        return {"data": "poisoned", "of_labels": self.of_labels}


@pytest.mark.parametrize("of_labels", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_the_data_hold_is_named(tmp_path, of_labels):
    config = small(data=PoisonedConfig(of_labels), reference_size=1, accumulation_steps=2)
    results = ici.run(config, tmp_path / "out")
    (found,) = diagnoses(results)
    named = "targets" if of_labels else "inputs"
    assert found == Diagnosis(0, EARLY, "loss not finite", named, "the batch")
    assert found.describe() == f"the {named} of the batch"


def test_a_loss_ratio_names_no_tensor_and_repeats_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Inquest, "_searched", lambda *_: pytest.fail("repeated"))
    results = ici.run(small(optimizer="sgd", lr=(1e6,)), tmp_path / "out")
    (found,) = diagnoses(results)
    assert found == Diagnosis(0, int(results.runs.diverged_at.item()), "loss ratio")
    assert found.describe() == "" and results.to_dataframe()["cause"].tolist() == ["loss ratio"]
    (_, said) = divergences(digest(results))
    assert (
        said == f"none, lr 1e+06: 1 of 1 runs: loss above 1000 × the first, at step {found.step}."
    )


def test_weights_that_were_not_finite_before_are_named(tmp_path):
    config = small(optimizer="sgd", lr=(1e30,), weight_decay=(1e38,))
    (found,) = diagnoses(ici.run(config, tmp_path / "out"))
    assert (found.step, found.tensor, found.at) == (1, "input", "blocks/0/norm")
    assert found.before == "blocks/0/linear/kernel"
    said = "the input of blocks/0/norm (blocks/0/linear/kernel was not finite before)"
    assert found.describe() == said


def test_what_goes_wrong_is_a_warning_and_ends_the_asking(results, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("not even one more")

    monkeypatch.setattr(Inquest, "_look", fail)
    with pytest.warns(RuntimeWarning, match=r"norm none and depth 3 .*not even one more") as told:
        again = ici.run(trapped(), tmp_path / "out")
    assert len(told) == 1 and again.complete and not diagnoses(again)
    assert again.train.identical(results.train)
    assert set(again.to_dataframe()["first_nonfinite"]) == {""}


@pytest.mark.parametrize(
    "limit", [{"MAX_LANES": 2}, pytest.param({"MAX_S": 0.0}, marks=pytest.mark.slow)]
)
def test_only_so_many_are_asked(results, tmp_path, monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(diagnosis, name, value)
    few = ici.run(trapped(), tmp_path / "out")
    # The first one may take its time: it compiles.
    assert diagnoses(few) == diagnoses(results)[:2]


def test_rows_of_stacked_layers_have_their_numbers():
    order = [Site(f"blocks/{i}/linear#0", object, True, ("blocks", "linear"), i) for i in range(3)]
    order += [Site("head", object, True, ("head",))]
    flags = {
        "blocks": {"linear": {"kernel": np.array([True, False, True])}},
        "head": {"bias": np.array(False), "kernel": np.array([False, True])},
        "loose": np.array([True]),
    }
    forward = ["blocks/0/linear/kernel", "blocks/2/linear/kernel", "head/kernel", "loose"]
    assert list(diagnosis._broken(flags, order)) == forward
    backward = [forward[2], forward[1], forward[0], forward[3]]
    assert list(diagnosis._broken(flags, order[::-1])) == backward


def test_an_entry_of_before_is_read(results, tmp_path):
    entry = tmp_path / "records" / f"{NORM}.json"
    entry.parent.mkdir()
    content = json.loads((results.path / "records" / entry.name).read_text())
    del content["diagnoses"]
    entry.write_text(json.dumps(content))
    (tmp_path / "manifest.json").write_text((results.path / "manifest.json").read_text())
    assert not diagnoses(open_results(tmp_path))
