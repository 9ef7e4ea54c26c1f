"""One experiment file, several sizes."""

from __future__ import annotations

import pytest
from test_cli import EXPERIMENT

import ici
import ici.cli
from ici.cli.files import load_experiment, taken_scale
from ici.errors import InputError

SCALED = EXPERIMENT + (
    '\nimport dataclasses\nscales = {"full": dataclasses.replace(experiment, steps=40)}\n'
)


def written(tmp_path, text):
    path = tmp_path / "scaled.py"
    path.write_text(text)
    return str(path)


def test_a_scale_is_chosen_by_name(tmp_path):
    path = written(tmp_path, SCALED)
    assert load_experiment(path).steps == 20
    assert load_experiment(path, "full").steps == 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SCALED, r"has no scale 'ful': wanted one of its scales \(full\)"),
        (EXPERIMENT, r"has no scale 'ful': wanted one of its scales \(none\)"),
        (EXPERIMENT + "\nscales = [experiment]\n", "wanted `scales`, a dictionary"),
        (EXPERIMENT + "\nscales = {'ful': 3}\n", "wanted `scales`, a dictionary"),
    ],
)
def test_a_scale_that_is_not_there(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_experiment(written(tmp_path, text), "ful")


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        (["--steps", "3", "--scale", "full", "--lr", "1"], "full"),
        (["--scale=full"], "full"),
        (["--steps", "3"], None),
    ],
)
def test_the_option_is_found_anywhere(words, scale):
    assert taken_scale(words) == scale


@pytest.mark.parametrize("words", [["--scale"], ["--scale", "--steps"], ["--scale="]])
def test_an_option_without_a_value(words):
    with pytest.raises(InputError, match="--scale has no value"):
        taken_scale(words)


def test_the_command_line_changes_a_scale_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, SCALED)
    words = ["--scale", "full", "--norm", "none", "--lr", "1e-2", "--seed", "0", "--no-figures"]
    assert ici.cli.main(["run", path, *words]) == 0
    assert ici.open("runs/tiny").train.sizes["step"] == 40
