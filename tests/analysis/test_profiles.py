from __future__ import annotations

import numpy as np
import pytest

from ici.analysis.statistics import performance_profile, profile_score
from ici.errors import InputError

INF = np.inf
# Two workloads, three methods.
TIMES = [[100.0, 200.0, INF], [300.0, 100.0, 500.0]]


def test_profile_by_hand():
    found = performance_profile(TIMES, [1.0, 2.0, 3.0, 5.0])
    np.testing.assert_array_equal(found, [[0.5, 0.5, 1, 1], [0.5, 1, 1, 1], [0, 0, 0, 0.5]])


def test_score_is_the_area_below_the_profile():
    # Ratios 1 and 3; 2 and 1; never and 5, which lies beyond r = 4.
    np.testing.assert_allclose(profile_score(TIMES), [(1 + 1 / 3) / 2, (2 / 3 + 1) / 2, 0])
    grid = 1 + 3 * (np.arange(30_000) + 0.5) / 30_000
    np.testing.assert_allclose(
        profile_score(TIMES), performance_profile(TIMES, grid).mean(axis=1), atol=1e-4
    )


def test_a_workload_that_nobody_solves_counts_against_all():
    np.testing.assert_allclose(profile_score([[INF, INF], [10.0, 10.0]]), [0.5, 0.5])


def test_refusals():
    for bad in ([1.0, 2.0], [[0.0, 1.0]], [[np.nan, 1.0]]):
        with pytest.raises(InputError, match="wanted positive numbers"):
            profile_score(bad)
    with pytest.raises(InputError, match="largest_factor"):
        profile_score(TIMES, 1.0)
