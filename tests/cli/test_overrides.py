"""Options change the experiment that a file defines."""

from __future__ import annotations

import dataclasses
import io

import pytest

import ici
from ici.cli.overrides import override

EXPERIMENT = ici.Experiment(name="x", data="synthetic", model=ici.MLPConfig(width=8))


def given(*arguments):
    return override(EXPERIMENT, list(arguments), "ici run x.py")


@pytest.mark.parametrize(
    "option",
    [
        "--out a_b",
        "--out a=b",
        "--name a_b",
        "--schedule cosine",
        "--data digits",
        "--data movie_reviews",
        "--model mlp",
        "--init small_gaussian",
        "--probe.select */norm_1",
        "--probe.stats effective_rank",
        "--eval_every 20",
        "--lr -1e-3",
    ],
)
def test_equals_sign_is_as_good_as_a_space(option):
    key, value = option.split()
    try:
        expected = given(key, value)
    except ici.InputError as error:
        with pytest.raises(ici.InputError) as caught:
            given(f"{key}={value}")
        assert str(caught.value) == str(error)
    else:
        assert given(f"{key}={value}") == expected
        assert expected != given()


def test_only_the_key_is_rewritten():
    experiment, options = given(
        "--out=a_b", "--name=c_d", "--eval_every=20", "--init=small_gaussian"
    )
    assert (options.out, experiment.name, experiment.eval_every) == ("a_b", "c_d", 20)
    assert experiment.model == ici.MLPConfig(width=8, init="small_gaussian")
    assert given("--out=a=b")[1].out == "a=b"


def test_several_values_follow_an_equals_sign():
    assert given("--lr=1e-3", "1e-2")[0].lr == (1e-3, 1e-2)


def test_nothing_given_changes_nothing():
    experiment, _ = given()
    for each in dataclasses.fields(experiment):
        assert getattr(experiment, each.name) == getattr(EXPERIMENT, each.name)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize("terminal", [False, True])
def test_refusals_are_whole_in_any_terminal(monkeypatch, encoding, columns, terminal):
    output = io.TextIOWrapper(io.BytesIO(), encoding)
    output.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(ici.InputError) as caught:
        given("--activation", "swish")
    wanted = "wanted one of gelu, relu, sigmoid, silu, tanh."
    assert str(caught.value) == f"unknown activation 'swish': {wanted}"
    with pytest.raises(ici.InputError, match="^Error parsing --devices: .* from .'few'.: wanted"):
        given("--devices", "few")
