"""The sentences on spikes and gradients, computed again from the arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr
from fake_records import FakeRecords, diverge
from told import RULE, learned, one, said

from ici.analysis.answers import answers
from ici.analysis.digest import digest
from ici.analysis.gradients import GRADIENT_NORM
from ici.measure.spikes import PRESETS, spike_rule

# Where do losses spike?


def spiky() -> FakeRecords:
    records = learned(steps=200, probe_every=5, reference_every=50, eval_every=50)
    loss, mean = records.train["loss"], records.probe["mean"]
    rng = np.random.default_rng(0)
    loss[:] = np.linspace(1.0, 0.5, 200) + rng.uniform(-0.01, 0.01, loss.shape)
    mean[:] = np.cumsum(rng.uniform(0.09, 0.11, mean.shape[:-1]), axis=-2)[..., None]
    for norm, lr, seed, onset, site in (
        ("none", 0.1, 0, 120, "head"),
        ("none", 0.1, 0, 160, "head"),
        ("none", 0.1, 1, 150, "blocks/0/linear"),
        ("batch", 0.01, 2, 133, ""),
    ):
        run = {"norm": norm, "lr": lr, "seed": seed}
        loss.loc[run | {"step": [onset, onset + 1]}] = 9.0
        if site:
            mean.loc[run | {"site": site, "step": slice(onset - 10, None)}] += 20.0
    return records


def test_spikes_and_what_led_them():
    records, rule = spiky(), spike_rule(None, window=20, k=8.0)
    study = digest(records, rule).spikes
    first, second, third = said(records, "Where do losses spike", rule)
    assert first.startswith("Spikes: none 3 in 2 of 6 runs; batch 1 in 1 of 6 runs (custom: >= 8 ")
    lead = study.lead
    assert lead is not None and (lead.n_led, lead.n_events, lead.median_steps) == (3, 4, 10)
    assert second.startswith(
        "Before 3 of 4 spikes a layer's inputs left their usual range within "
        f"{lead.lookback_steps} steps (median 10 steps before)"
    )
    assert f"{100 * lead.null_share:.0f} % (p = {lead.p_value:.3g}, spikes at 999 other" in second
    assert third == "First to move: head (2×), blocks/0/linear (1×)."


def test_no_spikes_are_an_answer():
    found = said(learned(), "Where do losses spike")
    assert len(found) == 1
    assert found[0].startswith("Spikes: none 0 in 0 of 6 runs; batch 0 in 0 of 6 runs (")


def test_runs_that_are_too_short_to_judge():
    found = one(learned(), "Where do losses spike", PRESETS["olmo_core"])
    assert found.startswith("No run is long enough to judge a single step (olmo_core: >= 6 std")


# Do gradients vanish or explode?


def with_gradients(factor: dict[str, float]) -> FakeRecords:
    records = learned()
    like = records.probe["mean"].isel(site=0, feature=0, drop=True)
    blocks = [f"blocks/{i}/linear" for i in range(3)]
    grows = xr.DataArray(list(factor.values()), {"norm": list(factor)}, ["norm"])
    power = xr.DataArray([2.0, 1.0, 0.0], {"block": blocks}, ["block"])
    norms = grows**power * xr.ones_like(like)
    # Later steps are another story.
    norms = norms.where(norms["step"] == 0, 1.0)
    records.probe[GRADIENT_NORM] = norms.transpose(*like.dims, "block").astype(np.float32)
    return records


def test_growth_of_gradients_at_initialization():
    sentence = one(with_gradients({"none": 0.5, "batch": 1.25}), "Do gradients vanish")
    assert "grow by none × 0.5 (R² 1.00); batch × 1.25 (R² 1.00); below 1 they vanish" in sentence


def test_without_norms_of_gradients_there_is_no_answer():
    assert not said(learned(), "Do gradients vanish")
    records = with_gradients({"none": 0.5, "batch": 1.25})
    records.probe = records.probe.isel(block=[0, 1])
    assert not said(records, "Do gradients vanish")


def test_gradients_of_runs_that_diverged_at_once():
    records = with_gradients({"none": 0.5, "batch": 1.25})
    for lr in (0.01, 0.1):
        for seed in range(3):
            diverge(records, 0, norm="none", lr=lr, seed=seed)
    sentence = one(records, "Do gradients vanish")
    assert "none" not in sentence and "batch × 1.25" in sentence


def test_every_answer_has_a_sentence_and_every_sentence_ends():
    records = spiky()
    for each in answers(replace(digest(records, RULE), notes=("a note",))):
        assert each.question.endswith("?") and each.sentences
        assert all(sentence.endswith(".") and "nan" not in sentence for sentence in each.sentences)
