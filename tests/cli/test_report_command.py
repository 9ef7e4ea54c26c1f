"""``ici report``: answers, comparisons, page and figures of one record or several."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest
from tabled import tabled

from ici.analysis.compare import compare
from ici.analysis.digest import digest
from ici.cli import main
from ici.store.manifest import MANIFEST


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return tabled(tmp_path_factory.mktemp("reported") / "record")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Figures have tests of their own, and take most of the time."""
    monkeypatch.setattr("ici.report.figures.draw_all", lambda *arguments: [])


def test_leads_with_answers_and_writes_the_page(record, tmp_path, capsys):
    assert main(["report", str(record.path), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.index("Which norm trains best") < out.index("final")
    page = (tmp_path / "report.html").read_text()
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found is not None
    (shown,) = json.loads(found[1])["experiments"]
    assert shown["norms"] == record.experiment["norm"]
    assert not (tmp_path / "comparison.csv").exists()
    assert str(tmp_path / "report.html") in out.replace("\n", "")


def test_comparison_is_printed_written_and_on_the_page(record, tmp_path, capsys):
    words = ["report", str(record.path), "--out", str(tmp_path), "--compare", "norm"]
    assert main([*words, "--baseline", "batch", "--level", "0.9"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    wanted = compare(digest(record), "norm", "batch", level=0.9)
    assert "batch against none" in out and "90 % Student t interval" in out
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == [row.verdict for row in wanted.rows]
    assert [row["baseline"] for row in rows] == ["batch"] * len(wanted.rows)
    difference = wanted.rows[0].effect
    assert difference is not None
    assert float(rows[0]["difference"]) == pytest.approx(difference.difference.estimate)
    assert "Comparison by norm" in (tmp_path / "report.html").read_text()


def test_two_records_are_compared_without_being_asked(record, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(record.path, other)
    assert main(["report", str(record.path), str(other), "--out", str(tmp_path / "o")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Comparison by experiment" in out and "equal in every run" in out
    assert "matched by name" in out


def test_records_that_cannot_be_compared_are_still_shown(record, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(record.path, other)
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["task"] = "regression"
    (other / MANIFEST).write_text(json.dumps(manifest))
    words = ["report", str(record.path), str(other), "--out", str(tmp_path / "o")]
    assert main(words) == 0
    assert "Not compared: experiments of different tasks" in capsys.readouterr().out
    assert (tmp_path / "o" / "report.html").exists()
    # Asked for, it is an error.
    assert main([*words, "--compare", "experiments"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--compare nor", "wanted one of norm, depth, lr or experiments"),
        ("--compare depth", "has the one value 2"),
        ("--compare experiments", "one record given"),
        ("--lr 7", "no run has it"),
        ("--level 95", "wanted a share such as 0.95"),
        ("--at worst", "wanted ici report RUN"),
        ("--nonsense", "wanted ici report RUN"),
    ],
)
def test_bad_input_is_told_before_anything_is_read(record, tmp_path, capsys, words, message):
    out = tmp_path / "o"
    assert main(["report", str(record.path), "--out", str(out), *words.split()]) == 2
    told = capsys.readouterr()
    assert message in told.err and not told.out and not out.exists()


def test_a_record_still_going_says_so(tmp_path, capsys):
    record = tabled(tmp_path / "going", status="running", committed=3)
    assert main(["report", str(record.path)]) == 0
    assert "still going" in capsys.readouterr().out


def test_one_seed_has_no_interval_and_no_verdict(tmp_path, capsys):
    record = tabled(tmp_path / "one", seeds=(0,))
    assert main(["report", str(record.path), "--compare", "norm"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "One seed: no interval and no verdict is possible" in out
    assert (
        "one seed: no verdict" in out and "distinguishable" not in out.split("Comparison")[1][:900]
    )
