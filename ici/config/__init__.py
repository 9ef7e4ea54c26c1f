"""`Experiment`: everything that defines a set of runs, validated when it is made."""

from ici.config.experiment import Experiment, Group, LaneSpec, differences

__all__ = ["Experiment", "Group", "LaneSpec", "differences"]
