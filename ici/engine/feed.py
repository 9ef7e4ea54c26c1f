"""The examples of each step: on the device for good, or brought there chunk by chunk."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ici.config import Experiment
from ici.data import Dataset, batch_indices
from ici.data.loader import Loader
from ici.engine.examples import Arrays, Batches
from ici.engine.group import is_streamed
from ici.engine.hosts import part_of_batch


class Feed:
    """Which examples the lanes train on, step by step; a context that ends its loader.

    ``resident`` is the training split where it stays on the device, and None where each chunk
    brings its examples: the ``part`` (index, count) of every batch that this process's devices
    hold. Either way the same seed and step give the same batch.
    """

    def __init__(self, experiment: Experiment, dataset: Dataset, mesh: Mesh):
        self.experiment = experiment
        self.part = (0, 1)
        self.n_train = len(dataset.train)
        self.resident: Any = None
        self.loader: Loader | None = None
        if is_streamed(experiment, dataset):
            self.part = part_of_batch(mesh, experiment.batch_size)
            self.loader = Loader(
                dataset.train,
                experiment.batch_size,
                experiment.seed,
                process=self.part,
                end_step=experiment.steps,
            )
        else:
            train: Any = dataset.train
            self.resident = Arrays(train.inputs, train.labels)

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.loader is not None:
            self.loader.close()

    @property
    def waited_s(self) -> float:
        """Time spent waiting for examples."""
        return 0.0 if self.loader is None else self.loader.waited_s

    def chunk(self, first_step: int, n_steps: int) -> tuple[np.ndarray, Batches | None]:
        """Indices int32 ``[seeds, K, B]`` of K batches, and the examples that they point into;
        None for the resident split."""
        e = self.experiment
        if self.loader is None:
            each = (
                batch_indices(self.n_train, e.batch_size, seed, first_step, n_steps)
                for seed in e.seed
            )
            return np.stack(list(each)), None
        examples: Any = [
            part.reshape(-1, *part.shape[2:]) for part in self.loader.chunk(first_step, n_steps)
        ]
        shape = (len(e.seed), n_steps, e.batch_size)
        return np.arange(np.prod(shape), dtype=np.int32).reshape(shape), Batches(*examples)
