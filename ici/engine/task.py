"""What is learned from outputs and targets: the loss, which targets count, and how well it went."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import optax
from jax import Array

from ici.adapt.model import Loss
from ici.data.dataset import IGNORED
from ici.data.dataset import Task as TaskName


def counted(targets: Array) -> Array:
    """1 for every target that counts and 0 for the others, float32, in the targets' shape.

    Whole numbers are classes, of which negative ones do not count; every real target counts.
    """
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return (targets > IGNORED).astype(jnp.float32)
    return jnp.ones(targets.shape, jnp.float32)


def _cross_entropies(logits: Array, labels: Array) -> Array:
    # A negative label would be read from the end of the logits; its loss is not used.
    safe = jnp.maximum(labels, 0)
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), safe)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Mean softmax cross-entropy, nats: logits ``[..., C]``, classes ``[...]``.

    Classes are those of examples or the next tokens of positions. Negative ones do not count.
    """
    weights = counted(labels)
    total = jnp.sum(_cross_entropies(logits, labels) * weights)
    return total / jnp.maximum(jnp.sum(weights), 1.0)


def squared_error(outputs: Array, targets: Array) -> Array:
    """Mean over examples and targets of the squared difference."""
    return jnp.mean(jnp.square(outputs.astype(jnp.float32) - targets))


@dataclass(frozen=True)
class Task:
    """A kind of data as the engine trains and evaluates on it.

    Attributes:
      loss: what is minimised.
      has_accuracy: whether outputs are logits of classes, one of which is right.
    """

    loss: Loss
    has_accuracy: bool

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of what an evaluation gives."""
        return ("loss", "accuracy") if self.has_accuracy else ("loss",)

    def totals(self, outputs: Array, targets: Array, weight_B: Array) -> Array:
        """Sums over a batch: of each of `variables`, and last of the targets that count.

        ``weight_B`` is 0 for what only fills the batch up.
        """
        weights = counted(targets) * weight_B.reshape(-1, *(1,) * (targets.ndim - 1))
        if not self.has_accuracy:
            errors = jnp.square(outputs.astype(jnp.float32) - targets)
            return jnp.stack([jnp.sum(errors * weights), jnp.sum(weights)])
        losses = _cross_entropies(outputs, targets)
        correct = (jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32)
        return jnp.stack([jnp.sum(losses * weights), jnp.sum(correct * weights), jnp.sum(weights)])


_TASKS: dict[str, Task] = {
    "classification": Task(cross_entropy, has_accuracy=True),
    "language_model": Task(cross_entropy, has_accuracy=True),
    "regression": Task(squared_error, has_accuracy=False),
}


def task_named(name: TaskName) -> Task:
    """The task of a data set."""
    return _TASKS[name]
