"""A run in a process of its own, with nothing compiled: ``python cached.py FOLDER``."""

from __future__ import annotations

import sys

from test_run import experiment

import ici

if __name__ == "__main__":
    small = experiment(
        norm=("none",), depth=(1,), lr=(1e-2,), seed=(0,), steps=10, eval_every=10, devices=1,
        probe=ici.Probe(every=10), reference_every=10,
    )  # fmt: skip
    (entry,) = ici.run(small, sys.argv[1]).manifest.groups.values()
    print(entry.state_digest)
