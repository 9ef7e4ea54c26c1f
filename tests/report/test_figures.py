from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge, plausible
from matplotlib.figure import Figure
from matplotlib.image import imread
from pictured import (
    RUN,
    all_diverged,
    everything_dead,
    first_step_only,
    line_of,
    one_setting,
    overflowing,
    still_going,
    uneven_sites,
    without_moments,
    words,
)

from ici.analysis.digest import digest
from ici.errors import InputError
from ici.report.figures import draw_all, telling_lr
from ici.report.layer_inputs import draw_layer_inputs, few_sites
from ici.report.losses import draw_final_loss, draw_loss_curves
from ici.report.shift_map import draw_shift_map
from ici.report.style import VERMILLION

OF_A_SETTING = (
    "layer_inputs", "shift_map", "loss_curves", "final_loss", "sensitivity", "time_to_target",
)  # fmt: skip
KINDS = ("phase", *OF_A_SETTING)


def still_going_everywhere(records: FakeRecords) -> bool:
    return bool(digest(records).runs["steps_to_target"].isnull().all())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Figure]]:
    """Figures that `draw_all` would save, rendered in memory: writing them takes most time."""
    figures = []

    def render(figure: Figure, folder: Path, name: str) -> list[Path]:
        figure.draw_without_rendering()
        figures.append((name, figure))
        return [folder / name]

    monkeypatch.setattr("ici.report.figures.save", render)
    return figures


def test_every_figure_as_png_and_pdf(tmp_path: Path):
    records = plausible(width=8, lrs=(1e-3, 0.1), n_layers=3)
    paths = draw_all(records, tmp_path / "figures")
    spiky = ("spike_anatomy",) if digest(records).spikes.spikes else ()
    assert sorted(p.name for p in paths) == sorted(
        f"{k}.{s}" for k in (*KINDS, *spiky) for s in ("pdf", "png")
    )
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())
    for path in paths:
        if path.suffix == ".png":
            assert imread(path)[..., :3].std() > 0.05
        else:
            assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_one_file_set_per_setting(tmp_path: Path, drawn: list[tuple[str, Figure]]):
    records = blank(depths=(2, 5), extra={"weight_decay": (0.0, 3e-4)}, seeds=(0,))
    draw_all(records, tmp_path)
    names = [name for name, _ in drawn]
    assert len(set(names)) == len(names) == 4 * len(OF_A_SETTING) + 1
    assert "final_loss_depth=5_weight_decay=3e-4" in names
    assert all(
        "depth 5, weight_decay 3e-4" in words(f) for n, f in drawn if "5_weight_decay=3e" in n
    )


@pytest.mark.parametrize("draw", [draw_loss_curves, draw_final_loss])
def test_settings_are_never_mixed(draw):
    with pytest.raises(InputError, match=r"depth \[2, 5\]"):
        draw(blank(depths=(2, 5)))


@pytest.mark.parametrize("draw", [draw_layer_inputs, draw_shift_map])
def test_settings_are_never_mixed_at_one_lr(draw):
    with pytest.raises(InputError, match=r"depth \[2, 5\]"):
        draw(blank(depths=(2, 5)), 0.1)
    with pytest.raises(InputError, match=r"no run has lr 0\.7"):
        draw(one_setting(blank()), 0.7)


@pytest.mark.parametrize(
    "records",
    [
        blank(seeds=(0,)),
        blank(norms=("layer",)),
        blank(norms=("none",), lrs=(0.1,), seeds=(7,)),
        blank(sites=("head",), width=1),
        blank(norms=tuple("abcdefghij")),
        all_diverged(),
        still_going(),
        first_step_only(),
        everything_dead(),
        overflowing(),
        uneven_sites(),
    ],
    ids=[
        "one seed", "one norm", "one run", "one site", "many norms", "all diverged", "still going",
        "first step only", "everything dead", "overflowing", "uneven sites",
    ],
)  # fmt: skip
def test_every_record_can_be_drawn(
    records: FakeRecords, tmp_path: Path, drawn: list[tuple[str, Figure]]
):
    draw_all(records, tmp_path)
    wanted = [kind for kind in KINDS if kind != "sensitivity" or records.runs.sizes["lr"] > 1]
    if still_going_everywhere(records):
        wanted.remove("time_to_target")
    assert [name for name, _ in drawn] == wanted


def test_nothing_recorded_writes_nothing(tmp_path: Path):
    records = blank()
    records.reference = records.reference.isel(step=slice(0, 0))
    with pytest.raises(InputError, match="no reference step yet"):
        draw_all(records, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_folder_that_cannot_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        draw_all(blank(), tmp_path / "file" / "figures")


def test_layer_inputs_are_percentiles_over_units_of_the_surviving_seeds():
    records = one_setting(blank(norms=("none",), lrs=(0.1,), width=4))
    units = np.arange(12.0).reshape(3, 4)
    records.probe["mean"][:] = units[None, None, :, None, None, :]
    figure = draw_layer_inputs(records, 0.1)
    np.testing.assert_allclose(line_of(figure, 0, "mean of a unit"), np.median(units))
    (band,) = figure.axes[0].collections
    y = band.get_paths()[0].vertices[:, 1]
    # float32 records
    np.testing.assert_allclose([y.min(), y.max()], np.percentile(units, [15, 85]), rtol=1e-6)
    records.probe["std"][:] = units[None, None, :, None, None, :]
    axes = draw_layer_inputs(records, 0.1).axes[0]
    stds = sorted(line.get_ydata()[0] for line in axes.lines if line.get_color() == VERMILLION)
    np.testing.assert_allclose(stds, np.percentile(units, [15, 50, 85]), rtol=1e-6)
    diverge(records, 12, **RUN, seed=2)
    figure = draw_layer_inputs(records, 0.1)
    np.testing.assert_allclose(line_of(figure, 0, "mean of a unit"), np.median(units[:2]))
    assert "none (2 of 3 seeds)" in words(figure)


def test_layer_inputs_of_diverged_runs_show_the_longest():
    records = one_setting(blank(norms=("none",), lrs=(0.1,)))
    for seed, step in ((0, 3), (1, 12), (2, 7)):
        records.probe["mean"].loc[{"seed": seed}] = float(seed)
        diverge(records, step, **RUN, seed=seed)
    figure = draw_layer_inputs(records, 0.1)
    np.testing.assert_array_equal(line_of(figure, 0, "mean of a unit"), [1, 1, 1, np.nan])
    assert "longest of 3 diverged seeds" in words(figure)


def test_few_sites_are_of_one_kind_from_first_to_last():
    sites = [f"blocks/{i}/{kind}" for i in range(10) for kind in ("linear", "norm")] + ["head"]
    expected = ["blocks/0/linear", "blocks/4/linear", "blocks/9/linear", "head"]
    assert few_sites(sites) == expected
    assert few_sites(sites[-3:]) == sites[-3:]
    assert few_sites(["a", "b", "c", "d", "e"]) == ["a", "c", "d", "e"]


def test_shift_map_holds_the_median_shift_above_its_floor():
    records = one_setting(blank(norms=("none",), lrs=(0.1,)))
    for seed, shift in ((0, 0.01), (1, 0.5), (2, 3.0)):
        records.reference["mean"].loc[{"seed": seed, "site": "head", "step": 20}] = shift
    figure = draw_shift_map(records, 0.1)
    cells = figure.axes[0].collections[0]
    values = np.asarray(cells.get_array())
    assert values.shape == (3, 3)  # site, step
    assert values[2, 2] == 0.5
    low, high = cells.get_clim()
    assert (np.delete(values.ravel(), 8) == low).all() and low > 0 and high >= 0.5
    assert f"Values up to {low:g}, 0 among them" in words(figure)


def test_shift_map_panels_share_one_scale():
    records = one_setting(blank(lrs=(0.1,)))
    records.reference["mean"].loc[{"norm": "none", "step": 20}] = 50.0
    records.reference["mean"].loc[{"norm": "batch", "step": 20}] = 0.02
    figure = draw_shift_map(records, 0.1)
    limits = {axes.collections[0].get_clim() for axes in figure.axes[:2]}
    assert limits == {(0.01, 100.0)}


def test_shift_map_hatches_what_has_no_value():
    records = one_setting(blank(norms=("none",), lrs=(0.1,)))
    assert len(draw_shift_map(records, 0.1).axes[0].collections) == 1
    records.reference["std"].loc[{"site": "head", "step": 20}] = 0.0
    (_, dead) = draw_shift_map(records, 0.1).axes[0].collections
    assert dead.get_hatch() == "...." and len(dead.get_paths()) == 1
    for seed in (0, 1, 2):
        diverge(records, 12, **RUN, seed=seed)
    (_, ended) = draw_shift_map(records, 0.1).axes[0].collections
    assert ended.get_hatch() == "xxxx" and len(ended.get_paths()) == 3


def dots(figure: Figure) -> list[list[tuple[float, float]]]:
    return [
        [xy for line in axes.lines for xy in zip(line.get_xdata(), line.get_ydata(), strict=True)]
        for axes in figure.axes[:-1]
    ]


def test_shift_map_marks_cells_that_rest_on_fewer_seeds():
    records = one_setting(blank(lrs=(0.1,)))
    assert dots(draw_shift_map(records, 0.1)) == [[], []]
    assert "White dot" not in words(draw_shift_map(records, 0.1))
    dead = {"norm": "none", "site": "head", "step": 10}
    records.reference["std"].loc[dead | {"seed": 1}] = 0.0
    figure = draw_shift_map(records, 0.1)
    assert dots(figure) == [[(10, 2)], []]
    assert "White dot: the median rests on fewer seeds" in words(figure)
    # A diverged seed is in no cell, as the panel's title says, and marks none.
    diverge(records, 5, **RUN, seed=1)
    figure = draw_shift_map(records, 0.1)
    assert dots(figure) == [[], []] and "none (2 of 3 seeds)" in words(figure)


@pytest.mark.parametrize(
    "nodes, absent",
    [
        (("probe",), {"layer_inputs"}),
        (("reference",), {"shift_map"}),
        (("probe", "reference"), {"layer_inputs", "shift_map"}),
    ],
)
def test_what_was_not_recorded_is_left_out(
    nodes: tuple[str, ...],
    absent: set[str],
    tmp_path: Path,
    drawn: list[tuple[str, Figure]],
):
    with pytest.warns(UserWarning, match="were not recorded") as caught:
        draw_all(without_moments(*nodes), tmp_path)
    assert {name for name, _ in drawn} == set(KINDS) - absent
    (line,) = [str(warning.message) for warning in caught]
    assert all(kind in line for kind in absent)


def test_a_figure_of_what_was_not_recorded():
    records = one_setting(without_moments("probe", "reference"))
    with pytest.raises(InputError, match="no mean and std of layer inputs over training"):
        draw_layer_inputs(records, 0.1)
    with pytest.raises(InputError, match="no mean and std of layer inputs"):
        draw_shift_map(records, 0.1)


def test_captions_name_what_is_shown(tmp_path: Path):
    records = one_setting(blank(steps=200))
    figures = {
        "128 training examples": draw_shift_map(records, 0.1, "lr: the rule."),
        "percentile over the units": draw_layer_inputs(records, 0.1, "lr: the rule."),
        "12 runs of 200 steps, adam, batch 128, 0 diverged": draw_loss_curves(records),
        "Median and min–max of 3 seeds": draw_final_loss(records),
    }
    for text, figure in figures.items():
        assert text in words(figure)
    assert "lr: the rule." in words(figures["128 training examples"])


def test_the_telling_learning_rate():
    records = one_setting(blank(lrs=(0.001, 0.01, 0.1, 1.0)))
    records.train["loss"][:] = np.linspace(1, 0.5, 20)
    assert telling_lr(records)[0] == 1.0
    for seed in (0, 1, 2):
        diverge(records, 5, norm="none", lr=1.0, seed=seed)
    diverge(records, 5, norm="none", lr=0.1, seed=0)
    assert telling_lr(records) == (
        0.1,
        "lr: the largest at which the network without norm still trains in most seeds with fewer "
        "than 85 % of the units dead at head.",
    )
    diverge(records, 5, norm="none", lr=0.1, seed=1)
    assert telling_lr(records)[0] == 0.01  # one of three seeds is not most
    records.reference["std"].loc[{"norm": "none", "lr": 0.01, "step": 20}] = 0.0
    assert telling_lr(records)[0] == 0.001
    records.train["loss"].loc[{"norm": "none", "lr": 0.001}] = 2.0
    assert telling_lr(records) == (
        0.001,
        "lr: the smallest, as the network without norm trains in most seeds at none.",
    )


def test_the_telling_learning_rate_leaves_something_to_see():
    records = one_setting(blank(norms=("none",), lrs=(0.1, 0.001, 0.01), width=20))
    records.train["loss"][:] = np.linspace(1, 0.5, 20)
    records.reference = records.reference.assign_coords(feature=np.arange(20))

    def kill(n: int, lr: float, seeds: list[int]) -> None:
        at = {"lr": lr, "seed": seeds, "site": "head", "step": 20}
        records.reference["std"].loc[at | {"feature": slice(0, n - 1)}] = 0.0

    kill(17, 0.1, [0])
    assert telling_lr(records)[0] == 0.1  # in one seed of three
    kill(16, 0.1, [0, 1, 2])
    assert telling_lr(records)[0] == 0.1  # the 85th percentile is that of a live unit
    kill(17, 0.1, [0, 1])
    assert telling_lr(records)[0] == 0.01
    kill(19, 0.01, [0, 1, 2])
    kill(17, 0.001, [0, 1, 2])
    assert telling_lr(records) == (
        0.1,
        "lr: the largest at which the network without norm still trains in most seeds; at none "
        "with fewer than 85 % of the units dead at head.",
    )


def test_the_telling_learning_rate_without_such_networks():
    records = one_setting(blank(norms=("batch", "layer")))
    records.train["loss"][:] = np.linspace(1, 0.5, 20)
    records.train["loss"].loc[{"norm": "layer", "lr": 0.1}] = 2.0
    assert telling_lr(records) == (
        0.01,
        "lr: the largest at which every norm still trains in most seeds with fewer than 85 % of "
        "the units dead at head.",
    )


@pytest.mark.parametrize(("asked", "told"), [(16, "16"), (500, "128")])
def test_the_reference_batch_is_told_in_examples(asked: int, told: str):
    # The made-up record counts 128 values of a unit: 8 positions of 16, or all examples there are.
    records = one_setting(plausible())
    records.experiment["reference_size"] = asked
    assert f"Fixed reference batch of {told} training examples" in words(
        draw_shift_map(records, 0.01)
    )
