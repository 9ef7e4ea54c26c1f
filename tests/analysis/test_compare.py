from __future__ import annotations

import math

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge
from scipy import stats

from ici.analysis.compare import Compared, Comparison, compare, compare_records
from ici.analysis.digest import digest
from ici.analysis.statistics import holm
from ici.errors import InputError

LOSS, ACCURACY, STEPS = "final_loss", "validation_accuracy", "steps_to_target"


def rows(comparison: Comparison, quantity: str, **where: str) -> list[Compared]:
    return [
        row
        for row in comparison.rows
        if row.quantity.name == quantity
        and all(getattr(row, name) == value for name, value in where.items())
    ]


def row(comparison: Comparison, quantity: str, **where: str) -> Compared:
    (found,) = rows(comparison, quantity, **where)
    return found


def with_losses(by_norm: dict[str, list[float]], lr: float = 0.01, **more) -> FakeRecords:
    """A loss per norm and seed at one learning rate; at the other nothing is learnt."""
    n = len(next(iter(by_norm.values())))
    records = blank(norms=tuple(by_norm), seeds=tuple(range(n)), **more)
    records.evaluation["accuracy"].loc[{"lr": lr}] = 0.5
    for norm, losses in by_norm.items():
        for seed, loss in enumerate(losses):
            records.train["loss"].loc[{"norm": norm, "lr": lr, "seed": seed}] = loss
    return records


NONE = [0.50, 0.61, 0.43, 0.72, 0.55]
BATCH = [0.30, 0.42, 0.22, 0.51, 0.37]


def test_the_paired_test_of_what_the_record_says():
    found = compare(digest(with_losses({"none": NONE, "batch": BATCH})), "norm")
    loss = row(found, LOSS)
    expected = stats.ttest_rel(BATCH, NONE)
    interval = expected.confidence_interval(0.95)
    assert loss.effect is not None and loss.effect.paired
    # Records are float32.
    assert loss.p_value == pytest.approx(expected.pvalue, rel=1e-4)
    assert loss.effect.difference.low == pytest.approx(interval.low, rel=1e-5)
    assert (loss.of_baseline, loss.of_value) == pytest.approx((np.mean(NONE), np.mean(BATCH)))
    assert (loss.baseline, loss.value, loss.n, loss.n_left_out) == ("none", "batch", 5, 0)
    assert loss.verdict == "better"


def test_the_other_baseline_turns_the_verdict():
    records = digest(with_losses({"none": NONE, "batch": BATCH}))
    assert row(compare(records, "norm", "batch"), LOSS).verdict == "worse"


@pytest.mark.parametrize("gain", [0.2, -0.2])
def test_a_higher_accuracy_is_better(gain: float):
    records = with_losses({"none": NONE, "batch": NONE})
    scores = records.evaluation["accuracy"]
    for seed in range(5):
        scores.loc[{"lr": 0.01, "seed": seed}] = 0.5 + 0.01 * seed
        scores.loc[{"norm": "batch", "lr": 0.01, "seed": seed}] = 0.5 + gain + 0.011 * seed
    found = compare(digest(records), "norm")
    assert row(found, ACCURACY).verdict == ("better" if gain > 0 else "worse")
    assert row(found, LOSS).verdict == "equal in every run"


def test_holm_counts_every_row_that_was_tested():
    found = compare(
        digest(with_losses({"none": NONE, "batch": BATCH, "layer": BATCH[::-1]})), "norm"
    )
    expected = holm([each.p_value for each in found.rows])
    np.testing.assert_array_equal([each.p_adjusted for each in found.rows], expected)
    assert found.n_tests == int(np.isfinite(expected).sum()) >= 2


def test_holm_decides_not_the_single_p():
    noisy = {"none": [0.50, 0.61, 0.43], "batch": [0.40, 0.52, 0.31]}
    # Twelve norms more that differ by noise: what was enough alone is no more.
    rng = np.random.default_rng(0)
    many = noisy | {f"norm{i}": list(0.5 + 0.1 * rng.random(3)) for i in range(12)}
    alone, among = (compare(digest(with_losses(each)), "norm") for each in (noisy, many))
    assert row(alone, LOSS, value="batch").verdict == "better"
    last = row(among, LOSS, value="batch")
    assert last.p_value < 0.05 < last.p_adjusted and last.verdict == "not distinguishable"


def test_not_distinguishable_says_how_many_seeds():
    found = compare(
        digest(with_losses({"none": [0.5, 0.7, 0.4], "batch": [0.6, 0.4, 0.2]})), "norm"
    )
    loss = row(found, LOSS)
    assert loss.verdict == "not distinguishable" and 3 < loss.seeds_needed < math.inf


def test_each_at_its_own_best_learning_rate():
    records = with_losses({"none": NONE, "batch": BATCH})
    scores = records.evaluation["accuracy"]
    scores.loc[{"norm": "batch", "lr": 0.1}] = 0.9
    records.train["loss"].loc[{"norm": "batch", "lr": 0.1}] = 0.05
    best, equal = (compare(digest(records), "norm", at=at) for at in ("best", "equal"))
    assert row(best, LOSS).where == "lr 0.01 and lr 0.1"
    assert row(best, LOSS).of_value == pytest.approx(0.05)
    assert [each.setting for each in rows(equal, LOSS)] == ["depth 2, lr 0.01", "depth 2, lr 0.1"]
    assert rows(equal, LOSS)[0].of_value == pytest.approx(np.mean(BATCH))


def test_one_seed_has_no_verdict():
    found = compare(digest(with_losses({"none": [0.5], "batch": [0.1]})), "norm")
    loss = row(found, LOSS)
    assert loss.verdict == "one seed: no verdict" and math.isnan(loss.p_adjusted)
    assert loss.effect is not None and not loss.effect.difference.exists
    assert found.n_tests == 0
    # Several learning rates are several runs, but not several seeds.
    records = with_losses({"none": [0.5], "batch": [0.1]})
    diverge(records, 10, norm="none", lr=0.1, seed=0)
    share = row(compare(digest(records), "norm"), "diverged")
    assert share.verdict == "one seed: no verdict" and math.isnan(share.p_value)


def test_a_diverged_seed_leaves_its_partner_out():
    records = with_losses({"none": NONE, "batch": BATCH}, lrs=(0.01,))
    scores = records.evaluation["accuracy"]
    diverge(records, 10, norm="none", lr=0.01, seed=1)
    found = compare(digest(records), "norm", at="equal")
    loss = row(found, LOSS)
    kept = [0, 2, 3, 4]
    assert (loss.n, loss.n_left_out) == (4, 2)
    assert loss.p_value == pytest.approx(
        stats.ttest_rel(np.take(BATCH, kept), np.take(NONE, kept)).pvalue, rel=1e-4
    )
    assert scores.sizes["seed"] == 5
    share = row(found, "diverged")
    assert (share.of_baseline, share.of_value) == (1 / 5, 0)


def test_all_diverged():
    records = with_losses({"none": NONE, "batch": BATCH})
    for lr in (0.01, 0.1):
        for seed in range(5):
            diverge(records, 10, norm="none", lr=lr, seed=seed)
    for at in ("best", "equal"):
        found = compare(digest(records), "norm", at=at)
        for loss in rows(found, LOSS):
            assert loss.verdict.startswith("nothing to compare") and loss.effect is None
        share = row(found, "diverged")
        assert share.p_value == pytest.approx(stats.fisher_exact([[10, 0], [0, 10]])[1])
        assert share.verdict == "better"


def test_a_run_still_going_has_no_final_loss():
    records = with_losses({"none": NONE, "batch": BATCH}, lrs=(0.01,))
    records.train["loss"].loc[{"norm": "batch", "seed": [0, 1, 2], "step": range(15, 20)}] = np.nan
    loss = row(compare(digest(records), "norm", at="equal"), LOSS)
    assert (loss.n, loss.n_left_out) == (2, 6)
    # Nor is a learning rate known to be the best before all its seeds have ended.
    best = row(compare(digest(records), "norm"), LOSS)
    assert best.where == "lr 0.01 and no finished lr"
    records.train["loss"].loc[{"norm": "batch", "step": range(15, 20)}] = np.nan
    assert row(compare(digest(records), "norm"), LOSS).verdict.startswith("nothing to compare")


def test_runs_still_going_are_no_ground_for_a_share_of_divergences():
    records = with_losses({"none": NONE, "batch": BATCH}, lrs=(0.01,))
    for seed in range(5):
        diverge(records, 10, norm="none", lr=0.01, seed=seed)
    assert row(compare(digest(records), "norm"), "diverged").verdict == "better"
    records.train["loss"].loc[{"norm": "batch", "seed": [0, 1], "step": range(15, 20)}] = np.nan
    found = compare(digest(records), "norm")
    share = row(found, "diverged")
    assert share.verdict == "no verdict yet: 2 runs still going"
    assert math.isnan(share.p_value) and math.isnan(share.p_adjusted)
    assert found.n_tests == 0


def test_what_is_left_out_has_its_reasons():
    records = with_losses({"none": NONE, "batch": BATCH}, lrs=(0.01,))
    diverge(records, 10, norm="none", lr=0.01, seed=1)
    records.train["loss"].loc[{"norm": "batch", "seed": [2, 3], "step": range(15, 20)}] = np.nan
    found = compare(digest(records), "norm", at="equal")
    loss = row(found, LOSS)
    assert loss.n_left_out == 6
    assert loss.left_out == "1 diverged, 3 without a partner, 2 still going"
    # 20 steps are too few for the rule to judge any.
    assert row(found, "spikes").left_out == "8 too short to judge, 2 still going"
    assert row(compare(digest(records), "norm"), LOSS).left_out == (
        "10 without a rate that all seeds finish"
    )


def test_every_run_that_is_left_out_has_a_reason():
    records = with_losses({"none": NONE, "batch": BATCH})
    diverge(records, 10, norm="none", lr=0.01, seed=1)
    records.train["loss"].loc[{"norm": "batch", "seed": 2, "step": range(15, 20)}] = np.nan
    for at in ("best", "equal"):
        for each in compare(digest(records), "norm", at=at).rows:
            counts = [int(part.split()[0]) for part in each.left_out.split(", ") if part]
            assert sum(counts) == each.n_left_out, each


def test_misses_count_as_the_whole_run():
    records = with_losses({"none": NONE, "batch": BATCH}, lrs=(0.01,))
    scores = records.evaluation["accuracy"]
    for seed, step in enumerate((5, 10, 5, 10, 10)):
        scores.loc[{"norm": "batch", "seed": seed, "step": slice(step, None)}] = 0.9
    steps = row(compare(digest(records), "norm"), STEPS)
    assert (steps.of_baseline, steps.of_value) == (20, 8)
    assert steps.verdict == "better"


def test_shift_is_compared_as_a_ratio_and_has_no_good_side():
    records = with_losses({"none": NONE, "batch": NONE}, lrs=(0.01,))
    for seed in range(5):
        for norm, shift in (("none", 1.0 + 0.1 * seed), ("batch", 0.1 + 0.011 * seed)):
            records.reference["mean"].loc[
                {"norm": norm, "seed": seed, "step": 20, "site": "head"}
            ] = shift
    shift = row(compare(digest(records), "norm"), "shift")
    assert shift.verdict == "lower" and shift.effect is not None
    logs = [
        np.mean(np.log([start + slope * s for s in range(5)]))
        for start, slope in ((1.0, 0.1), (0.1, 0.011))
    ]
    assert shift.of_value == pytest.approx(math.exp(logs[1]), rel=1e-5)
    assert shift.effect.difference.estimate == pytest.approx(logs[1] - logs[0], rel=1e-5)


def test_along_depth_and_learning_rate_and_extra_dimensions():
    records = digest(blank(depths=(2, 4), extra={"weight_decay": (0.0, 0.1)}))
    assert {each.setting for each in compare(records, "depth").rows if each.setting} == {
        f"norm {norm}, weight_decay {decay}" for norm in ("none", "batch") for decay in ("0", "0.1")
    }
    assert {each.value for each in compare(records, "lr").rows} == {"0.1"}
    assert {each.value for each in compare(records, "weight_decay", 0.1).rows} == {"0"}


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        ("seed", {}, "no dimension 'seed'"),
        ("nonsense", {}, "no dimension 'nonsense'"),
        ("depth", {}, "one value 2"),
        ("norm", {"baseline": "layer"}, "no run has norm layer"),
        ("norm", {"at": "worst"}, "wanted best or equal"),
        ("norm", {"level": 1.5}, "level is 1.5"),
    ],
)
def test_refusals(dim: str, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        compare(digest(blank()), dim, **options)


def two(**changes) -> dict:
    one = with_losses({"none": NONE}, **changes)
    other = with_losses({"none": BATCH})
    return {"A": digest(one), "B": digest(other)}


@pytest.mark.parametrize("at", ["best", "equal"])
def test_two_experiments_that_share_seeds_are_paired(at):
    found = compare_records(two(), at=at)
    loss = rows(found, LOSS)[0]
    assert found.paired and (loss.baseline, loss.value) == ("A", "B")
    assert loss.p_value == pytest.approx(stats.ttest_rel(BATCH, NONE).pvalue, rel=1e-4)
    assert rows(compare_records(two(), "B", at=at), LOSS)[0].verdict == "worse"


def test_other_seeds_are_no_pairs():
    records = with_losses({"none": BATCH})
    for name in ("train", "probe", "reference", "evaluation", "runs"):
        node = getattr(records, name)
        setattr(records, name, node.assign_coords(seed=node["seed"].values + 3))
    found = compare_records({"A": digest(with_losses({"none": NONE})), "B": digest(records)})
    loss = row(found, LOSS)
    assert not found.paired and any("unpaired" in note for note in found.notes)
    expected = stats.ttest_ind(BATCH, NONE, equal_var=False).pvalue
    assert loss.p_value == pytest.approx(expected, rel=1e-4)


def test_only_shared_labels_are_compared():
    wide = digest(with_losses({"none": NONE, "batch": BATCH}, depths=(2, 4)))
    found = compare_records({"A": wide, "B": digest(with_losses({"none": BATCH}))})
    assert {each.setting for each in found.rows if each.setting} == {"norm none, depth 2"}
    assert any("shared values of norm" in note for note in found.notes)


def test_experiments_of_one_depth_each_are_compared_by_it():
    found = compare_records(two(depths=(8,)))
    assert any("depth differs: A 8, B 2" in note for note in found.notes)
    assert {each.setting for each in found.rows if each.setting} == {"norm none"}


def test_steps_to_different_targets_are_not_compared():
    found = compare_records(two(target=0.4))
    assert not rows(found, STEPS)
    assert any("targets differ: A 40% acc., B 80% acc." in note for note in found.notes)
    assert rows(compare_records(two()), STEPS)


def test_the_shorter_experiment_sets_what_a_miss_counts():
    found = compare_records(two(steps=40))
    steps = row(found, STEPS)
    assert (steps.of_baseline, steps.of_value) == (20, 20)
    assert any("different numbers of steps" in note for note in found.notes)


def test_experiments_that_do_not_compare():
    with pytest.raises(InputError, match="one experiment"):
        compare_records({"A": digest(blank())})
    with pytest.raises(InputError, match="no experiment 'C'"):
        compare_records(two(), "C")
    with pytest.raises(InputError, match="share no depth"):
        compare_records({"A": digest(blank(depths=(2, 4))), "B": digest(blank(depths=(6, 8)))})
    language = blank()
    language.task = "language_model"
    with pytest.raises(InputError, match="different tasks"):
        compare_records({"A": digest(blank()), "B": digest(language)})
