"""What several processes run together in tests: `ici run many.py --coordinator …`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

import ici
from ici.data import Arrays

FILE = Path(__file__)
WATCHDOG_S = 3.0


def _experiment() -> ici.Experiment:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 160).astype(np.int32)
    inputs = (rng.normal(size=(160, 6)) + 2 * labels[:, None]).astype(np.float32)
    return ici.Experiment(
        name="many",
        data=Arrays(train=(inputs[:96], labels[:96]), validation=(inputs[96:], labels[96:])),
        model=ici.MLPConfig(width=8),
        norm=("batch",),
        depth=(1,),
        lr=(1e-3, 1e-2, 1e6),
        seed=(0, 1),
        steps=400,
        batch_size=16,
        probe=ici.Probe(every=5),
        reference_size=32,
        reference_every=10,
        eval_every=10,
    )


experiment = _experiment()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(out: Path, n: int, *options: str, devices: int = 1) -> list[subprocess.Popen[str]]:
    """`n` processes with so many devices each, that record in `out` together."""
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(n)]
    common = ["--out", str(out), "--no-figures", "--watchdog-s", str(WATCHDOG_S)]
    command = [sys.executable, "-u", "-m", "ici.cli", "run", str(FILE), *common, *options, *where]
    return [
        subprocess.Popen(
            [*command, "--process", str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        )
        for i in range(n)
    ]


def ended(processes: list[subprocess.Popen[str]], within_s: float = 150) -> list[tuple[int, str]]:
    """Exit status and errors of each; all are killed where one takes too long."""
    told = []
    try:
        for process in processes:
            _, err = process.communicate(timeout=within_s)
            told.append((process.returncode, err))
    finally:
        for process in processes:
            process.kill()  # a process that hangs takes no SIGTERM
            process.wait()
    return told
