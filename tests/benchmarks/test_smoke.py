"""The benchmark harness runs, at sizes that say nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_harness_runs_and_writes_what_the_table_shows(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--json", str(tmp_path / "out.json")]
    command += ["--only", "throughput", "arithmetic", "memory", "pytorch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["environment"]["versions"]["jax"] and record["size"] == "smoke"
    rows = {row["label"]: row for row in record["rows"]}
    assert len(rows) >= 4
    for label, row in rows.items():
        assert row["skipped"] or (row["values"] and row["median"] is not None), label
