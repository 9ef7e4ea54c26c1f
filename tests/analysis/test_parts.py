"""A record read in parts is the record read whole, bit for bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import xarray as xr
from fake_records import blank

import ici
from ici.analysis import digest as digest_module
from ici.analysis import summary as summary_module
from ici.analysis.anatomy import dissect_spikes
from ici.analysis.answers import answers
from ici.analysis.digest import Digest, digest
from ici.analysis.parts import common_sites, gathered, groups_of, in_memory, lined_up, parts
from ici.analysis.records import NODES, select
from ici.analysis.summary import joined, run_table, summarise, whole_table
from ici.data import Arrays
from ici.errors import InputError
from ici.measure.spikes import spike_rule

RULE = spike_rule(None, window=4, k=2.0)


def tiny(**changes) -> ici.Experiment:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 96).astype(np.int32)
    inputs = (rng.normal(size=(96, 5)) + labels[:, None]).astype(np.float32)
    settings = {
        "name": "parts",
        "data": Arrays(train=(inputs[:64], labels[:64]), validation=(inputs[64:], labels[64:])),
        "model": ici.MLPConfig(width=6),
        "norm": ("none", "batch"),
        "depth": (2, 4),
        # The largest one diverges without a norm.
        "lr": (1e-2, 1e-1, 1e6),
        "seed": (0, 1),
        "steps": 40,
        "batch_size": 8,
        "probe": ici.Probe(stats=("moments", "updates"), every=2),
        "reference_size": 16,
        "reference_every": 10,
        "eval_every": 10,
        "optimizer": "sgd",
    }
    return ici.Experiment(**(settings | changes))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return ici.run(tiny(), tmp_path_factory.mktemp("parts") / "out")


def same(one: xr.Dataset | None, other: xr.Dataset | None) -> None:
    """Equal to the last bit, coordinates and their order, data types and attributes included."""
    assert one is not None and other is not None
    xr.testing.assert_identical(one, other)
    assert {name: one[name].dtype for name in one} == {name: other[name].dtype for name in other}


def same_digest(one: Digest, other: Digest, leave_out: tuple[str, ...] = ()) -> None:
    same(one.runs.drop_vars(leave_out), other.runs.drop_vars(leave_out))
    for name in ("curves", "shift", "inputs", "gradients"):
        same(getattr(one, name), getattr(other, name))
    xr.testing.assert_identical(one.scores, other.scores)
    assert (one.sites, one.target, one.spikes.lead) == (
        other.sites,
        other.target,
        other.spikes.lead,
    )
    # The order of spikes is that of the parts.
    assert sorted(map(repr, one.spikes.spikes)) == sorted(map(repr, other.spikes.spikes))


@pytest.mark.slow
def test_the_record_is_a_demanding_one(results):
    sites = [group.reference["site"].values.tolist() for group in groups_of(results)]
    assert len({len(each) for each in sites}) == 2
    assert 0 < int(results.runs["diverged_at"].notnull().sum()) < 24
    assert len(dissect_spikes(results, RULE).spikes) > 1


@pytest.mark.slow
def test_parts_hold_every_run_once(results):
    for max_bytes, n_parts in ((1 << 28, 4), (1, 12)):
        found = list(parts(results, max_bytes))
        assert len(found) == n_parts
        runs = [
            (norm, depth, lr, seed)
            for part in found
            for norm in part.runs["norm"].values.tolist()
            for depth in part.runs["depth"].values.tolist()
            for lr in part.runs["lr"].values.tolist()
            for seed in part.runs["seed"].values.tolist()
        ]
        assert len(runs) == len(set(runs)) == 24


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [1 << 28, 1])
def test_tables_of_parts_are_the_whole_table(results, max_bytes: int):
    site = common_sites(results)[-1]
    whole = run_table(in_memory(results), RULE, site)
    tables = [run_table(part, RULE, site) for part in parts(results, max_bytes)]
    same(joined(tables, results), whole)
    # In whatever order the parts come.
    same(joined(tables[::-1], results), whole)


@pytest.mark.slow
def test_the_summary_does_not_depend_on_the_split(results, monkeypatch):
    whole, summary = whole_table(results, RULE), summarise(results, RULE)
    same(whole, whole_table(in_memory(results), RULE))
    monkeypatch.setattr(summary_module, "parts", partial(parts, max_bytes=1))
    same(whole_table(results, RULE), whole)
    same(summarise(results, RULE), summary)


@pytest.mark.slow
def test_the_digest_does_not_depend_on_the_split(results, monkeypatch):
    by_group = digest(results, RULE)
    monkeypatch.setattr(digest_module, "parts", partial(parts, max_bytes=1))
    same_digest(digest(results, RULE), by_group)
    # Seconds are in the manifest, which a record in memory does not have.
    memory = digest(in_memory(results), RULE)
    same_digest(memory, by_group, ("seconds_to_target",))
    assert np.isfinite(by_group.runs["seconds_to_target"]).any()


@pytest.mark.slow
def test_common_sites(results):
    assert common_sites(results) == results.group("none", 2).reference["site"].values.tolist()
    assert common_sites(in_memory(results)) == common_sites(results)


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [
        {"norm": "batch"},
        {"depth": 4, "lr": 0.1},
        {"norm": ["none", "batch"], "seed": [1]},
        {"norm": ["batch"], "depth": [4]},
        {"norm": "none", "depth": 2, "lr": 0.01, "seed": 0},
        {},
    ],
)
def test_gathered_is_select(results, labels: dict):
    found, expected = gathered(results, **labels), select(results, **labels)
    for node in NODES:
        one, other = getattr(found, node).load(), getattr(expected, node).load()
        # What is selected may know fewer sites and blocks than the whole record has.
        for dim in ("site", "block"):
            if dim in other.dims:
                rest = other.drop_sel({dim: one[dim].values})
                assert all(v.isnull().all() for v in rest.data_vars.values() if dim in v.dims)
                other = other.sel({dim: one[dim].values})
        one, other = (each.transpose(*sorted(map(str, each.dims))) for each in (one, other))
        xr.testing.assert_equal(one, other)


@pytest.mark.slow
def test_gathered_reads_only_what_is_asked_for(results):
    found = gathered(results, ["train"], norm="none", lr=[0.1])
    assert found.train["loss"].dims == ("depth", "lr", "seed", "step")
    assert not found.probe.data_vars and not found.reference.data_vars
    assert found.runs["diverged_at"].notnull().sum() == 0
    for bad in ({"norm": "layer"}, {"lr": [0.5]}, {"nonsense": 1}):
        with pytest.raises(InputError, match="wanted one of"):
            gathered(results, **bad)


# In memory.


def test_a_record_in_memory_is_one_part():
    records = blank()
    (part,) = parts(records, max_bytes=10**9)
    xr.testing.assert_identical(part.train, records.train)
    halves = list(parts(records, max_bytes=1))
    assert [part.runs["lr"].values.tolist() for part in halves] == [[0.01], [0.1]]
    assert sum(part.train.nbytes > 0 for part in halves) == 2


def test_parts_are_in_the_experiments_order():
    experiment = {"norm": ["batch", "none"], "lr": [0.1, 0.01]}

    def table(norm: str, lr: float, value: float) -> xr.Dataset:
        return xr.Dataset({"x": (("norm", "lr"), [[value]])}, {"norm": [norm], "lr": [lr]})

    pieces = [table("none", 0.01, 1.0), table("batch", 0.1, 2.0), table("none", 0.1, 3.0)]
    whole = lined_up(pieces, experiment)
    assert whole["norm"].values.tolist() == ["batch", "none"]
    assert whole["lr"].values.tolist() == [0.1, 0.01]
    np.testing.assert_array_equal(whole["x"], [[2.0, np.nan], [3.0, 1.0]])


def test_sites_are_in_execution_order():
    def table(depth: int, sites: list[str]) -> xr.Dataset:
        return xr.Dataset(
            {"x": (("depth", "site"), [[float(len(site)) for site in sites]])},
            {"depth": [depth], "site": sites},
        )

    whole = lined_up([table(1, ["stem", "a1", "head"]), table(2, ["stem", "a1", "a2", "head"])], {})
    assert whole["site"].values.tolist() == ["stem", "a1", "a2", "head"]
    np.testing.assert_array_equal(whole["x"].sel(depth=1), [4, 2, np.nan, 4])


def test_a_group_not_begun_is_going_and_has_no_cause():
    records = blank()
    tables = [
        run_table(select(records, norm=[norm], lr=[lr])).assign(cause="")
        for norm, lr in (("none", 0.01), ("none", 0.1), ("batch", 0.01))
    ]
    for i, table in enumerate(tables):
        tables[i] = table.assign(cause=xr.full_like(table["going"], "", dtype="<U20"))
    whole = joined(tables, records).sel(norm="batch", lr=0.1)
    assert whole["going"].all() and whole["going"].dtype == bool
    assert not whole["no_progress"].any() and (whole["cause"] == "").all()
    assert whole["final_loss"].isnull().all()


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("n_probes", [0, 1])
def test_a_record_that_crashed_at_once_has_a_digest(n_seeds: int, n_probes: int):
    records = blank(seeds=tuple(range(n_seeds)))
    like = records.probe["mean"].isel(site=0, feature=0, drop=True)
    blocks = xr.DataArray(np.ones(3), {"block": ["b/0", "b/1", "b/2"]}, ["block"])
    records.probe["block_gradient_norm"] = like * blocks
    records.probe = records.probe.isel(step=slice(0, n_probes))
    for name in ("train", "reference", "evaluation"):
        setattr(records, name, getattr(records, name).isel(step=slice(0, 1)))
    found = digest(records)
    assert found.runs["going"].all() and answers(found)
    assert (found.inputs is None) == (found.gradients is None) == (n_probes == 0)


def test_nothing_recorded_yet():
    records = blank()
    records.train = records.train.isel(step=slice(0, 0))
    with pytest.raises(InputError, match="wait for its first steps"):
        list(parts(records))
