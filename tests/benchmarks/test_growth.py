"""Large records in small: what the arithmetic awaits is what lies on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_growth_writes_the_chunks_that_the_arithmetic_awaits(tmp_path):
    command = [sys.executable, "-m", "benchmarks.growth", "--small", "--json"]
    command.append(str(tmp_path / "out.json"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["found"]
    assert len(found) == 5
    for each in found:
        awaited, written = each["expected"], each["written"]
        assert written["chunks"] == awaited["chunks"] > 0
        # Noise compresses little, and labels and descriptions take some KiB.
        assert 0.7 * awaited["mib"] < written["mib"] < 1.3 * awaited["mib"] + 0.05
    bounded = found[1]["expected"]
    assert bounded["chunks"] > found[0]["expected"]["chunks"] and bounded["chunk_mib"] < 0.01
