"""Memory that ran out, told by what would save some."""

from __future__ import annotations

from ici.config import Experiment
from ici.errors import InputError
from ici.store.unwritable import is_unwritable

_SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, of XLA's compiler or of a device means too little memory."""
    if is_unwritable(error):  # a full disk is an exhausted resource to TensorStore
        return False
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def out_of_memory(experiment: Experiment, error: BaseException) -> InputError:
    """What to turn, given what `experiment` has chosen."""
    knobs = [
        f"lane_width below {experiment.lane_width or len(experiment.lanes)} trains fewer runs side "
        "by side on an accelerator",
        f"accumulation_steps above {experiment.accumulation_steps} splits the batch of "
        f"{experiment.batch_size}",
        "a model with remat keeps fewer activations",
    ]
    if experiment.data_parallel > 1 and not experiment.shard_params:
        knobs.append("shard_params spreads weights and optimizer state")
    seen = str(error).strip().splitlines()
    return InputError(
        f"memory ran out ({seen[0][:200] if seen else type(error).__name__}): "
        f"{'; '.join(knobs)}. What was trained is saved: the same command goes on where the "
        "settings allow it."
    )
