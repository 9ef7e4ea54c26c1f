"""Every quantity explains itself from its docstring."""

from __future__ import annotations

import re

import pytest

import ici
from ici.errors import InputError
from ici.measure import statistic, statistic_names
from ici.quantities import _QUANTITIES, explanation, quantity_names, register_quantity

MEASURED = [*statistic_names(), "shift", "mean_shift", "kl", "wasserstein1", "noise_floor"]


@pytest.mark.parametrize("name", MEASURED)
def test_what_a_quantity_must_tell(name):
    found = explanation(name)
    assert found.summary.endswith(".") and "\n" not in found.summary
    assert found.sections["Cost"].startswith(("step: ", "reference: "))
    assert len(found.sections["Caveats"]) > 40
    if name not in ("extremes",):  # nobody's idea in particular
        assert "Source" in found.sections
    text = str(found)
    assert text.startswith(f"{name}: {found.summary}") and "\nCost\n  " in text
    assert "`" not in text and "Raises" not in text and "Args" not in text


def test_definition_of_one_field_is_its_own():
    kl = explanation("kl")
    assert kl.summary == "KL(a‖b) = ln(σ_b/σ_a) + (σ_a² + (μ_a − μ_b)²) / (2σ_b²) − ½, nats."
    assert not kl.definition and kl.sections == explanation("shift").sections
    assert explanation("skewness").summary.startswith("Mean of z³")
    shift = explanation("shift")
    assert "kl_symmetric: KL(a‖b) + KL(b‖a), nats." in shift.definition


@pytest.mark.parametrize(
    "name", ["gradient_shift", "attribution", "landscape", "sharpness", "wasserstein_shift"]
)
def test_measurements_on_models_explain_themselves(name):
    found = explanation(name)
    assert len(found.sections["Caveats"]) > 40
    assert found.sections["Cost"].startswith("reference: ")
    source = r"\((19|20|CVPR 20)\d\d\)|Introduced with this package"
    assert re.search(source, found.sections["Source"])


def test_every_registered_place_has_a_docstring():
    for name in quantity_names():
        assert explanation(name).summary != "not documented.", name


def test_printing(capsys):
    ici.explain("effective_rank")
    out = capsys.readouterr().out
    assert out.startswith("effective_rank: Exponential of the entropy") and "Roy & Vetterli" in out
    ici.explain()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(quantity_names())
    assert any(line.split(maxsplit=1)[0] == "noise_floor" for line in lines)


def test_unknown_names_list_the_nearest():
    with pytest.raises(InputError, match="unknown quantity 'efective_rank'.*'effective_rank'"):
        ici.explain("efective_rank")


def test_sections_written_on_one_line_and_indented_ones(monkeypatch):
    class Inline:
        """Thing along a line.

        Definition: the first of
        two lines.

        Cost: one pass.

        More of the definition.

        Caveats: none
        to speak of.
        """

    class Plain:
        """Only a line."""

    monkeypatch.setattr("ici.measure.Inline", Inline, raising=False)
    monkeypatch.setattr("ici.measure.Plain", Plain, raising=False)
    monkeypatch.setattr("ici.quantities._QUANTITIES", dict(_QUANTITIES))
    register_quantity("thing", "ici.measure:Inline", "ici.measure:Plain")
    found = explanation("thing")
    assert found.summary == "Thing along a line."
    assert found.sections == {"Cost": "One pass.", "Caveats": "None\nto speak of."}
    assert found.definition.split("\n\n") == [
        "More of the definition.",
        "Only a line.",
        "The first of\ntwo lines.",
    ]


def test_a_users_statistic_is_found(monkeypatch):
    monkeypatch.setattr("ici.measure.statistics._STATISTICS", {"moments": statistic("moments")})

    class Mine:
        """Something of mine."""

        @classmethod
        def of(cls, x):
            return cls()

    ici.register_statistic("mine", Mine)
    assert str(explanation("mine")) == "mine: Something of mine."
