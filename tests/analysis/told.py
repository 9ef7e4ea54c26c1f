"""What the answers say of records made by hand."""

from __future__ import annotations

import numpy as np
import xarray as xr
from fake_records import FakeRecords, blank

from ici.analysis.answers import answers
from ici.analysis.digest import digest
from ici.measure.spikes import SpikeRule, spike_rule

RULE = spike_rule(None, window=4, k=8.0)


def said(records: FakeRecords, question: str, rule: SpikeRule = RULE) -> list[str]:
    """The sentences to the one question that starts with these words; none if it is left out."""
    found = [each for each in answers(digest(records, rule)) if each.question.startswith(question)]
    assert len(found) < 2
    return list(found[0].sentences) if found else []


def one(records: FakeRecords, question: str, rule: SpikeRule = RULE) -> str:
    (sentence,) = said(records, question, rule)
    return sentence


def learned(**more) -> FakeRecords:
    """Losses fall; the accuracy at lr 0.1 ends at 0.6 or 0.7 (batch) plus 0.02 per seed."""
    records = blank(**more)
    loss = records.train["loss"]
    fall = xr.DataArray(np.linspace(1.0, 0.4, loss.sizes["step"]), dims="step")
    loss[:] = (xr.zeros_like(loss) + fall).transpose(*loss.dims).values
    scores = records.evaluation["accuracy"]
    rise = scores["step"] / scores["step"][-1]
    for norm in scores["norm"].values.tolist():
        for lr in scores["lr"].values.tolist():
            for seed in scores["seed"].values.tolist():
                top = (0.7 if norm == "batch" else 0.6) * (1 if lr == 0.1 else 0.5) + 0.02 * seed
                scores.loc[{"norm": norm, "lr": lr, "seed": seed}] = (rise * top).values
    return records
