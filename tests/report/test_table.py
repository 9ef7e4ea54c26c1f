from __future__ import annotations

import io
import re

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge, plausible
from rich.console import Console

from ici.measure.spikes import PRESETS, spike_rule
from ici.report.table import WIDTH, print_summary

NONE_01 = {"norm": "none", "lr": 0.1}


def printed(records: FakeRecords, **console) -> str:
    file = io.StringIO()
    print_summary(records, Console(file=file, **console))
    return file.getvalue()


def row(text: str, norm: str, lr: str) -> str:
    (line,) = [each for each in text.splitlines() if re.match(rf"{norm} +{re.escape(lr)} ", each)]
    return line


@pytest.fixture(scope="module")
def demo() -> FakeRecords:
    return plausible(width=16)


def test_three_norms_and_eight_learning_rates_fit(demo: FakeRecords):
    lines = [line.rstrip() for line in printed(demo).splitlines()]
    assert max(map(len, lines)) <= WIDTH
    assert sum(bool(re.match(r"(none|batch|layer) +[\d.]", line)) for line in lines) == 24


def test_nothing_is_cut_off_and_files_have_no_colour(demo: FakeRecords):
    text = printed(demo)
    assert "…" not in text and "\x1b" not in text
    narrow = printed(demo, width=80, force_terminal=True, color_system=None)
    # Rich marks what it cuts off with an ellipsis.
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    for number in re.findall(r"\d\.\d\d\d(?= \[)", text):
        assert number in narrow


def test_a_narrow_file_still_gets_full_lines(demo: FakeRecords):
    assert printed(demo, width=40) == printed(demo, width=WIDTH)


def test_learning_rates_are_listed_in_their_order():
    text = printed(blank(lrs=(0.1, 0.001, 0.01)))
    assert re.findall(r"^none +([\d.]+) ", text, re.MULTILINE) == ["0.001", "0.01", "0.1"]


def test_the_numbers():
    records = blank(steps=300)
    for seed, loss, accuracy, shift in (
        (0, 0.2, 0.7, 1.0),
        (1, 0.3, 0.85, 2.0),
        (2, 0.6, 0.9, 4.0),
    ):
        run = NONE_01 | {"seed": seed}
        records.train["loss"].loc[run] = loss
        records.train["loss"].loc[run | {"step": 0}] = 1.0
        records.evaluation["accuracy"].loc[run | {"step": slice(100, None)}] = accuracy
        records.reference["mean"].loc[run | {"step": 300}] = shift
    line = row(printed(records), "none", "0.1")
    for cell in (
        "100 [100–∞]",
        "0.300 [0.200–0.600]",
        "85.0 [70.0–90.0]",
        "0/3",
        "2.00 [1.00–4.00]",
    ):
        assert cell in line
    diverge(records, 150, **NONE_01, seed=2)
    line = row(printed(records), "none", "0.1")
    for cell in ("0.250 (2) [0.200–0.300]", "1/3", "1.50 (2) [1.00–2.00]"):
        assert cell in line


def test_a_row_in_which_everything_diverged():
    records = blank(steps=300)
    for seed in (0, 1, 2):
        diverge(records, 3, **NONE_01, seed=seed)
    line = row(printed(records), "none", "0.1")
    assert line.split() == ["none", "0.1", "∞", "–", "–", "–", "3/3", "–", "–"]


def test_nothing_happened_is_exactly_zero():
    line = row(printed(blank(steps=300)), "none", "0.1")
    assert line.split() == ["none", "0.1", "∞", "1.00†", "0.0", "0", "0/3", "0", "0"]


def test_one_seed_has_no_intervals():
    text = printed(blank(seeds=(5,), steps=300))
    assert "One seed, so no intervals." in text and "[" not in text


def test_the_caption_names_every_constant():
    records = blank(steps=300, eval_every=5)
    text = " ".join(printed(records).split())
    for words in (
        "Median [min–max] of 3 seeds",
        PRESETS["olmo_core"].describe(),
        "80% acc",
        "one every 5 steps",
        "last 15 steps",
        "shift at head",
    ):
        assert words in text
    file = io.StringIO()
    rule = spike_rule("olmo2", window=50)
    print_summary(records, Console(file=file), rule)
    assert rule.describe() in " ".join(file.getvalue().split())


def test_marks_are_explained_where_they_occur():
    records = blank(steps=300)
    records.train["loss"][:] = np.linspace(1, 0.5, 300)
    plain = printed(records)
    assert "†" not in plain and "*" not in plain
    records.train["loss"].loc[NONE_01 | {"seed": 0}] = 2.0
    records.reference["std"].loc[NONE_01 | {"seed": 0, "step": 300}] = 0.0
    text = printed(records)
    assert text.count("†") == 2 and text.count("*") == 2
    assert "†" in row(text, "none", "0.1")


def test_a_cell_says_on_how_many_seeds_it_rests():
    records = blank(steps=300)
    assert "(k)" not in printed(records)
    for seed, shift in ((0, 1.0), (1, 2.0), (2, 4.0)):
        records.reference["mean"].loc[NONE_01 | {"seed": seed, "step": 300}] = shift
    records.reference["std"].loc[NONE_01 | {"seed": 1, "step": 300}] = 0.0
    text = printed(records)
    assert "2.50* (2) [1.00–4.00]" in row(text, "none", "0.1")
    assert "(k): resting on only k of the 3 seeds" in text
    assert "(" not in row(text, "none", "0.01")
    diverge(records, 150, **NONE_01, seed=2)
    line = row(printed(records), "none", "0.1")
    assert "1.00† (2)" in line and "1.00* (1)" in line and "50 (2)" in line
    diverge(records, 150, **NONE_01, seed=0)
    line = row(printed(records), "none", "0.1")
    assert line.split()[3:] == ["1.00†", "(1)", "0.0", "(1)", "0", "2/3", "–*", "100", "(1)"]


def test_what_was_not_recorded_is_left_out():
    records = blank(steps=300)
    assert "shift at" in printed(records)
    records.reference = records.reference.drop_vars(["mean", "std"])
    text = printed(records)
    assert "No shift, no dead units: mean and std of layer inputs were not recorded." in text
    assert row(text, "none", "0.1").split() == ["none", "0.1", "∞", "1.00†", "0.0", "0", "0/3"]


def test_the_caption_explains_its_terms():
    records = blank(steps=300)
    records.experiment["divergence_ratio"] = 50.0
    text = " ".join(printed(records).split())
    for words in (
        "div.: loss above 50 × the first, or loss or gradient not finite",
        "spikes: how often the training loss left its recent range",
        "standard deviations (σ) of that unit at step 0",
        "dead: units left out of it, constant over the batch at either time",
    ):
        assert words in text


def test_runs_still_going_are_announced():
    records = blank(steps=300)
    assert "still going" not in printed(records)
    for node in ("train", "evaluation", "reference"):
        setattr(records, node, getattr(records, node).sel(step=slice(0, 100)))
    text = printed(records)
    assert "12 runs are still going" in text and "…" in row(text, "none", "0.1")


def test_a_table_for_every_setting():
    records = blank(depths=(2, 5), extra={"weight_decay": (0.0, 0.1)})
    records.train["loss"].loc[{"depth": 5, "weight_decay": 0.1}] = 7.0
    text = printed(records)
    tables = re.split(r"(?m)^(?=depth)", text)[1:]
    assert [t.splitlines()[0].strip() for t in tables] == [
        f"depth {depth}, weight_decay {decay}" for depth in (2, 5) for decay in (0, 0.1)
    ]
    assert ["7.00" in table for table in tables] == [False, False, False, True]


def test_no_target_no_column():
    text = printed(blank(target=None))
    assert "steps to" not in text and "∞" not in text


def test_a_file_that_takes_only_ascii(demo: FakeRecords):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    print_summary(demo, Console(file=file))
    file.flush()
    assert "inf" in raw.getvalue().decode("ascii")


def test_the_console_is_left_as_it_was(demo: FakeRecords):
    console = Console(file=io.StringIO(), width=60)
    print_summary(demo, console)
    assert console.width == 60


def test_a_language_model_shows_its_loss():
    records = blank(target=None)
    records.task, records.experiment["target_loss"] = "language_model", 1.5
    shown = printed(records)
    assert "validation" in shown and "acc., %" not in shown
    assert "val. loss 1.5" in shown
