"""Errors of a machine that has too little of something, told by what to do about it."""

from __future__ import annotations

from ici.config import Experiment
from ici.engine.memory import is_out_of_memory, out_of_memory
from ici.errors import InputError
from ici.store.places import Place
from ici.store.unwritable import is_unwritable, unwritable


def explained(error: BaseException, experiment: Experiment, folder: Place) -> InputError | None:
    """What to tell the user of a disk that is full, or of memory that ran out; else None."""
    if is_unwritable(error):
        return unwritable(folder, error)
    if is_out_of_memory(error):
        return out_of_memory(experiment, error)
    return None
