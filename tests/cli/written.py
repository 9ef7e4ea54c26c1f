"""A record that a test writes step by step, as the engine does."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from ici.store.manifest import GroupEntry, Manifest
from ici.store.writer import PER_FEATURE, GroupWriter, Layout, Node, Variable

LRS, SEEDS = (0.01, 0.1), (0, 1, 2)
STEPS, CHUNK = 400, 20
WIDTH = 4


class Written:
    """One experiment with two groups; `chunk` commits the next `CHUNK` steps of a group."""

    def __init__(self, folder: Path, norms: tuple[str, ...] = ("none", "batch"), **settings):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.norms = folder, norms
        self.experiment = {
            "name": "written",
            "norm": list(norms),
            "depth": [2],
            "lr": list(LRS),
            "seed": list(SEEDS),
            "weight_decay": [0.0],
            "steps": STEPS,
            "target_accuracy": 0.7,
            "stop_at_target": False,
        } | settings
        self.manifest = Manifest(self.experiment, "print", "digest", {})
        self.manifest.write(folder)
        self.writers: dict[str, GroupWriter] = {}
        rng = np.random.default_rng(0)
        n = len(LRS) * len(SEEDS)
        self.loss = np.exp(-np.arange(STEPS) / 200) + rng.normal(0, 0.01, (n, STEPS))
        self.accuracy = np.linspace(0.5, 0.9, STEPS // CHUNK + 1) + np.linspace(-0.1, 0, n)[:, None]
        self.diverged_at = np.full(n, np.nan, np.float32)

    def begin(self, norm: str) -> None:
        moments = {"mean": Variable(PER_FEATURE), "std": Variable(PER_FEATURE)}
        between = np.arange(0, STEPS + 1, CHUNK)
        scores = {"loss": Variable(), "accuracy": Variable()}
        nodes = {
            "train": Node(np.arange(STEPS), CHUNK, {"loss": Variable()}),
            "reference": Node(between, 1, moments),
            "evaluation": Node(between, 1, scores),
            "runs": Node(np.array([STEPS]), 1, {"diverged_at": Variable()}),
        }
        axes = {"lr": LRS, "weight_decay": (0.0,), "seed": SEEDS}
        layout = Layout(axes, ("first", "head"), (WIDTH, 2), nodes)
        entry = GroupEntry(norm, 2, {})
        name = f"norm={norm},depth=2"
        self.writers[norm] = GroupWriter(self.folder, self.manifest, name, entry, layout)

    def chunk(self, norm: str, moved: float = 1.0) -> None:
        writer = self.writers[norm]
        first = writer.entry.rows["train"]
        self._between(writer, first, moved)
        at = np.arange(first, first + CHUNK)
        loss = np.where(at > self.diverged_at[:, None], np.nan, self.loss[:, at])
        writer.write("train", {"loss": loss.astype(np.float32)})
        writer.write("runs", {"diverged_at": self.diverged_at[:, None]}, first=0)
        writer.entry.run_step_s = 0.5
        writer.commit()

    def finish(self, norm: str) -> None:
        if self.writers[norm].entry.rows["train"] == STEPS:
            self._between(self.writers[norm], STEPS, 1.0)
        self.writers[norm].finish()

    def end(self, status: str = "done") -> None:
        self.manifest.status = status
        self.manifest.write(self.folder)

    def all(self) -> None:
        for norm in self.norms:
            self.begin(norm)
            for _ in range(STEPS // CHUNK):
                self.chunk(norm)
            self.finish(norm)
        self.end()

    def _between(self, writer: GroupWriter, step: int, moved: float) -> None:
        n = len(self.loss)
        row = step // CHUNK
        alive = np.where(step > self.diverged_at, np.nan, 1.0)
        accuracy = (self.accuracy[:, row] * alive)[:, None]
        writer.write("evaluation", {"loss": 1 - accuracy, "accuracy": accuracy})
        mean = np.full((n, 1, 2, WIDTH), moved * step / STEPS) * alive[:, None, None, None]
        std = np.ones_like(mean)
        mean[:, :, 1, 2:], std[:, :, 1, 2:] = np.nan, np.nan
        writer.write("reference", {"mean": mean, "std": std})


def run_names(norm: str) -> list[str]:
    return [
        f"norm={norm} depth=2 lr={lr:g} seed={seed}" for lr, seed in itertools.product(LRS, SEEDS)
    ]
