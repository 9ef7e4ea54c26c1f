"""Records that are hard to draw, and how to look at a figure."""

from __future__ import annotations

import numpy as np
from fake_records import FakeRecords, blank, diverge, drop_site
from matplotlib.figure import Figure

RUN = {"norm": "none", "lr": 0.1}


def words(figure: Figure) -> str:
    """Everything that is written in a figure."""
    figure.draw_without_rendering()
    texts = [*figure.texts, *(figure.findobj(match=lambda a: hasattr(a, "get_text")))]
    return " ".join(" ".join(t.get_text() for t in texts).split())


def one_setting(records: FakeRecords) -> FakeRecords:
    for node in ("train", "probe", "reference", "evaluation", "runs"):
        setattr(records, node, getattr(records, node).isel(depth=0, drop=True))
    return records


def line_of(figure: Figure, panel: int, label: str) -> np.ndarray:
    handles, labels = figure.axes[panel].get_legend_handles_labels()
    return np.asarray(handles[labels.index(label)].get_ydata())


def all_diverged() -> FakeRecords:
    records = blank(seeds=(0, 1))
    for seed, step, loss in ((0, 0, np.nan), (1, 7, np.inf)):
        for norm in ("none", "batch"):
            for lr in (0.01, 0.1):
                diverge(records, step, loss, norm=norm, lr=lr, seed=seed)
    return records


def still_going() -> FakeRecords:
    records = blank()
    for node in ("train", "probe", "reference", "evaluation"):
        dataset = getattr(records, node).sel(step=slice(0, 10))
        for name in dataset.data_vars:
            dataset[name].loc[{"norm": "batch", "step": slice(5, None)}] = np.nan
        setattr(records, node, dataset)
    return records


def first_step_only() -> FakeRecords:
    records = blank()
    for node in ("train", "probe", "reference", "evaluation"):
        setattr(records, node, getattr(records, node).isel(step=slice(0, 1)))
    return records


def everything_dead() -> FakeRecords:
    records = blank()
    records.reference["std"].loc[{"step": slice(5, None)}] = 0.0
    return records


def overflowing() -> FakeRecords:
    records = blank()
    for node in (records.probe, records.reference):
        for name in ("mean", "std"):
            node[name].loc[{"norm": "none", "step": slice(10, None)}] = np.inf
    return records


def uneven_sites() -> FakeRecords:
    records = blank()
    drop_site(records, "none", "blocks/1/linear")
    records.probe["mean"][..., 3] = np.nan
    records.reference["mean"][..., 3] = np.nan
    return records


def without_moments(*nodes: str) -> FakeRecords:
    records = blank(steps=300)
    for node in nodes:
        setattr(records, node, getattr(records, node).drop_vars(["mean", "std"]))
    return records
