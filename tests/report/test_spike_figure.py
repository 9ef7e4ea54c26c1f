"""Spike anatomy: a planted spike, a planted shift before it, and nothing else read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_records import FakeRecords, blank
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from measured_digests import measured
from pictured import words

from ici.analysis.digest import digest
from ici.report import figures, spike_anatomy
from ici.report.figures import draw_all
from ici.report.page.content import content
from ici.report.spike_anatomy import MAX_SHOWN, draw_spike_anatomy

ONSET = 300
SPIKY = {"norm": "none", "lr": 0.1, "seed": 1}


def spiky(moved_at: int | None = 280, onset: int = ONSET, **more: Any) -> FakeRecords:
    """A loss that spikes once, and a head whose inputs jumped at one probe before."""
    records = blank(steps=400, probe_every=10, reference_every=100, eval_every=100, **more)
    rng = np.random.default_rng(0)
    loss = records.train["loss"]
    loss[:] = 1 + rng.normal(0, 0.01, loss.shape)
    loss.loc[SPIKY | {"step": [onset, onset + 1]}] = [5.0, 3.0]
    mean = records.probe["mean"]
    mean[:] = rng.normal(0, 0.1, mean.shape)
    if moved_at is not None:
        mean.loc[SPIKY | {"site": "head", "step": moved_at}] = 50.0
    return records


def drawn(records: FakeRecords) -> Figure:
    figure = draw_spike_anatomy(records, digest(records))
    assert figure is not None
    return figure


def spans(axes: Axes) -> list[tuple[float, float]]:
    """Where the shaded bands lie."""
    found = []
    for patch in axes.patches:
        assert isinstance(patch, Polygon | Rectangle)
        x = patch.get_path().vertices[:, 0] if isinstance(patch, Polygon) else None
        if isinstance(patch, Rectangle):
            x = np.array([patch.get_x(), patch.get_x() + patch.get_width()])
        found.append((float(x.min()), float(x.max())))
    return found


def test_the_spike_and_its_lead_are_where_they_were_planted():
    top, bottom, lead = drawn(spiky()).axes
    assert spans(top) == [(300, 302)]
    assert spans(bottom) == [(280, 300)]
    assert "onset 300, recovered 302, lead 20 steps" in top.get_title()
    assert "none, depth 2, lr 0.1, seed 1" in top.get_title()
    loss = top.lines[0]
    assert loss.get_ydata()[list(loss.get_xdata()).index(300)] == 5
    (head,) = [each for each in bottom.lines if each.get_label() == "head"]
    at = list(head.get_xdata()).index(280)
    assert head.get_ydata()[at] == pytest.approx(50, rel=0.01)
    assert [bar.get_width() for bar in lead.patches][0] == 100
    assert "1 of 1" in words(lead.figure)


def test_a_spike_without_movers_shows_what_came_nearest():
    top, bottom, lead = drawn(spiky(moved_at=None)).axes
    assert "lead" not in top.get_title() and not spans(bottom)
    (name,) = [each.get_text() for each in bottom.get_legend().get_texts()]
    assert name.startswith("none left its range; ")
    assert lead.patches[0].get_width() == 0


def test_a_shift_after_the_onset_is_no_lead():
    figure = drawn(spiky(moved_at=310))
    assert "lead" not in figure.axes[0].get_title()
    assert "0 of 1" in words(figure)


def test_a_spike_that_is_not_over():
    records = spiky(onset=398)
    records.train["loss"].loc[SPIKY | {"step": [398, 399]}] = 5.0
    assert "not recovered" in drawn(records).axes[0].get_title()


def test_the_largest_spikes_of_different_runs_come_first():
    records = spiky()
    loss = records.train["loss"]
    loss.loc[SPIKY | {"step": 200}] = 4.0
    loss.loc[{"norm": "batch", "lr": 0.1, "seed": 0, "step": 250}] = 2.0
    titles = [a.get_title() for a in drawn(records).axes if a.get_title()]
    assert [t.split("onset ")[1].split(",")[0] for t in titles] == ["300", "250", "200"]
    many = spiky(seeds=tuple(range(9)))
    for seed in range(9):
        many.train["loss"].loc[{"norm": "none", "lr": 0.1, "seed": seed, "step": ONSET}] = 5 + seed
    figure = drawn(many)
    assert sum(bool(a.get_title()) for a in figure.axes) == MAX_SHOWN
    assert "The 6 largest of 9 spikes" in words(figure)


def test_no_spikes_no_figure():
    records = spiky()
    records.train["loss"].loc[SPIKY | {"step": [ONSET, ONSET + 1]}] = 1.0
    assert draw_spike_anatomy(records, digest(records)) is None


def test_spikes_without_moments():
    records = spiky()
    records.probe = records.probe.drop_vars(["mean", "std"])
    figure = drawn(records)
    assert len(figure.axes) == 2
    assert "no moments of layer inputs were probed" in words(figure)
    assert "null hypothesis" not in words(figure)


def test_the_caption_holds_the_rules():
    records = spiky()
    text = words(drawn(records))
    found = digest(records)
    assert found.spikes.rule.describe() in text
    for part in ("12 runs", "3 seeds", "rose 6 standard", "the 16 probes", "within 50 steps"):
        assert part in text


def test_only_the_runs_shown_are_read(monkeypatch: pytest.MonkeyPatch):
    records, asked = spiky(), []
    real = spike_anatomy.gathered

    def watched(results: FakeRecords, nodes: tuple[str, ...], **labels: Any) -> Any:
        asked.append((nodes, labels))
        return real(results, nodes, **labels)

    monkeypatch.setattr(spike_anatomy, "gathered", watched)
    drawn(records)
    run = {"norm": ["none"], "depth": [2], "lr": [0.1], "seed": [1]}
    assert asked == [(("train", "probe"), run)]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    found: dict[str, Figure] = {}

    def save(figure: Figure, folder: Path, name: str) -> list[Path]:
        found[name] = figure
        return [folder / name]

    monkeypatch.setattr("ici.report.figures.save", save)
    return found


@pytest.mark.slow
def test_every_figure_of_a_record_tells_its_rate(tmp_path: Path, saved: dict[str, Figure]):
    records = blank(norms=("none",), seeds=(0,))
    draw_all(records, tmp_path, digest=measured(records))
    of_blocks = {"gradient_norm", "gradient_shift", "attribution", "landscape"}
    assert of_blocks < set(saved)
    rule = "lr: the smallest, as the network without norm trains in most seeds at none."
    assert all(rule in words(saved[name]) for name in of_blocks)
    draw_all(records, tmp_path, 0.1, digest=measured(records))
    assert all("lr: as asked for." in words(saved[name]) for name in of_blocks)


def test_of_many_settings_some_are_drawn(tmp_path: Path, saved: dict[str, Figure]):
    n = figures.MAX_SETTINGS + 3
    records = blank(norms=("none",), lrs=(0.1,), seeds=(0,), depths=tuple(range(1, n + 1)))
    with pytest.warns(RuntimeWarning, match=f"{figures.MAX_SETTINGS} of {n} settings are drawn"):
        draw_all(records, tmp_path)
    shown = [name for name in saved if name.startswith("loss_curves")]
    assert len(shown) == figures.MAX_SETTINGS
    assert {"loss_curves_depth=1", f"loss_curves_depth={n}"} <= set(shown)
    assert len(saved["phase"].axes[0].get_yticklabels()) == n


def test_the_page_links_the_replay_of_a_spike(monkeypatch):
    about = {"run": SPIKY | {"depth": 2}, "from_step": 290, "to_step": ONSET + 1}
    replays = [(Path("runs/fake/replays/of it"), about)]
    monkeypatch.setattr("ici.report.page.content.recorded_replays", lambda folder: replays)
    (row,) = content(digest(spiky()))["spikes"]["rows"]
    assert row["recorded"] == "replays/of it/figures/replay.png"
    assert row["replay"].endswith(f"--from {ONSET - 32} --to {ONSET + 16} --measure all")
    about["to_step"] = ONSET
    (row,) = content(digest(spiky()))["spikes"]["rows"]
    assert row["recorded"] is None
