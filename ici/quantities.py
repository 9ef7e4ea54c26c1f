"""Every quantity by name, and what its docstring says of it: definition, source, cost, caveats."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from dataclasses import dataclass
from typing import Any

from ici.errors import unknown_name
from ici.measure.statistics import statistic, statistic_names

SECTIONS = ("Source", "Cost", "Caveats")
_OTHER = ("Definition", "Attributes", "Args", "Returns", "Raises", "Yields", "Example", "Examples")
_HEADER = re.compile(rf"({'|'.join(SECTIONS + _OTHER)}):(?:\s+(\S.*))?")

# Where each quantity is documented, as "module:name" or, for one field of a class or one of its
# properties, "module:class.field". Several places are read one after another. Statistics need no
# entry: they are found where `register_statistic` put them.
_QUANTITIES: dict[str, tuple[str, ...]] = {
    "shift": ("ici.measure:Shift",),
    "mean_shift": ("ici.measure:Shift.mean_shift",),
    "scale_shift": ("ici.measure:Shift.scale_shift",),
    "w2": ("ici.measure:Shift.w2",),
    "w2_relative": ("ici.measure:Shift.w2_relative",),
    "kl": ("ici.measure:Shift.kl",),
    "kl_symmetric": ("ici.measure:Shift.kl_symmetric",),
    "wasserstein1": ("ici.measure:wasserstein1",),
    "wasserstein_shift": ("ici.dissect.transport:wasserstein_shift",),
    "effective_rank_shift": ("ici.measure:effective_rank_shift",),
    "noise_floor": ("ici.measure:noise_floor",),
    "nonfinite_fraction": ("ici.measure:Extremes.nonfinite_fraction",),
    "skewness": ("ici.measure:HigherMoments.skewness",),
    "excess_kurtosis": ("ici.measure:HigherMoments.excess_kurtosis",),
    "dead_fraction": ("ici.measure:DeadUnits.dead_fraction",),
    "mean_standard_error": ("ici.measure:SplitMoments.mean_standard_error",),
    "log_std_standard_error": ("ici.measure:SplitMoments.log_std_standard_error",),
    "gradient_shift": ("ici.dissect.gradient_shift:GradientShift",),
    "attribution": ("ici.dissect.attribution:Attribution",),
    "landscape": ("ici.measure.landscape:Landscape",),
    "sharpness": ("ici.measure.sharpness:Sharpness",),
    "spike_score": ("ici.measure.spikes:spike_score", "ici.measure.spikes:SpikeRule"),
    "find_spikes": ("ici.measure.spikes:find_spikes",),
    "lead": ("ici.analysis.anatomy:dissect_spikes", "ici.analysis.anatomy:Lead"),
    "relative_loss_step": ("ici.analysis.outcomes:relative_loss_step",),
    "divergence_cause": ("ici.analysis.outcomes:divergence_cause",),
    "gradient_growth": ("ici.analysis.gradients:growth_per_layer",),
    "performance_profile": ("ici.analysis.statistics:performance_profile",),
    "profile_score": ("ici.analysis.statistics:profile_score",),
    "kaplan_meier": ("ici.analysis.statistics:kaplan_meier",),
    "interquartile_mean": ("ici.analysis.statistics:interquartile_mean",),
    "steps_to_target": ("ici.analysis.convergence:steps_to_target",),
    "lr_sensitivity": ("ici.analysis.sensitivity:lr_sensitivity",),
    "largest_stable_lr": ("ici.analysis.sensitivity:largest_stable_lr",),
    "depth_of_failure": ("ici.analysis.sensitivity:depth_of_failure",),
}


@dataclass(frozen=True)
class Explanation:
    """What is known of a quantity; `sections` maps Source, Cost and Caveats to their text."""

    name: str
    summary: str
    definition: str
    sections: dict[str, str]

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.summary}"]
        if self.definition:
            parts.append(self.definition)
        for title, text in self.sections.items():
            parts.append(f"{title}\n" + textwrap.indent(text, "  "))
        return "\n\n".join(parts)


def register_quantity(name: str, *places: str) -> None:
    """Make ``explain(name)`` read the docstrings at `places`, as ``"module:object"`` each."""
    _QUANTITIES[name] = places


def quantity_names() -> tuple[str, ...]:
    """Every name that `explain` knows."""
    return tuple(dict.fromkeys((*statistic_names(), *_QUANTITIES)))


def explain(name: str | None = None) -> None:
    """Prints definition, source, cost and caveats of a quantity, or all names with a line each.

    Args:
      name: such as ``"gradient_shift"``, ``"effective_rank"``, ``"kl"``; None lists the names.

    Raises:
      InputError: there is no quantity of that name; the message has the names there are.
    """
    if name is not None:
        print(explanation(name))
        return
    names = quantity_names()
    width = max(map(len, names))
    for known in names:
        print(f"{known:<{width}}  {explanation(known).summary}")


def explanation(name: str) -> Explanation:
    """What the docstrings of the quantity called `name` say.

    Raises:
      InputError: there is no quantity of that name.
    """
    if name in statistic_names():
        return _joined(name, [_parsed(inspect.getdoc(statistic(name)) or "")])
    if name not in _QUANTITIES:
        raise unknown_name("quantity", name, quantity_names())
    return _joined(name, [_at(place) for place in _QUANTITIES[name]])


def _resolve(place: str) -> tuple[Any, str]:
    """The object at ``"module:object.field"`` and the name of its field, empty for none."""
    module, _, rest = place.partition(":")
    attribute, _, field = rest.partition(".")
    return getattr(importlib.import_module(module), attribute), field


def _at(place: str) -> dict[str, str]:
    owner, field = _resolve(place)
    parsed = _parsed(inspect.getdoc(owner) or "")
    if field:
        text = _fields(parsed.get("Attributes", "")).get(field)
        if text is None:
            text = inspect.cleandoc(getattr(owner, field).__doc__ or "")
        parsed = {"": text, **{title: parsed[title] for title in SECTIONS if title in parsed}}
    return parsed


def _joined(name: str, parts: list[dict[str, str]]) -> Explanation:
    def text(title: str) -> str:
        found = (part.get(title, "") for part in parts)
        return _plain("\n\n".join(piece for piece in found if piece))

    summary, _, definition = text("").partition("\n\n")
    fields = text("Attributes")
    blocks = [definition, text("Definition"), fields]
    return Explanation(
        name,
        " ".join(summary.split()) or "not documented.",
        "\n\n".join(block for block in blocks if block),
        {title: text(title) for title in SECTIONS if text(title)},
    )


def _parsed(doc: str) -> dict[str, str]:
    """Text before and between sections under ``""``, the sections under their titles.

    A section is either indented below its title or begins on the title's line and ends with the
    paragraph.
    """
    sections: dict[str, list[str]] = {"": []}
    title, inline = "", False
    for line in doc.split("\n"):
        header = _HEADER.fullmatch(line)
        if header:
            title, inline = header[1], header[2] is not None
            sections.setdefault(title, [])
            line = _sentence(header[2] or "")
        elif title and line.strip() and (not line.startswith(" ")) != inline:
            title = ""
        elif inline and not line.strip():
            title, inline = "", False
        sections[title].append(line)
    texts = {name: inspect.cleandoc("\n".join(lines)).strip() for name, lines in sections.items()}
    return {name: re.sub(r"\n{3,}", "\n\n", text) for name, text in texts.items()}


def _fields(attributes: str) -> dict[str, str]:
    """``name: text`` entries, with their continuation lines, by name."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", attributes):
        names, _, text = entry.partition(":")
        text = " ".join(text.split())
        found |= {name.strip(): text for name in names.split(",")}
    return found


def _sentence(text: str) -> str:
    """`text` with a capital where it goes on after a title; symbols stay as they are."""
    return text[0].upper() + text[1:] if re.match(r"[a-z]+([ ,]|$)", text) else text


def _plain(text: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"\1", text)
