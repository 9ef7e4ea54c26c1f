"""The same work in PyTorch: eager mode, forward pre-hooks that reduce every layer's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.contestants import Work
from benchmarks.workload import LEARNING_RATE, Task


class Watched:
    """The MLP of `Task` with a hook on every linear layer.

    A hook takes the mean and the centred sum of squares of each feature in one pass
    (``torch.var_mean``), which is faster than taking the two apart. Adam is the fused one, the
    fastest of PyTorch's three on a CPU. No gradient norm is computed and nothing is checked.
    """

    def __init__(self, task: Task, seed: int):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for _ in range(task.depth):
            layers += [nn.Linear(task.width, task.width), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear(task.width, 2))
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
                layer.register_forward_pre_hook(self._watch)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)
        self.loss = nn.CrossEntropyLoss()
        self.records: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _watch(self, layer: nn.Module, inputs: Any) -> None:
        del layer
        with torch.no_grad():
            x_BD = inputs[0]
            variance_D, mean_D = torch.var_mean(x_BD, dim=0, correction=0)
            self.records.append((mean_D, variance_D * x_BD.shape[0]))

    def step(self, x_BD: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        """One update; the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss(self.network(x_BD), y_B)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def build_torch(task: Task, threads: int, runs: int, seed: int) -> dict[str, Work]:
    """The steps of `runs` runs, one after the other, with `threads` threads."""
    torch.set_num_threads(threads)
    inputs, labels = task.data()
    batches = [
        (torch.from_numpy(inputs[i]), torch.from_numpy(labels[i]).long())
        for i in task.indices(1)[0]
    ]
    watched = Watched(task, seed)

    def work() -> None:
        for _ in range(runs):
            watched.records.clear()
            losses = [watched.step(*batch) for batch in batches]
            assert torch.isfinite(losses[-1]), "a run diverged"

    return {"torch": work}
