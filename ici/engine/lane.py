"""One run inside a fleet: its state, and pure functions that train and measure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from ici.adapt import Model, Variables
from ici.adapt.model import Loss
from ici.data.augment import augmented
from ici.dissect.blocks import find_blocks, update_statistics
from ici.dissect.measurements import Snapshot, measurement
from ici.engine.examples import Arrays
from ici.engine.gradients import gradients
from ici.engine.sharding import batch_devices, spread_examples, spread_weights, whole_weights
from ici.engine.task import Task, counted, task_named
from ici.errors import InputError
from ici.optimizers import Optimizer, schedule_factor
from ici.probe import Probe, Taps

PyTree = Any
NEVER = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyper:
    """What sets one lane apart from another; traced, so that sweeping it never recompiles."""

    lr: Array
    weight_decay: Array
    warmup_steps: Array
    beta1: Array
    beta2: Array
    seed: Array
    order: Array  # which row of the batch indices belongs to this lane's seed

    @classmethod
    def of(
        cls,
        *,
        lr: float,
        seed: int,
        order: int,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        beta1: float = 0.9,
        beta2: float = 0.999,
    ) -> Hyper:
        """On the host; several are stacked for a fleet."""
        reals = {"lr": lr, "weight_decay": weight_decay, "beta1": beta1, "beta2": beta2}
        whole = {"warmup_steps": warmup_steps, "seed": seed, "order": order}
        values: dict[str, Any] = {name: np.float32(value) for name, value in reals.items()}
        values |= {name: np.int32(value) for name, value in whole.items()}
        return cls(**values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lane:
    """State of one run.

    ``diverged_at`` is the step whose update was refused, or `NEVER`; ``ema`` the average of the
    weights, None where none is kept.
    """

    params: PyTree
    state: PyTree
    opt_state: PyTree
    ema: PyTree
    hyper: Hyper
    initial_loss: Array
    diverged_at: Array


def labelled(taps: Taps) -> dict[str, dict[str, Array]]:
    """``{variable: {site: array}}`` of every statistic a probe computed."""
    record: dict[str, dict[str, Array]] = {}
    for site in taps.sites:
        for statistic in taps.readings[site].values():
            for name, value in statistic.labelled().items():
                if site in record.setdefault(name, {}) or name.startswith("cotangent_"):
                    raise InputError(
                        f"two of the probe's statistics {', '.join(taps.stats)} are labelled "
                        f"{name!r}: wanted other names in labelled()."
                    )
                record[name][site] = value
    for site, moments in taps.cotangents.items():
        record.setdefault("cotangent_mean", {})[site] = moments.mean
        record.setdefault("cotangent_std", {})[site] = moments.std
    return record


def _is_random(leaf: Array) -> bool:
    """Whether a leaf of a model's state is a random key, or a counter of random numbers drawn."""
    return any(
        jnp.issubdtype(leaf.dtype, kind) for kind in (jax.dtypes.prng_key, jnp.unsignedinteger)
    )


def _both(chosen: Array, yes: Callable[..., Any], no: Callable[..., Any], operand: Any) -> Any:
    """`lax.cond`, computing both."""
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), yes(operand), no(operand))


@dataclass(frozen=True)
class LaneProgram:
    """The functions of one group of lanes: same model, same shapes, different `Hyper`.

    `loss` is a mean over the targets that count (`counted`), or over examples. The other fields are
    those of `Experiment` of the same names.
    """

    model: Model
    loss: Loss
    optimizer: Optimizer
    steps: int
    probe: Probe
    task: Task = task_named("classification")
    schedule: str = "constant"
    decay_fraction: float = 0.2
    divergence_ratio: float = 1e3
    accumulation_steps: int = 1
    ema_decay: float | None = None
    augment: str = "none"
    shard_params: bool = False

    def init(self, hyper: Hyper, example: Any) -> Lane:
        """Fresh state; the weights depend on the seed alone."""
        params, state = self.model.init(jax.random.key(hyper.seed), example)
        params = self._spread(params)
        return Lane(
            params=params,
            state=state,
            opt_state=self._spread(self._optimizer(hyper, hyper.lr).init(params)),
            ema=None if self.ema_decay is None else jax.tree.map(jnp.copy, params),
            hyper=hyper,
            initial_loss=jnp.float32(jnp.inf),
            diverged_at=jnp.int32(NEVER),
        )

    def _spread(self, tree: PyTree) -> PyTree:
        return spread_weights(tree) if self.shard_params else tree

    def _variables(self, lane: Lane) -> Variables:
        """Of the lane, with the weights gathered where they are spread over devices."""
        return Variables(self._whole(lane.params), lane.state)

    def _whole(self, params: PyTree) -> PyTree:
        return whole_weights(params) if self.shard_params else params

    def _optimizer(self, hyper: Hyper, rate: Array) -> optax.GradientTransformation:
        return self.optimizer.at(rate, hyper.weight_decay, hyper.beta1, hyper.beta2)

    def batch(self, seed: Array, step: Array, indices: Array, data: Arrays) -> tuple[Array, Array]:
        """Inputs and targets of a step, augmented where the experiment says so."""
        indices = spread_examples(indices)
        inputs, labels = spread_examples(data.take(indices))
        if self.augment != "none":
            inputs = augmented(self.augment, inputs, data.ids_at(indices), seed, step)
        return inputs, labels

    def learning_rate(self, lane: Lane, step: Array) -> Array:
        """The learning rate of the update after `step` others."""
        warmup, fraction = lane.hyper.warmup_steps, self.decay_fraction
        return lane.hyper.lr * schedule_factor(self.schedule, step, warmup, self.steps, fraction)

    def updated(self, lane: Lane, step: Array, grads: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and optimizer state after one update."""
        optimizer = self._optimizer(lane.hyper, self.learning_rate(lane, step))
        updates, opt_state = optimizer.update(self._spread(grads), lane.opt_state, lane.params)
        return self._spread((optax.apply_updates(lane.params, updates), opt_state))

    def step(
        self, lane: Lane, step: Array, indices: Array, data: Arrays, probe: Probe | None
    ) -> tuple[Lane, tuple[dict[str, Array], Any]]:
        """One update. A step with a non-finite loss or gradient, or whose loss exceeds
        ``divergence_ratio`` times the first one, ends the run before its update is kept."""
        batch = self.batch(lane.hyper.seed, step, indices, data)
        variables = self._variables(lane)
        parts = self.accumulation_steps
        result = gradients(
            self.model, self.loss, variables, batch, probe, parts=parts, count=counted
        )
        grad_norm = optax.tree.norm(result.grads)
        initial_loss = jnp.where(step == 0, result.loss, lane.initial_loss)
        healthy = jnp.isfinite(result.loss) & jnp.isfinite(grad_norm)
        healthy &= result.loss <= self.divergence_ratio * initial_loss
        running = lane.diverged_at == NEVER
        before = lane.params

        def update(lane: Lane) -> Lane:
            params, opt_state = self.updated(lane, step, result.grads)
            new = replace(lane, params=params, state=result.state, opt_state=opt_state)
            if self.ema_decay is None:
                return new
            return replace(
                new, ema=optax.incremental_update(params, lane.ema, 1.0 - self.ema_decay)
            )

        # A branch, not a select: choosing between the old and the new state element by element
        # made the whole step of a 10x128 MLP 17 % slower on a CPU core.
        # Between devices that share a batch a select it is: see `_together` in the fleet.
        choose = lax.cond if batch_devices() == 1 else _both
        lane = choose(running & healthy, update, lambda lane: lane, lane)
        lane = replace(
            lane,
            initial_loss=initial_loss,
            diverged_at=jnp.where(running & ~healthy, step, lane.diverged_at),
        )
        record = {"loss": result.loss, "grad_norm": grad_norm}
        if result.taps is None or probe is None:
            return lane, (record, None)
        taps: dict[str, Any] = dict(labelled(result.taps))
        if probe.kinds_at("block"):
            blocks = find_blocks(self.model, variables, batch[0])
            of_blocks = update_statistics(probe, blocks, result.grads, before, lane.params)
            for statistic in of_blocks.values():
                taps |= statistic.labelled()
        return lane, (record, taps)

    def chunk(
        self, lane: Lane, first_step: Array, indices_KB: Array, data: Arrays
    ) -> tuple[Lane, dict[str, Array], Any]:
        """K steps: cycles of one probed step followed by ``every - 1`` plain ones.

        `first_step` must be a multiple of ``probe.every``. Returns the lane, the records of every
        step ``[K]`` and the labelled taps of the probed ones ``[ceil(K / every), ...]``.
        """
        every, cheap = self.probe.every, self.probe.step_part()
        n_steps = indices_KB.shape[0]
        steps_K = first_step + jnp.arange(n_steps, dtype=jnp.int32)

        def plain(lane: Lane, at: tuple[Array, Array]) -> tuple[Lane, dict[str, Array]]:
            lane, (record, _) = self.step(lane, *at, data, None)
            return lane, record

        def cycle(lane: Lane, at: tuple[Array, Array]) -> tuple[Lane, tuple[Any, Any]]:
            steps, indices = at
            lane, (record, taps) = self.step(lane, steps[0], indices[0], data, cheap)
            records = jax.tree.map(lambda a: a[None], record)
            if steps.shape[0] > 1:
                lane, others = lax.scan(plain, lane, (steps[1:], indices[1:]))
                records = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), records, others)
            return lane, (records, taps)

        n_cycles, n_tail = divmod(n_steps, every)
        pieces = []
        if n_cycles:
            whole = jax.tree.map(
                lambda a: a[: n_cycles * every].reshape(n_cycles, every, *a.shape[1:]),
                (steps_K, indices_KB),
            )
            lane, (records, taps) = lax.scan(cycle, lane, whole)
            records = jax.tree.map(lambda a: a.reshape(-1), records)
            pieces.append((records, taps))
        if n_tail:
            tail = jax.tree.map(lambda a: a[-n_tail:], (steps_K, indices_KB))
            lane, (records, taps) = cycle(lane, tail)
            pieces.append((records, jax.tree.map(lambda a: a[None], taps)))
        records, taps = jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)
        return lane, records, taps

    def reference(self, lane: Lane, inputs: Any) -> Any:
        """Labelled taps of `inputs` in training mode; the state it would change is dropped.

        Random numbers are those of step 0 every time: with dropout, too, an unchanged network
        gives the same values.
        """
        inputs = spread_examples(inputs)
        first = self.model.init(jax.random.key(lane.hyper.seed), inputs).state
        state = jax.tree.map(lambda a, b: b if _is_random(a) else a, lane.state, first)
        variables = Variables(self._whole(lane.params), state)
        taps = self.model.apply(variables, inputs, train=True, probe=self.probe)[2]
        assert taps is not None
        return labelled(taps)

    def measure(
        self, name: str, lane: Lane, step: Array, indices: Array, data: Arrays, reference: Any
    ) -> dict[str, Array]:
        """The measurement `name` of the update that is about to be made, which is not made."""
        batch = self.batch(lane.hyper.seed, step, indices, data)
        variables = self._variables(lane)
        parts = self.accumulation_steps
        result = gradients(self.model, self.loss, variables, batch, parts=parts, count=counted)
        params, _ = self.updated(lane, step, result.grads)
        reference = spread_examples(reference)
        snapshot = Snapshot(
            model=self.model,
            loss=self.loss,
            before=variables,
            initial=self.model.init(jax.random.key(lane.hyper.seed), reference).params,
            after=self._whole(params),
            batch=batch,
            reference=reference,
            learning_rate=self.learning_rate(lane, step),
            probe=self.probe,
        )
        return measurement(name).of(snapshot)

    def evaluate(self, lane: Lane, data: Arrays, weights: Array) -> dict[str, Array]:
        """The task's means in evaluation mode over batches ``[n, B, ...]``; with ``ema_`` in front
        of their names, those of the averaged weights.

        ``weights[n, B]`` is 1 for examples and 0 for what fills the last batch up.
        """
        results = self._evaluated(self._variables(lane), data, weights)
        if self.ema_decay is not None:
            averaged = self._evaluated(Variables(self._whole(lane.ema), lane.state), data, weights)
            results |= {f"ema_{name}": value for name, value in averaged.items()}
        return results

    def _evaluated(self, variables: Variables, data: Arrays, weights: Array) -> dict[str, Array]:
        def batch(totals: Array, at: tuple[Arrays, Array]) -> tuple[Array, None]:
            part, weight_B = spread_examples(at)
            outputs, _, _ = self.model.apply(variables, part.inputs, train=False)
            return totals + self.task.totals(outputs, part.labels, weight_B), None

        names = self.task.variables
        (*sums, count), _ = lax.scan(batch, jnp.zeros(len(names) + 1), (data, weights))
        return {name: total / count for name, total in zip(names, sums, strict=True)}

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Names of what `evaluate` gives."""
        names = self.task.variables
        return names if self.ema_decay is None else (*names, *(f"ema_{name}" for name in names))
