"""Every sentence says what the record holds: its numbers are computed again from the arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fake_records import FakeRecords, diverge
from told import RULE, learned, one, said

from ici.analysis.answers import answers, sensitivity
from ici.analysis.digest import digest

# Which norm trains best?


def test_medians_and_ranges_at_the_best_rate_best_first():
    sentence = one(learned(), "Which norm trains best (validation accuracy)")
    assert sentence == (
        "Best evaluation of each at its own best learning rate: "
        "batch 72.0 % [70.0 to 74.0, 3 seeds] at lr 0.1; "
        "none 62.0 % [60.0 to 64.0, 3 seeds] at lr 0.1."
    )


def test_a_rate_at_which_a_seed_diverged_is_nobodys_best():
    records = learned()
    diverge(records, 5, norm="batch", lr=0.1, seed=1)
    sentence = one(records, "Which norm")
    # At the other rate, batch has half of 0.7 plus 0, 2 and 4 points.
    assert "batch 37.0 % [35.0 to 39.0, 3 seeds] at lr 0.01" in sentence
    assert sentence.index("none 62.0") < sentence.index("batch 37.0")


def test_the_best_evaluation_need_not_be_the_last():
    records = learned()
    records.evaluation["accuracy"].loc[{"norm": "none", "lr": 0.1, "step": 10}] = 0.95
    assert "none 95.0 % [95.0 to 95.0, 3 seeds]" in one(records, "Which norm")


def test_lower_losses_come_first():
    records = learned()
    records.task = "regression"
    records.evaluation["loss"].loc[{"norm": "batch", "lr": 0.01, "step": 10}] = 0.25
    sentence = one(records, "Which norm trains best (validation loss)")
    assert sentence.index("batch 0.25 [0.25 to 0.25, 3 seeds] at lr 0.01") < sentence.index(
        "none 1 "
    )


def test_one_seed_has_no_interval():
    records = learned(seeds=(0,))
    assert "batch 70.0 % (1 seed, no interval) at lr 0.1" in one(records, "Which norm")
    trust = said(records, "How sure")
    assert trust[0].startswith("One seed: no interval and no verdict")
    assert not any(
        "[" in sentence for each in answers(digest(records)) for sentence in each.sentences
    )


def all_diverged(records: FakeRecords, norm: str) -> FakeRecords:
    for lr in records.runs["lr"].values.tolist():
        for seed in records.runs["seed"].values.tolist():
            diverge(records, 6, norm=norm, lr=lr, seed=seed)
    return records


def test_a_norm_that_never_trains_is_named():
    found = said(all_diverged(learned(), "none"), "Which norm")
    assert found[0].count("seeds]") == 1 and "batch" in found[0]
    assert found[1] == "none: at every learning rate a seed diverged or has no evaluation."


def test_everything_diverged():
    records = all_diverged(all_diverged(learned(), "none"), "batch")
    assert said(records, "Which norm") == [
        "none and batch: at every learning rate a seed diverged or has no evaluation."
    ]
    assert said(records, "Up to which") == [
        "No seed diverges: none at none of the rates; batch at none of the rates."
    ]
    assert "12 runs, 12 diverged; those have no final value." in said(records, "How sure")
    # Nobody met the target; a sensitivity of 0 would be the best there is.
    assert said(records, "How fast")[0].startswith("No run has met the target")
    assert one(records, "How much") == "none and batch: no rate ends below the first loss."


def test_settings_are_kept_apart():
    records = learned(depths=(2, 4))
    records.evaluation["accuracy"].loc[{"depth": 4}] *= 0.5
    found = said(records, "Which norm")
    assert len(found) == 2
    assert " at depth 2: batch 72.0 %" in found[0] and " at depth 4: batch 36.0 %" in found[1]


def test_of_many_settings_four_are_told():
    records = learned(depths=tuple(range(1, 11)))
    told = [re.search(r"at depth (\d+)", each) for each in said(records, "Which norm")]
    assert [match and match[1] for match in told] == ["1", "4", "7", "10"]


# How fast?


def test_median_steps_to_the_experiments_target():
    # 0.7 times a rise that is 0.5 at step 10 and 0.75 at step 15.
    found = one(learned(target=0.4), "How fast do they get there (40% acc.)?")
    assert found == (
        "Median steps to the target, set by the experiment, at each norm's best rate: "
        "none 15 steps (3 of 3 seeds met it); batch 15 steps (3 of 3 seeds met it)."
    )


def test_a_derived_target_says_so():
    found = one(learned(target=None), "How fast do they get there (72% acc.)?")
    assert "set by the record: median over seeds of the best setting's best evaluation" in found
    # Seeds 1 and 2 get there at the last evaluation, the first does not.
    assert "batch 20 steps (2 of 3 seeds met it)" in found
    assert "none missed by most seeds (0 of 3 seeds met it)" in found


def test_a_target_that_nobody_meets():
    assert one(learned(target=0.99), "How fast") == (
        "No run has met the target (set by the experiment)."
    )


def test_a_target_at_a_rate_that_is_not_the_best_is_no_miss():
    records = learned(target=0.65)
    records.evaluation["accuracy"].loc[{"norm": "none", "lr": 0.1, "seed": [1, 2]}] = 0.66
    found = one(records, "How fast")
    assert "none 0 steps (2 of 3 seeds met it)" in found


def unfinished(records: FakeRecords) -> FakeRecords:
    records.train = records.train.isel(step=slice(0, 10))
    records.evaluation = records.evaluation.sel(step=[0, 5, 10])
    records.reference = records.reference.sel(step=[0, 10])
    return records


def test_runs_still_going_have_not_missed_their_target():
    records = unfinished(learned(target=0.36))
    found = one(records, "How fast")
    # 0.37 of the second seed at step 10 is enough: 0.35, 0.36 and 0.37 for batch.
    assert "batch 10 steps (2 of 3 seeds met it)" in found
    assert "none not met yet by most seeds (0 of 3 seeds met it)" in found
    assert "missed" not in found


def test_a_record_still_going_says_so():
    found = said(unfinished(learned()), "How sure")
    assert found[-1].startswith("12 runs are still going (none and batch): this is what they")
    # What depends on final values is not told yet.
    assert not said(unfinished(learned()), "How much")


# Up to which learning rate?


def test_the_largest_rate_at_which_no_seed_diverges():
    records = learned(lrs=(0.3, 0.01, 0.1))
    diverge(records, 3, norm="none", lr=0.1, seed=2)
    assert one(records, "Up to which") == (
        "No seed diverges: none up to 0.01; batch at all 3 (up to 0.3, the end of the grid)."
    )


def test_a_gap_ends_the_range():
    records = learned(lrs=(0.01, 0.1, 0.3))
    diverge(records, 3, norm="none", lr=0.01, seed=2)
    assert "none at none of the rates" in one(records, "Up to which")


def test_runs_without_progress_are_counted():
    records = learned()
    records.train["loss"].loc[{"norm": "batch", "lr": 0.1, "seed": [0, 1]}] = 1.0
    assert said(records, "Up to which")[1:] == [
        "batch: 2 of 6 runs did not diverge but ended no lower than their first loss."
    ]


# How much does the learning rate matter?


def test_sensitivity_from_final_losses_and_first_ones():
    records = learned(lrs=(0.1, 0.01, 1.0))
    loss = records.train["loss"]
    for seed in range(3):
        loss.loc[{"norm": "none", "lr": 0.01, "seed": seed, "step": 19}] = 0.2 + 0.1 * seed
        diverge(records, 5, norm="none", lr=1.0, seed=seed)
    found = sensitivity(digest(records, RULE), {"depth": 2})
    # Above the best of three: 0, then 0.4 minus it, and the first loss, 1, minus it.
    best = np.minimum(0.4, 0.2 + 0.1 * np.arange(3))
    expected = ((0.2 + 0.1 * np.arange(3)) + 0.4 + 1.0) / 3 - best
    np.testing.assert_allclose(found["none"], expected, rtol=1e-6)
    np.testing.assert_allclose(found["batch"], 0, atol=1e-12)
    sentence = one(records, "How much")
    numbers = f"{np.median(expected):.3g} [{expected.min():.3g} to {expected.max():.3g}, 3 seeds]"
    assert f"none {numbers}" in sentence and "over 3 rates" in sentence


def test_one_rate_has_no_sensitivity():
    assert not said(learned(lrs=(0.1,)), "How much")


# How far do inputs move?


def test_the_shift_at_the_deepest_site_and_the_best_rate():
    records = learned()
    mean = records.reference["mean"]
    for seed in range(3):
        mean.loc[{"norm": "none", "lr": 0.1, "seed": seed, "step": 20, "site": "head"}] = 3.0 + seed
        mean.loc[{"norm": "none", "lr": 0.01, "seed": seed, "step": 20, "site": "head"}] = 90.0
    sentence = one(records, "How far do the inputs of head move?")
    assert "batch 0 [0 to 0, 3 seeds] at lr 0.1; none 4 [3 to 5, 3 seeds] at lr 0.1." in sentence


def test_no_moments_no_shift():
    records = learned()
    for name in ("probe", "reference"):
        setattr(records, name, getattr(records, name).drop_vars(["mean", "std"]))
    assert not said(records, "How far")
    assert said(records, "Which norm")


# How sure is this?


@pytest.mark.parametrize(
    ("n", "words"),
    [(3, "3 seeds a cell. Brackets are the range"), (6, "6 seeds a cell; brackets are the range")],
)
def test_the_number_of_seeds_is_told(n: int, words: str):
    records = learned(seeds=tuple(range(n)))
    diverge(records, 5, norm="none", lr=0.1, seed=1)
    found = said(records, "How sure")
    assert found[0].startswith(words)
    assert found[1] == f"{4 * n} runs, 1 diverged; those have no final value."
    assert len(found) == 2


# Runs that are still going


def half_way(records: FakeRecords, norm: str) -> FakeRecords:
    """The runs of this norm have come to step 10."""
    for name in ("train", "evaluation", "reference"):
        node = getattr(records, name)
        after = node["step"].values[node["step"].values > (9 if name == "train" else 10)]
        for variable in node.data_vars.values():
            variable.loc[{"norm": norm, "step": after}] = np.nan
    return records


def test_what_rests_on_runs_still_going_says_how_far_they_are():
    records = half_way(learned(), "batch")
    far = " (so far, step 10 of 20)"
    training = one(records, "Which norm")
    assert f"at lr 0.1{far}" in training.split("batch")[1].split(";")[0]
    assert "so far" not in training.split("none")[1].split(";")[0]
    stability = one(records, "Up to which")
    assert f"batch at all 2 (up to 0.1, the end of the grid){far}." in stability
    assert "none at all 2 (up to 0.1, the end of the grid);" in stability
    shift = one(records, "How far")
    assert "to the last measurement on" in shift and f"at lr 0.1{far}" in shift
    assert shift.count("so far") == 1


def test_a_failure_is_one_whatever_the_larger_rates_still_do():
    records = half_way(learned(), "batch")
    for seed in (0, 1, 2):
        diverge(records, 3, norm="batch", lr=0.01, seed=seed)
    assert "batch at none of the rates." in one(records, "Up to which")


def test_of_complete_records_nothing_is_so_far():
    said = [s for each in answers(digest(learned())) for s in each.sentences]
    assert not any("so far" in s or "last measurement" in s for s in said)
