"""How far a run is, as its caller is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a group is; given to the caller after every chunk.

    ``loss`` is the median training loss over the running lanes at the last step, nats;
    ``loader_wait_s`` the part of ``elapsed_s`` that was spent waiting for data.
    """

    norm: str
    depth: int
    step: int
    steps: int
    n_running: int
    n_diverged: int
    n_lanes: int
    loss: float
    elapsed_s: float
    loader_wait_s: float = 0.0
