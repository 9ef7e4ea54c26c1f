"""A record whose second group has begun and has no step yet."""

from __future__ import annotations

import numpy as np
import pytest
from tabled import MEASURED, tabled

import ici
from ici.store.manifest import Manifest

NODES = ("train", "probe", "reference", "evaluation", "runs")
SECOND = "norm=batch,depth=2"


@pytest.fixture
def folder(tmp_path):
    tabled(tmp_path, status="running")
    return tmp_path


def cut(folder, nodes, groups=None):
    """Takes the rows of some nodes back."""
    manifest = Manifest.read(folder)
    for name in groups or manifest.groups:
        manifest.groups[name].rows |= dict.fromkeys(nodes, 0)
        manifest.groups[name].write(folder, name)
    return ici.open(folder)


def test_what_the_first_has_is_read(folder):
    whole = ici.open(folder)
    begun = cut(folder, [*NODES, *MEASURED], [SECOND])
    for node in NODES:
        mine = getattr(begun, node)
        assert mine["norm"].values.tolist() == ["none"]
        alone = getattr(whole, node).sel(norm=["none"])
        labels = {dim: mine[dim] for dim in ("site", "block") if dim in mine.dims}
        alone = alone.sel(labels).isel(feature=slice(4), missing_dims="ignore")
        for name, values in mine.items():
            np.testing.assert_array_equal(values, alone[name].transpose(*values.dims))


def test_a_node_without_a_row_of_one_group_has_its_runs(folder):
    begun = cut(folder, ["probe"], [SECOND])
    probe = begun.probe
    assert probe["norm"].values.tolist() == begun.train["norm"].values.tolist() == ["none", "batch"]
    assert probe["mean"].sel(norm="batch").isnull().all()
    assert probe["mean"].sel(norm="none").notnull().any()


def test_a_node_without_any_row(folder):
    begun = cut(folder, ["probe"])
    assert begun.probe.sizes["step"] == 0 and begun.probe["norm"].size == 2
    assert not len(begun.to_dataframe("probe"))
