from __future__ import annotations

import numpy as np
import pytest

from ici.analysis.sensitivity import depth_of_failure, largest_stable_lr, lr_sensitivity
from ici.errors import InputError

NAN, INF = np.nan, np.inf


def test_sensitivity_by_hand():
    # best 1; the others lose 1, and 9 that is cut to the 4 between it and the start
    assert lr_sensitivity([2.0, 1.0, 10.0], 5.0) == pytest.approx((1 + 0 + 4) / 3)
    assert lr_sensitivity([1.0, 1.0], 5.0) == 0.0


@pytest.mark.parametrize("lost", [NAN, INF, 1e9])
def test_a_diverged_run_counts_as_the_start(lost):
    assert lr_sensitivity([1.0, lost], 3.0) == 1.0
    assert lr_sensitivity([lost, lost], 3.0) == 0.0  # nothing is better than anything


def test_many_at_once_along_any_axis():
    losses = np.asarray([[2.0, 1.0], [1.0, 1.0], [10.0, 3.0]])  # [lr, seed]
    np.testing.assert_allclose(
        lr_sensitivity(losses, [5.0, 2.0], axis=0), [(1 + 0 + 4) / 3, (0 + 0 + 1) / 3]
    )


def test_the_largest_rate_below_the_first_failure():
    lrs = [0.1, 0.3, 1.0]
    ok, one = [False, False], [False, True]
    assert largest_stable_lr(lrs, [ok, ok, ok]) == 1.0
    assert largest_stable_lr(lrs, [ok, one, ok]) == 0.1  # a lucky larger rate does not count
    assert largest_stable_lr(lrs, [one, ok, ok]) == 0.0
    np.testing.assert_array_equal(
        largest_stable_lr(lrs, [[ok, ok, one], [ok, one, one]]), [0.3, 0.1]
    )


def test_the_depth_from_which_nothing_trains():
    depths = [5, 10, 20]
    yes, no = [False, True], [False, False]
    assert depth_of_failure(depths, [yes, yes, yes]) == INF
    assert depth_of_failure(depths, [yes, no, yes]) == INF
    assert depth_of_failure(depths, [yes, no, no]) == 10
    assert depth_of_failure(depths, [no, no, no]) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr_sensitivity([1.0], 2.0), "losses of 1 learning rate"),
        (lambda: lr_sensitivity([1.0, 2.0], NAN), "loss_at_init is not finite"),
        (lambda: largest_stable_lr([0.1, 0.1], [[True], [True]]), "wanted increasing rates"),
        (lambda: largest_stable_lr([0.1], [[True], [True]]), "1 learning rates"),
        (lambda: depth_of_failure([2, 1], [[True], [True]]), "wanted increasing depths"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
