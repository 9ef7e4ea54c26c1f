"""``ici explain``."""

from __future__ import annotations

import pytest

from ici.cli import main


def test_one_quantity_and_the_list(capsys):
    assert main(["explain", "mean_shift"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mean_shift: (μ_b − μ_a) / σ_a") and "\nCaveats\n" in out
    assert main(["explain"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"moments", "mean_shift", "noise_floor", "spike_score"} <= set(names)
    assert main(["--help"]) == 0
    assert "ici explain [NAME]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["meanshift"], "unknown quantity 'meanshift'"),
        (["kl", "w2"], "ici explain kl w2: wanted one name"),
        (["--all"], "ici explain --all: wanted one name"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert main(["explain", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1
