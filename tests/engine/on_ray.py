"""What tests send to a Ray cluster: `ici run on_ray.py --on ray`, and whatever befalls it there.

``ICI_TEST_FAULT`` names a file; while it is there, some norms' tasks come to harm.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import numpy as np

import ici
from ici.data import Arrays

FAULT = "ICI_TEST_FAULT"


@dataclasses.dataclass(frozen=True)
class Faulty(ici.MLPConfig):
    """A model that does harm where it is built by a task; the driver builds it in peace."""

    width: int = 8

    def build(self, norm, depth, inputs):
        if Path(os.environ.get(FAULT, "/nowhere")).exists() and "RAY_RAYLET_PID" in os.environ:
            HARM.get(norm, lambda: None)()
        return super().build(norm, depth, inputs)


def _raise(error: Exception) -> None:
    raise error


HARM = {
    "batch": lambda: os._exit(1),
    "layer": lambda: time.sleep(600),
    "rms": lambda: _raise(MemoryError("42 bytes")),
    "group:groups=2": lambda: _raise(KeyError("what the user forgot")),
}


def _experiment() -> ici.Experiment:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 160).astype(np.int32)
    inputs = (rng.normal(size=(160, 6)) + 2 * labels[:, None]).astype(np.float32)
    return ici.Experiment(
        name="on_ray",
        data=Arrays(train=(inputs[:96], labels[:96]), validation=(inputs[96:], labels[96:])),
        model=Faulty(),
        norm=("none", "batch"),
        depth=(1,),
        lr=(1e-2, 1e6),
        seed=(0, 1),
        steps=200,
        batch_size=16,
        probe=ici.Probe(every=5),
        reference_size=32,
        reference_every=20,
        eval_every=20,
    )


experiment = _experiment()
