"""docs/tables.md, the units in the files, and what is recorded speak of the same columns."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ici.analysis.columns import COLUMNS, LABELS, POSITIONS, UNKNOWN, Column, column
from ici.config.checks import SWEPT
from ici.dissect import measurements
from ici.measure.statistics import statistic, statistic_names

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tables.md"


def sections() -> dict[str, dict[str, Column]]:
    found: dict[str, dict[str, Column]] = {}
    name = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            name = line.removeprefix("## ")
            found[name] = {}
        row = re.fullmatch(r"\| `(.+?)` \| (.+) \| (.+) \|", line)
        if row:
            assert row[1] not in found[name], line
            found[name][row[1]] = Column(row[2], row[3])
    return found


def test_the_page_has_every_column():
    wanted = {"labels": LABELS, "positions": POSITIONS} | COLUMNS
    shared = COLUMNS["reference"]
    wanted["probe"] = {n: c for n, c in COLUMNS["probe"].items() if n not in shared}
    assert sections() == wanted
    assert COLUMNS["probe"].items() >= shared.items()


def test_labels_are_what_is_swept():
    assert set(LABELS) == set(SWEPT)


@pytest.mark.parametrize("name", measurements.names())
def test_a_measurement_has_its_columns(name):
    assert set(COLUMNS[name]) == set(measurements.measurement(name).dims)


def recorded(name: str) -> set[str]:
    return set(jax.eval_shape(lambda: labelled(statistic(name))))


def labelled(kind) -> dict[str, jax.Array]:
    where = getattr(kind, "where", "input")
    if where == "attention":
        heads = jnp.ones((1, 3, 2, 4))
        return kind.of(heads, heads).labelled()
    if where == "block":
        return kind.of(*jnp.ones((3, 2))).labelled()
    return kind.of(jnp.ones((8, 4))).labelled()


def test_every_statistic_has_its_columns():
    # Other tests register statistics of their own.
    ours = [n for n in statistic_names() if statistic(n).__module__.startswith("ici.")]
    found = {name: recorded(name) for name in ours}
    assert found.pop("updates") == set(COLUMNS["updates"])
    every = set().union(*found.values())
    assert all(column("reference", name) is not UNKNOWN for name in every)
    described = {re.sub(r"percentile_\d+", "percentile_Q", name) for name in every}
    assert described == set(COLUMNS["reference"])


def test_units_of_percentiles_and_of_what_is_unknown():
    assert column("reference", "mean_p50").unit == column("reference", "mean").unit != "1"
    assert column("reference", "percentile_15_p85").unit == "units of x"
    assert column("probe", "skewness_p15").unit == "1"
    assert column("reference", "mine") is column("train", "loss_p50") is UNKNOWN
    assert column("reference", "mine_p50").unit == UNKNOWN.unit
