"""How large the measured work is, and how often it is repeated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Amounts of work of one invocation.

    Attributes:
      name: full, quick or smoke; only full rows are held against their targets.
      depth: blocks of the MLP.
      widths: the wider and the narrower MLP.
      batch_size: examples per step.
      lanes: runs in a fleet.
      chunk_steps: steps per dispatch, and of every other contestant per turn.
      rounds: turns of every contestant.
      fine_rounds: the same for ratios near 1, which need more.
      products: sizes n of the n×n matrix products.
      fresh_processes: starts per kind, for import times.
      demo_arguments: options added to the demo's command.
    """

    name: str
    depth: int = 10
    widths: tuple[int, int] = (128, 64)
    batch_size: int = 128
    lanes: int = 16
    chunk_steps: int = 50
    rounds: int = 12
    fine_rounds: int = 40
    products: tuple[int, ...] = (1024, 2048, 4096)
    fresh_processes: int = 9
    demo_arguments: tuple[str, ...] = ()

    @property
    def is_full(self) -> bool:
        """Whether figures are comparable with the targets."""
        return self.name == "full"


SIZES = {
    "full": Size("full"),
    "quick": Size(
        "quick",
        chunk_steps=20,
        rounds=5,
        fine_rounds=10,
        products=(1024, 2048),
        fresh_processes=3,
        demo_arguments=("--steps", "100"),
    ),
    "smoke": Size(
        "smoke",
        depth=2,
        widths=(8, 4),
        batch_size=4,
        lanes=2,
        chunk_steps=10,
        rounds=2,
        fine_rounds=2,
        products=(8,),
        fresh_processes=1,
        demo_arguments=("--steps", "10", "--seed", "0", "--lr", "1e-3", "--norm", "none"),
    ),
}
