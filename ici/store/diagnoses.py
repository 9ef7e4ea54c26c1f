"""Why a run diverged, as its group's entry keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """What was not finite first in the step that ended a run.

    Attributes:
      lane: the run's place among the group's runs.
      step: the one whose update was refused.
      cause: "loss not finite", "loss ratio" or "gradient not finite".
      tensor: what was not finite first, in the order in which a step computes it: "inputs",
        "input" (of a layer), "output", "targets", "loss", "gradient" (of a parameter, last layer
        first) or "norm"; None where all of it was finite.
      at: whose that is: the layer, the parameter's path, the model, the batch or the gradient.
      before: path of the first parameter or state that was not finite before the step.
    """

    lane: int
    step: int
    cause: str
    tensor: str | None = None
    at: str | None = None
    before: str | None = None

    def describe(self) -> str:
        """What was not finite first, in words; empty where nothing is known of it."""
        first = f"the {self.tensor} of {self.at}" if self.tensor else ""
        if self.before is None:
            return first
        return f"{first or 'nothing in the step'} ({self.before} was not finite before)"
