"""The notebook runs as it stands, and what it shows is what the analysis says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import ici
from ici.analysis.records import score_variable
from ici.analysis.statistics import mean_interval
from ici.analysis.summary import whole_table

NOTEBOOK = Path(__file__).resolve().parents[1] / "experiments" / "paper_figure.ipynb"


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> nbformat.NotebookNode:
    nbclient = pytest.importorskip("nbclient")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder / ".jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def check_figure(folder: Path, results: ici.Results) -> None:
    assert (folder / "paper_figure.pdf").read_bytes().startswith(b"%PDF-")
    numbers = pd.read_csv(folder / "paper_figure.csv", keep_default_na=False, na_values=[""])
    whole = whole_table(results).isel(depth=0)
    scores = whole[f"validation_{score_variable(results)}"]
    assert len(numbers) == scores.sizes["norm"] * scores.sizes["lr"]
    for row in numbers.to_dict("records"):
        of = {"norm": row["norm"], "lr": row["lr"]}
        assert row["diverged"] == int(whole["diverged_at"].sel(of).notnull().sum())
        seeds = scores.sel(of).dropna("seed").values
        wanted = [np.nan] * 3
        if len(seeds):
            interval = mean_interval(seeds)
            wanted = [interval.estimate, interval.low, interval.high]
        assert [row["mean"], row["low"], row["high"]] == pytest.approx(wanted, nan_ok=True)


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.slow
def test_it_trains_where_no_record_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ICI_RECORD", raising=False)
    executed(tmp_path, monkeypatch)
    check_figure(tmp_path, ici.open(tmp_path / "runs" / "paper_figure"))


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_it_shows_a_record_that_is_there(tmp_path, monkeypatch, n_seeds):
    from tabled import tabled

    results = tabled(tmp_path / "record", seeds=tuple(range(n_seeds)))
    monkeypatch.setenv("ICI_RECORD", str(results.path))
    executed(tmp_path, monkeypatch)
    check_figure(tmp_path, results)
    numbers = pd.read_csv(tmp_path / "paper_figure.csv")
    assert numbers["low"].notna().any() == (n_seeds > 1)
