"""Tables hold what the arrays hold, to the bit, however they are split."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from fake_records import plausible
from tabled import DIVERGED, MULTIPLES, SITES, tabled

import ici.analysis.parts
from ici.analysis.anatomy import dissect_spikes
from ici.analysis.summary import whole_table
from ici.analysis.tables import PERCENTILES, iter_table, table, tables_of
from ici.errors import InputError
from ici.store.manifest import Manifest
from ici.store.results import Results, open_results

RUN = ["norm", "depth", "lr", "seed"]
NODES = ("train", "evaluation", "reference", "probe", "updates", "landscape", "attribution")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return tabled(tmp_path_factory.mktemp("tables") / "record")


def node_of(results: Results, name: str) -> xr.Dataset:
    if name in ("landscape", "attribution"):
        return results.measurement(name)
    return results.probe if name == "updates" else getattr(results, name)


def spread(frame: pd.DataFrame, name: str, like: xr.DataArray, also: tuple[str, ...] = ()):
    """A column at its labels' places in an array like `like`, NaN elsewhere."""
    dims = [*like.dims, *also]
    places = {}
    for dim in dims:
        labels = like[dim].values if dim in like.coords else np.arange(like.sizes[dim])
        order = {label: i for i, label in enumerate(labels.tolist())}
        places[dim] = frame[dim].map(order).to_numpy(np.int64)
    values = np.full(like.shape, np.nan, like.dtype)
    values[tuple(places[dim] for dim in dims)] = frame[name].to_numpy()
    return values


@pytest.mark.parametrize("what", NODES)
def test_values_are_those_of_the_arrays(results, what):
    frame, node = table(results, what, features=True), node_of(results, what)
    own = [str(n) for n, v in node.items() if ("site" not in v.dims) or what != "updates"]
    if what in ("probe", "updates"):
        own = [n for n in own if ("site" in node[n].dims) == (what == "probe")]
    known = {*RUN, "step", "site", "feature", "block", "multiple"}
    assert set(frame.columns) - known == set(own) and own
    for name in own:
        assert frame[name].dtype == node[name].dtype == np.float32
        np.testing.assert_array_equal(spread(frame, name, node[name]), node[name].values)
    assert not frame.duplicated([c for c in frame.columns if c in known]).any()
    assert frame["step"].dtype == np.int64


def test_percentiles_are_over_the_features_a_site_has(results):
    frame, node = table(results, "probe"), results.probe
    columns = ["count", *(f"{name}_p{q}" for name in ("mean", "std") for q in (15, 50, 85))]
    assert list(frame.columns) == [*RUN, "step", "site", *columns]
    assert frame["mean_p50"].dtype == np.float32
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        for name in ("mean", "std"):
            for q in PERCENTILES:
                over = node[name].transpose(..., "feature")
                wanted = np.nanpercentile(over.values.astype(float), q, axis=-1).astype(np.float32)
                like = over.isel(feature=0)
                np.testing.assert_array_equal(spread(frame, f"{name}_p{q}", like), wanted)


def test_rows_end_where_runs_end(results):
    lane, step = DIVERGED["none"]
    train = table(results, "train")
    ended = train[(train.norm == "none") & (train.lr == 0.1) & (train.seed == lane % 3)]
    # The refused loss is no number, and its step is there all the same.
    assert ended.step.tolist() == list(range(step + 1)) and np.isnan(ended.loss.iloc[-1])
    assert len(train) == 24 * 11 + step + 1
    probed = table(results, "probe")
    assert set(probed[probed.norm == "none"].site) == set(SITES["none"])
    assert set(probed[probed.norm == "batch"].site) == set(SITES["batch"])
    assert probed[probed.norm == "none"].groupby(RUN, observed=True).step.max().min() == step - 1


def test_a_row_per_run(results):
    frame, whole = table(results), whole_table(results)
    assert frame.equals(results.to_dataframe())
    assert len(frame) == 12
    for name, values in whole.items():
        wanted = values.transpose(*RUN).values
        assert frame[name].dtype == wanted.dtype
        np.testing.assert_array_equal(frame[name].to_numpy().reshape(wanted.shape), wanted)
    of = frame[frame.diverged_at.notna()]
    assert of.cause.tolist() == ["loss not finite"] and of.outcome.tolist() == ["diverged"]
    assert set(frame[frame.diverged_at.isna()].cause) == {""}


def test_a_row_per_spike():
    records = plausible(n_layers=2, width=8, norms=("none", "batch"), lrs=(1e-3, 1e-2))
    frame, spikes = table(records, "spikes"), dissect_spikes(records).spikes
    assert len(frame) == len(spikes) > 2
    for row, spike in zip(frame.to_dict("records"), spikes, strict=True):
        assert {dim: row[dim] for dim in RUN} == spike.run
        event = spike.event
        assert (row["onset"], row["peak"], row["height"]) == (event.onset, event.peak, event.height)
        assert row["recovery_steps"] == event.recovery_steps
        assert pd.isna(row["end"]) if event.end is None else row["end"] == event.end
        assert row["first_mover"] == spike.movers[0].site if spike.movers else True
        assert pd.isna(row["first_mover"]) == (not spike.movers)
        np.testing.assert_equal(row["lead_steps"], spike.lead_steps)


@pytest.mark.parametrize("what", ["runs", *NODES, "spikes"])
def test_parts_make_the_same_table(results, what, monkeypatch):
    whole, n_whole = table(results, what), len(list(iter_table(results, what)))
    monkeypatch.setattr(ici.analysis.parts, "MAX_PART_BYTES", 1)
    parts = list(iter_table(results, what))
    assert len(parts) > n_whole
    assert all((part.dtypes == whole.dtypes).all() for part in parts)
    joined = pd.concat(parts, ignore_index=True)
    # Learning rates, which runs and spikes are split by, come before seeds in either.
    pd.testing.assert_frame_equal(joined, whole)


def test_labels_are_categories_of_the_whole_record(results):
    for what in tables_of(results):
        frame = table(results, what)
        assert frame["norm"].cat.categories.tolist() == ["none", "batch"]
        assert frame["lr"].cat.categories.tolist() == [0.01, 0.1]
    assert table(results, "landscape")["multiple"].cat.categories.tolist() == list(MULTIPLES)


def test_other_names_are_refused_with_those_there_are(results):
    named = ("runs", "train", "evaluation", "reference", "probe", "updates", "spikes")
    assert tables_of(results) == (*named, "landscape", "attribution")
    with pytest.raises(InputError, match=r"unknown table 'trian'.*runs.*Did you mean 'train'"):
        results.to_dataframe("trian")


def test_a_record_without_moments_has_no_such_tables(results):
    records = plausible(n_layers=1, width=2, norms=("none",), lrs=(1e-3,), steps=60)
    records.probe = records.probe[[]]
    assert tables_of(records) == ("runs", "train", "evaluation", "reference", "spikes")
    frame = table(records, "spikes")
    assert len(frame) == 0 and frame["onset"].dtype == np.int64


def test_nothing_committed_is_told(tmp_path):
    Manifest({"name": "n", "norm": ["none"], "depth": [1]}, "f", "d", {}).write(tmp_path)
    with pytest.raises(InputError, match="no step yet"):
        tables_of(open_results(tmp_path))


def test_a_run_that_goes_on_has_its_first_steps(tmp_path):
    results = tabled(tmp_path, status="running", committed=4)
    assert table(results, "train").step.tolist() == np.repeat([0, 1, 2, 3] * 2, 6).tolist()
    assert set(table(results).outcome) == {"still going"}
