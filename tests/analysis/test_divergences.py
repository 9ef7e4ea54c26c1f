"""How runs ended, told once for all that ended alike."""

from __future__ import annotations

import numpy as np
import xarray as xr
from fake_records import blank, diverge
from told import said

from ici.analysis import divergences

QUESTION = "How did the runs end"


def test_runs_that_ended_alike_share_a_sentence():
    records = blank(lrs=(0.01, 0.1, 1.0))
    for seed, step in ((0, 7), (1, 12)):
        diverge(records, step, norm="none", lr=0.1, seed=seed)
    diverge(records, 7, norm="none", lr=1.0, seed=2)
    diverge(records, 5, last_loss=1e6, norm="batch", lr=1.0, seed=0)
    # A record that does not say what was not finite first.
    ratio = "batch, lr 1: 1 of 3 runs: loss above 1000 × the first, at step 5."
    assert said(records, QUESTION) == [
        "none, lr 0.1 to 1: 3 of 6 runs: loss not finite, at step 7 to 12.",
        ratio,
    ]
    words = xr.full_like(records.runs["diverged_at"], "", dtype=object)
    words.loc[{"norm": "none", "lr": 0.1}] = "the input of head"
    records.runs["first_nonfinite"] = words
    assert said(records, QUESTION) == [
        "none, lr 0.1: 2 of 3 runs: loss not finite, first non-finite: the input of head, at step "
        "7 to 12.",
        "none, lr 1: 1 of 3 runs: loss not finite, at step 7.",
        ratio,
    ]


def test_nothing_is_said_where_no_run_diverged_and_little_where_each_did_otherwise(monkeypatch):
    records = blank()
    assert said(records, QUESTION) == []
    monkeypatch.setattr(divergences, "MAX_SENTENCES", 2)
    places = [(n, lr, s) for n in ("none", "batch") for lr in (0.01, 0.1) for s in (0, 1)]
    words = xr.full_like(records.runs["diverged_at"], "", dtype=object)
    for i, (norm, lr, seed) in enumerate(places):
        diverge(records, 3, last_loss=np.nan, norm=norm, lr=lr, seed=seed)
        words.loc[{"norm": norm, "lr": lr, "seed": seed}] = f"the input of {i}"
    records.runs["first_nonfinite"] = words
    *_, last = told = said(records, QUESTION)
    assert len(told) == 3 and last.startswith("6 more such kinds")
