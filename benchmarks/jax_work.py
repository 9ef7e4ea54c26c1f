"""The work in JAX: the same network, data and steps in a fleet, in a loop, and with no probe.

Builders run inside a contestant's process and return named pieces of work.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax

from benchmarks.contestants import Work
from ici.adapt import Model, from_nnx
from ici.data import batch_indices
from ici.engine.fleet import Fleet
from ici.engine.lane import NEVER, Arrays, Hyper, Lane, LaneProgram
from ici.engine.mesh import make_mesh
from ici.engine.step import cross_entropy, init_train_state, make_train_step
from ici.models import InputSpec, MLPConfig
from ici.optimizers import Optimizer
from ici.probe import Probe

N_EXAMPLES = 6800
VOCAB_SIZE, MAX_TOKENS, EMBED_FEATURES = 4096, 48, 64
LEARNING_RATE = 1e-3
LAYER_INPUTS = Probe(select=nnx.Linear, every=1)
EVERY_SITE = Probe(every=1)


@dataclass(frozen=True)
class Task:
    """What every contestant trains."""

    width: int
    depth: int = 10
    batch_size: int = 128
    chunk_steps: int = 50
    norm: str = "none"
    is_text: bool = False

    def model(self) -> Model:
        spec = (
            InputSpec((MAX_TOKENS,), VOCAB_SIZE, 2)
            if self.is_text
            else InputSpec((self.width,), None, 2)
        )
        config = MLPConfig(width=self.width, embed_features=EMBED_FEATURES)
        return from_nnx(config.build(self.norm, self.depth, spec))

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels that nothing can be learnt from: no run speeds up or diverges."""
        rng = np.random.default_rng(0)
        if self.is_text:
            inputs = rng.integers(1, VOCAB_SIZE, (N_EXAMPLES, MAX_TOKENS)).astype(np.int32)
        else:
            inputs = rng.standard_normal((N_EXAMPLES, self.width)).astype(np.float32)
        return inputs, rng.integers(0, 2, N_EXAMPLES).astype(np.int32)

    def indices(self, n_orders: int) -> np.ndarray:
        """Examples of each batch, ``[n_orders, K, B]``."""
        return np.stack(
            [
                batch_indices(N_EXAMPLES, self.batch_size, order, 0, self.chunk_steps)
                for order in range(n_orders)
            ]
        )

    def product_flops(self) -> int:
        """Floating-point operations of one step's matrix products: forward, and the gradients
        with respect to weights and inputs, the latter not for the first layer."""
        shapes = [(self.width, self.width)] * self.depth + [(self.width, 2)]
        products = [2, *[3] * self.depth]
        return sum(
            n * 2 * self.batch_size * rows * columns
            for n, (rows, columns) in zip(products, shapes, strict=True)
        )


@dataclass(frozen=True)
class Unwatched(LaneProgram):
    """The lane's program with every step a plain one: no probe anywhere."""

    def chunk(
        self, lane: Lane, first_step: Array, indices_KB: Array, data: Arrays
    ) -> tuple[Lane, dict[str, Array], Any]:
        steps_K = first_step + jnp.arange(indices_KB.shape[0], dtype=jnp.int32)

        def plain(lane: Lane, at: tuple[Array, Array]) -> tuple[Lane, dict[str, Array]]:
            lane, (record, _) = self.step(lane, *at, data, None)
            return lane, record

        lane, records = lax.scan(plain, lane, (steps_K, indices_KB))
        return lane, records, {}


def claim(devices: int) -> None:
    """This process's CPU devices; to be called before JAX computes anything."""
    os.environ.pop("JAX_NUM_CPU_DEVICES", None)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def program(task: Task, probe: Probe | None) -> LaneProgram:
    """The lane program of `task`; without a probe where `probe` is None."""
    kind = Unwatched if probe is None else LaneProgram
    return kind(
        model=task.model(),
        loss=cross_entropy,
        optimizer=Optimizer("adam"),
        steps=10**6,
        probe=probe or LAYER_INPUTS,
    )


def fleet_work(task: Task, probe: Probe | None, devices: int, lanes: int) -> Work:
    """One chunk of steps of a fleet, on the first `devices` devices."""
    inputs, labels = task.data()
    hypers = [Hyper.of(lr=LEARNING_RATE, seed=lane, order=lane) for lane in range(lanes)]
    fleet = Fleet(
        program(task, probe),
        make_mesh(devices),
        hypers,
        Arrays(inputs, labels),  # pyright: ignore[reportArgumentType]
        inputs[:2],
        form="map",
    )
    indices_SKB = task.indices(lanes)
    first_step = 0

    def work() -> None:
        nonlocal first_step
        records, diverged_at = jax.block_until_ready(fleet.train(first_step, indices_SKB))
        first_step += task.chunk_steps
        assert records and (np.asarray(diverged_at) == NEVER).all(), "a run diverged"

    return work


def loop_work(task: Task, probe: Probe | None) -> Work:
    """The same steps of one run from a Python loop over a compiled step.

    Its batches lie ready on the device, it checks nothing for divergence, and it waits once, at
    the end: all in its favour.
    """
    inputs, labels = task.data()
    batches = [(jnp.asarray(inputs[i]), jnp.asarray(labels[i])) for i in task.indices(1)[0]]
    optimizer = optax.adam(LEARNING_RATE)
    model = task.model()
    step = make_train_step(model, optimizer, cross_entropy, probe)
    state = init_train_state(model, optimizer, jax.random.key(0), batches[0][0])

    def work() -> None:
        nonlocal state
        records = []
        for batch in batches:
            state, metrics = step(state, batch)
            records.append(metrics)
        jax.block_until_ready((state.params, records))

    return work


def product_work(n: int) -> Work:
    """One n×n float32 matrix product."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n)) for i in range(2))
    multiply = jax.jit(jnp.matmul)

    def work() -> None:
        multiply(a, b).block_until_ready()

    return work


def build_fleets(
    task: Task, lanes: int, devices: int, fleets: dict[str, tuple[Probe | None, int]]
) -> dict[str, Work]:
    """Fleets by name, each with its probe and its number of devices, in one process."""
    claim(devices)
    return {name: fleet_work(task, probe, n, lanes) for name, (probe, n) in fleets.items()}


def build_loop(task: Task, probe: Probe | None) -> dict[str, Work]:
    """The loop on one device, whose programs may use every core."""
    claim(1)
    return {"loop": loop_work(task, probe)}


def build_products(sizes: tuple[int, ...]) -> dict[str, Work]:
    """Matrix products on one device, which may use every core."""
    claim(1)
    return {str(n): product_work(n) for n in sizes}


def build_memory(task: Task) -> dict[str, Work]:
    """Peak bytes of one compiled training step, plain and probed, told in the names."""
    claim(1)
    inputs, labels = task.data()
    batch = Arrays(jnp.asarray(inputs), jnp.asarray(labels))
    peaks: dict[str, Work] = {}
    for name, probe in (("plain", None), ("probed", LAYER_INPUTS)):
        lanes = program(task, LAYER_INPUTS)
        hyper = Hyper.of(lr=LEARNING_RATE, seed=0, order=0)
        lane = jax.eval_shape(lambda h, p=lanes: p.init(h, batch.inputs[:1]), hyper)
        indices = jnp.zeros(task.batch_size, jnp.int32)

        def step(lane: Lane, indices: Array, p: Any = lanes, probe: Any = probe) -> Any:
            return p.step(lane, jnp.int32(0), indices, batch, probe)

        compiled = jax.jit(step, donate_argnums=0).lower(lane, indices).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        peak = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
        peak += analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        peaks[f"{name} {peak}"] = lambda: None
    return peaks
