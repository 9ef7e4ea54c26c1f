"""Layer inputs of different experiments side by side."""

from __future__ import annotations

import re

import numpy as np
import pytest
from fake_records import FakeRecords, blank, diverge

from ici.analysis.alignment import site_shifts
from ici.analysis.digest import digest
from ici.errors import InputError

SITES = ("first", "second")


def moved(by: dict[str, float], **more) -> FakeRecords:
    """At the end, every site of a norm has moved by this many standard deviations."""
    records = blank(norms=tuple(by), sites=SITES, **more)
    for norm, shift in by.items():
        records.reference["mean"].loc[{"norm": norm, "step": 20}] = shift
    return records


def shifts(**records: FakeRecords) -> dict[str, float]:
    return site_shifts({name: digest(each) for name, each in records.items()})[0][1]


def test_only_norms_that_all_have_are_in_the_medians():
    both = moved({"none": 1.0, "batch": 9.0})
    assert shifts(A=both, B=moved({"none": 2.0})) == {"A": 1.0, "B": 2.0}
    assert shifts(A=both, B=moved({"none": 2.0, "batch": 4.0})) == {"A": 5.0, "B": 3.0}


def test_only_rates_that_all_have_are_in_the_medians():
    wide = moved({"none": 1.0}, lrs=(0.01, 0.1, 1.0))
    wide.reference["mean"].loc[{"lr": [0.1, 1.0], "step": 20}] = 7.0
    narrow = moved({"none": 2.0}, lrs=(0.01,))
    assert shifts(A=wide, B=narrow) == {"A": 1.0, "B": 2.0}


def test_one_norm_each_is_what_is_compared():
    assert shifts(A=moved({"none": 1.0}), B=moved({"batch": 2.0})) == {"A": 1.0, "B": 2.0}


def test_settings_at_which_every_seed_diverged_do_not_count_as_unmoved():
    records = moved({"none": 3.0})
    for seed in (0, 1, 2):
        # Before the second measurement: that of step 0, an exact 0, is the last.
        diverge(records, 5, norm="none", lr=0.1, seed=seed)
    # One seed of the other rate is no loss: the others speak for it.
    diverge(records, 5, norm="none", lr=0.01, seed=0)
    assert shifts(A=records, B=moved({"none": 2.0})) == {"A": 3.0, "B": 2.0}
    for seed in (1, 2):
        diverge(records, 5, norm="none", lr=0.01, seed=seed)
    with pytest.raises(InputError, match="in no setting of A"):
        shifts(A=records, B=moved({"none": 2.0}))


def by_depth(sites: tuple[str, ...], others: tuple[str, ...]) -> dict[str, str]:
    """Of each site of the first experiment, the one of the other that it is matched with."""
    pair = {"A": digest(blank(sites=sites)), "B": digest(blank(sites=others))}
    labels = [label for label, _ in site_shifts(pair, "depth")]
    named = [re.fullmatch(r"(\S+) \(([\d.]+)(?:; B: (\S+))?\)", label) for label in labels]
    assert all(named)
    return {match[1]: match[3] or match[1] for match in named if match}


NORMED = ("blocks/0/linear", "blocks/0/norm", "blocks/1/linear", "blocks/1/norm", "head")
PLAIN = ("blocks/0/linear", "blocks/1/linear", "blocks/2/linear", "head")


def test_by_depth_like_is_matched_with_like():
    found = by_depth(NORMED, PLAIN)
    assert found["blocks/0/linear"] == "blocks/0/linear" and found["head"] == "head"
    assert found["blocks/1/linear"] in ("blocks/1/linear", "blocks/2/linear")
    # The other has no norm: whatever is nearest, by its own name.
    assert found["blocks/0/norm"] == "blocks/1/linear"
    longer = ("a/linear", "a/norm", "b/linear", "b/norm", "c/linear", "c/norm", "head")
    for site, other in by_depth(longer, NORMED).items():
        assert site.split("/")[-1] == other.split("/")[-1], (site, other)


def test_likeness_does_not_reach_across_the_network():
    far = ("in/norm", "x/linear", "y/linear", "z/linear", "out")
    found = by_depth(("in", "p/a", "q/a", "r/norm", "s/a", "t/a"), far)
    assert found["r/norm"] != "in/norm"
    assert np.isin(list(found.values()), far).all()


def test_sites_by_name_and_by_relative_depth():
    short_, long_ = blank(sites=("in", "mid", "out")), blank(sites=("a", "b", "c", "d", "e"))
    for records in (short_, long_):
        places = np.arange(records.reference.sizes["site"], dtype=float)
        at_end = records.reference["mean"].sel(step=20)
        records.reference["mean"].loc[{"step": 20}] = at_end + places[:, None]
    digests = {"A": digest(short_), "B": digest(long_)}
    with pytest.raises(InputError, match="--align depth"):
        site_shifts(digests)
    found = site_shifts(digests, "depth")
    # Whose site it is stands there, since another name may be another kind of layer.
    assert [name for name, _ in found] == [
        f"{site} ({i / 4:.2f}; A: {other})"
        for i, (site, other) in enumerate(
            zip("abcde", ("in", "in", "mid", "out", "out"), strict=True)
        )
    ]
    # The ends meet, and the middles.
    assert [found[i][1] for i in (0, 2, 4)] == [
        {"A": 0.0, "B": 0.0},
        {"A": 1.0, "B": 2.0},
        {"A": 2.0, "B": 4.0},
    ]
    same = site_shifts({"A": digest(short_), "B": digest(short_)})
    assert [name for name, _ in same] == ["in", "mid", "out"]
