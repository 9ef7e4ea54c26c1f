"""What the page holds: numbers packed to 2⁻¹⁶, captions with their constants."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from fake_records import blank, diverge, plausible
from hypothesis import given
from hypothesis import strategies as st

from ici.analysis.digest import digest
from ici.report.page.content import content, pack
from ici.report.page.page import page


def unpacked(packed: dict) -> np.ndarray:
    """Written apart from the page's own reader: three bytes a number, most significant first."""
    raw = base64.b64decode(packed["data"])
    words = [
        int.from_bytes(raw[i : i + 3], "big").to_bytes(3, "big") + b"\0"
        for i in range(0, len(raw), 3)
    ]
    return np.frombuffer(b"".join(words), ">f4").astype(np.float32).reshape(packed["shape"])


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=30))
def test_packing_keeps_sixteen_bits(numbers):
    wanted = np.array(numbers, np.float32)
    found = unpacked(pack(wanted))
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_array_equal(found[np.isinf(wanted)], wanted[np.isinf(wanted)])
    # The largest numbers may become infinite, the smallest (subnormal) lose digits.
    largest, smallest = np.finfo(np.float32).max * (1 - 2**-16), 2.0**-126
    usual = finite & (np.abs(wanted) < largest) & (np.abs(wanted) >= smallest)
    error = np.abs(found[usual].astype(float) - wanted[usual]) / np.abs(wanted[usual].astype(float))
    assert (error <= 2**-16).all()
    np.testing.assert_array_equal(found[wanted == 0], 0)


def test_shapes_and_order_survive():
    values = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    np.testing.assert_array_equal(unpacked(pack(values)), values)
    assert pack(np.zeros((0, 3)))["shape"] == [0, 3]


@pytest.fixture(scope="module")
def records():
    found = plausible(width=8, n_layers=3, lrs=(1e-2, 1e-1), steps=300)
    found.experiment["probe"] = {"every": 10}
    return found


def test_runs_are_those_of_the_digest(records):
    read = digest(records)
    shown = content(read)
    for key, name in (("finalLoss", "final_loss"), ("divergedAt", "diverged_at")):
        found = unpacked(shown["runs"][key])
        wanted = read.runs[name].transpose("depth", "norm", "lr", "seed").values
        np.testing.assert_allclose(found, wanted, rtol=2**-15)
    outcomes = np.array(shown["outcomes"])[unpacked(shown["runs"]["outcome"]).astype(int)]
    wanted = read.runs["outcome"].transpose("depth", "norm", "lr", "seed").values
    np.testing.assert_array_equal(outcomes, wanted)
    best = shown["bestLr"][0][shown["norms"].index("batch")]
    assert shown["lrs"][best] == 0.01


def test_every_caption_says_what_it_rests_on(records):
    shown = content(digest(records))["captions"]
    assert "3 seeds" in shown["curves"] and ">= 6 std" in shown["curves"]
    assert "512 examples" in shown["shift"] and "exactly 0" in shown["shift"]
    assert "every 10 steps" in shown["inputs"]
    assert "last 15 steps" in shown["phase"] and "selects its norm" in shown["phase"]
    assert "75% acc." in shown["survival"] and "95 %" in shown["survival"]
    assert "One seed: no interval" in content(digest(blank(seeds=(0,))))["captions"]["curves"]


def test_json_has_no_nan_even_where_everything_diverged():
    records = blank(seeds=(0,))
    for norm in ("none", "batch"):
        for lr in (0.01, 0.1):
            diverge(records, 3, norm=norm, lr=lr, seed=0)
    text = page([content(digest(records)) | {"firstSetting": 0, "firstLr": 0}])
    start = text.index('type="application/json">') + len('type="application/json">')
    data = json.loads(
        text[start : text.index("</script>", start)],
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert data["experiments"][0]["bestLr"] == [[None, None]]
