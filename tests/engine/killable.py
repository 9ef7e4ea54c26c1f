"""A run in a process of its own, to be killed: ``python killable.py FOLDER KIND``."""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import ici
from ici.data import Arrays

# More of them leave room for more kills.
STEPS = int(os.environ.get("ICI_TEST_STEPS", "400"))


def experiment(kind: str) -> ici.Experiment:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 160).astype(np.int32)
    inputs = (rng.normal(size=(160, 6)) + 2 * labels[:, None]).astype(np.float32)
    return ici.Experiment(
        name="killable",
        data=Arrays(train=(inputs[:96], labels[:96]), validation=(inputs[96:], labels[96:])),
        model=ici.MLPConfig(width=16),
        norm=("none", "batch"),
        depth=(2,),
        lr=(1e-3, 1e-2, 1e6),
        seed=(0, 1),
        steps=STEPS,
        batch_size=16,
        probe=ici.Probe(every=5),
        reference_size=32,
        reference_every=20,
        eval_every=20,
        stream=kind == "streamed",
        devices=2,
    )


def slowly(progress: object) -> None:
    """So that a kill finds the run at work, not always compiling."""
    print("at", progress, flush=True)
    time.sleep(0.05)


if __name__ == "__main__":
    ici.run(experiment(sys.argv[2]), sys.argv[1], checkpoint_every_s=0, on_progress=slowly)
