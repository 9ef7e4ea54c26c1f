"""The same training in PyTorch, with forward pre-hooks that compute the same moments."""

from __future__ import annotations

import torch

from benchmarks.contestants import Work
from benchmarks.jax_work import LEARNING_RATE, Task


def build_loop(task: Task, threads: int) -> dict[str, Work]:
    """Steps of one run in eager mode: Adam, every Linear's input measured at every step.

    Batches lie ready as tensors. Moments are per feature: mean, and sum of squared deviations.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for _ in range(task.depth):
        layers += [torch.nn.Linear(task.width, task.width), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(task.width, 2))
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(site: int):
        def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0].detach()
            mean = x.mean(dim=0)
            seen[site] = mean, (x - mean).square().sum(dim=0)

        return hook

    linear = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    for site, layer in enumerate(linear):
        layer.register_forward_pre_hook(watch(site))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    inputs, labels = task.data()
    batches = [
        (torch.from_numpy(inputs[i]), torch.from_numpy(labels[i]).long())
        for i in task.indices(1)[0]
    ]

    def work() -> None:
        records = []
        for x, y in batches:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            records.append((loss.detach(), dict(seen)))
        assert torch.isfinite(records[-1][0]) and len(seen) == task.depth + 1

    return {"torch": work}
