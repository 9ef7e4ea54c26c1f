"""A small fleet on made-up data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from ici.adapt import from_nnx
from ici.data import batch_indices
from ici.engine.fleet import Fleet
from ici.engine.lane import Arrays, Hyper, LaneProgram
from ici.engine.mesh import make_mesh
from ici.engine.step import cross_entropy
from ici.models import InputSpec, MLPConfig
from ici.optimizers import Optimizer
from ici.probe import Probe

VOCAB, TOKENS, N, BATCH = 200, 12, 256, 32


@dataclass
class Tiny:
    """A fleet, and the losses and states of its lanes by (lr, seed)."""

    fleet: Fleet
    lanes: list[tuple[float, int]]
    seeds: list[int]

    def train(self, first: int, n_steps: int) -> dict[tuple[float, int], Any]:
        """Trains K steps; returns ``{lane: (records, taps, diverged_at)}`` on the host."""
        indices = np.stack([batch_indices(N, BATCH, s, first, n_steps) for s in self.seeds])
        (records, taps), diverged_at = self.fleet.train(first, indices)
        return self.by_lane((records, taps, diverged_at))

    def by_lane(self, tree: Any) -> dict[tuple[float, int], Any]:
        slots, lanes = self.fleet.packing.rows()
        host = jax.device_get(tree)
        return {
            self.lanes[lane]: jax.tree.map(lambda a, s=slot: a[s], host)
            for slot, lane in zip(slots, lanes, strict=True)
        }

    def states(self) -> dict[tuple[float, int], Any]:
        return self.by_lane((self.fleet.lanes.params, self.fleet.lanes.state))


def losses(tiny: Tiny, n_steps: int = 30, chunk: int = 10) -> dict[tuple[float, int], np.ndarray]:
    """Every lane's losses over `n_steps`, trained `chunk` at a time."""
    parts: dict[tuple[float, int], list[np.ndarray]] = {}
    for first in range(0, n_steps, chunk):
        n = min(chunk, n_steps - first)
        for lane, (records, _, _) in tiny.train(first, n).items():
            parts.setdefault(lane, []).append(records["loss"])
    return {lane: np.concatenate(values) for lane, values in parts.items()}


@pytest.fixture(scope="session")
def data() -> Arrays:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, N).astype(np.int32)
    tokens = rng.integers(1, VOCAB // 2, (N, TOKENS)) + labels[:, None] * rng.integers(
        0, VOCAB // 2, (N, TOKENS)
    )
    return Arrays(tokens.astype(np.int32), labels)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="session")
def make_tiny(data: Arrays) -> Callable[..., Tiny]:
    def make(
        lanes: list[tuple[float, int]],
        norm: str = "batch",
        depth: int = 2,
        every: int = 5,
        n_devices: int = 1,
        data_parallel: int = 1,
        form: Any = "map",
        width: int | None = None,
        probe: Probe | None = None,
        optimizer: str = "adam",
        **changes: Any,
    ) -> Tiny:
        spec = InputSpec((TOKENS,), VOCAB, 2)
        settings: dict[str, Any] = {
            "model": from_nnx(MLPConfig(width=16, embed_features=8).build(norm, depth, spec)),
            "loss": cross_entropy,
            "optimizer": Optimizer(optimizer),
            "steps": 1000,
            "probe": probe or Probe(every=every),
        }
        seeds = sorted({seed for _, seed in lanes})
        hypers = [Hyper.of(lr=lr, seed=s, order=seeds.index(s)) for lr, s in lanes]
        fleet = Fleet(
            LaneProgram(**(settings | changes)),
            make_mesh(n_devices, data_parallel),
            hypers,
            data,
            data.inputs[:64],
            form=form,
            width=width,
        )
        return Tiny(fleet, lanes, seeds)

    return make
