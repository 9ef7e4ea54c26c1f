"""Training for long takes no more memory than training for a while."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_run import experiment

import ici

STATM = Path("/proc/self/statm")
PAGE = 4096
STEPS, CHUNK, EVERY = 10_000, 100, 500


def resident_bytes():
    return int(STATM.read_text().split()[1]) * PAGE


def slope(steps, values):
    """Per 1,000 steps."""
    return np.polyfit(steps, values, 1)[0] * 1000


@pytest.mark.slow
@pytest.mark.skipif(not STATM.exists(), reason="only Linux says how much a process holds")
@pytest.mark.parametrize("stream", [False, True])
def test_ten_thousand_steps_take_no_more_memory_than_half_of_them(tmp_path, stream):
    seen = []

    def look(progress):
        if progress.step % EVERY == 0 and progress.step < STEPS:
            gc.collect()
            on_device = [array.nbytes for array in jax.live_arrays()]
            seen.append(
                (
                    progress.step,
                    sum(on_device),
                    len(on_device),
                    resident_bytes(),
                    sys.getallocatedblocks(),
                )
            )

    wide = experiment(
        model=ici.MLPConfig(width=256),
        norm=("none",),
        depth=(1,),
        lr=(1e-3,),
        seed=(0,),
        steps=STEPS,
        probe=ici.Probe(every=1),
        reference_every=CHUNK,
        eval_every=CHUNK,
        devices=1,
        stream=stream,
    )
    # What TensorStore holds for each save is its own: see docs/scale.md.
    ici.run(wide, tmp_path / "out", on_progress=look, checkpoint_every_s=3600)
    steps, device_bytes, n_on_device, resident, blocks = np.array(seen, float)[len(seen) // 2 :].T
    print(
        f"{slope(steps, resident) / 1024:.0f} KiB, {slope(steps, blocks):.0f} blocks / 1,000 steps"
    )
    assert len(steps) >= 9
    # As many arrays are under way at one chunk's end as at another's.
    assert np.ptp(device_bytes) == 0 and np.ptp(n_on_device) == 0
    # Measured: 0 to 400 KiB, of an allocator that settles. Rows that stayed would be 4 MiB.
    assert slope(steps, resident) < 1.5 * 2**20
    # Python's objects, measured: 40 to 75. Ten that stayed of each chunk would be 100 more.
    assert slope(steps, blocks) < 150
