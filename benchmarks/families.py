"""What model families and data cost: compile time over depth, the loader, convolutions in loops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ici
from benchmarks import jax_work
from benchmarks.contestants import Process, Work, take_turns
from benchmarks.rows import Row, Target, ratios
from benchmarks.sizes import Size
from ici.data import Split
from ici.data.loader import Loader
from ici.engine.convolutions import in_canonical_order
from ici.engine.fleet import Fleet
from ici.engine.gradients import gradients
from ici.engine.lane import NEVER, Arrays, Hyper
from ici.engine.mesh import make_mesh
from ici.engine.step import cross_entropy
from ici.models import InputSpec, TransformerConfig

DEPTHS = (6, 12, 24, 48)
VOCAB, LENGTH, BATCH = 64, 32, 4


def build_compilations(depths: tuple[int, ...]) -> dict[str, Work]:
    """Compiling a training step of a Transformer, with moments of every layer input and without."""
    jax_work.claim(1)
    spec = InputSpec((LENGTH,), VOCAB, VOCAB, "language_model", 1)
    optimizer = optax.adam(1e-3)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    work: dict[str, Work] = {}
    for depth in depths:
        model = ici.from_nnx(TransformerConfig(width=32, heads=2).build("layer", depth, spec))
        variables = jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x), tokens)
        opt_state = jax.eval_shape(optimizer.init, variables.params)
        for kind, probe in (("plain", None), ("probed", ici.Probe(every=1))):

            def compiled(
                model: Any = model, probe: Any = probe, args: Any = (variables, opt_state)
            ) -> None:
                def step(at: Any, state: Any, rows: Any) -> Any:
                    result = gradients(model, cross_entropy, at, (rows, rows), probe)
                    updates, state = optimizer.update(result.grads, state, at.params)
                    params = optax.apply_updates(at.params, updates)
                    return params, state, result.loss, result.taps

                jax.jit(step).lower(*args, tokens).compile()

            work[f"{kind} {depth}"] = compiled
    return work


def compile_time(size: Size) -> list[Row]:
    """The deepest Transformer over the shallowest."""
    depths = DEPTHS if size.is_full else DEPTHS[:2]
    with Process(build_compilations, depths=depths) as process:
        rounds = max(2, size.rounds // 2)
        seconds = take_turns({n: lambda n=n: process.seconds(n) for n in process.names}, rounds)
    rows = []
    for kind in ("plain", "probed"):
        last, first = f"{kind} {depths[-1]}", f"{kind} {depths[0]}"
        label = (
            f"compile time of a {kind} step, Transformer of {depths[-1]} blocks over {depths[0]}"
        )
        values = ratios(seconds, last, first)
        raw = {name: s for name, s in seconds.items() if name.startswith(kind)}
        rows.append(Row("compile_time", label, "x", values, Target(1.3, "at most"), raw))
    return rows


def build_feeds(task: jax_work.Task, lanes: int) -> dict[str, Work]:
    """One chunk of steps of a fleet, its batches on the device or read by the loader."""
    jax_work.claim(2)
    inputs, labels = task.data()
    hypers = [Hyper.of(lr=1e-3, seed=lane, order=lane) for lane in range(lanes)]
    program = jax_work.program(task, jax_work.LAYER_INPUTS)
    resident: Any = Arrays(inputs, labels)  # pyright: ignore[reportArgumentType]
    devices = min(2, lanes)

    def fleet(data: Any) -> Fleet:
        return Fleet(program, make_mesh(devices), hypers, data, inputs[:2], form="map")

    fleets = {"resident": fleet(resident), "streamed": fleet(None)}
    loader = Loader(Split(inputs, labels), task.batch_size, tuple(range(lanes)))
    indices = task.indices(lanes)
    local = np.arange(indices.size, dtype=np.int32).reshape(indices.shape)
    step = dict.fromkeys(fleets, 0)

    def work(kind: str) -> None:
        first, data = step[kind], None
        if kind == "streamed":
            chunk = loader.chunk(first, task.chunk_steps)
            examples: Any = [part.reshape(-1, *part.shape[3:]) for part in chunk]
            data = fleets[kind].place(Arrays(*examples))
        rows = indices if data is None else local
        _, diverged_at = jax.block_until_ready(fleets[kind].train(first, rows, data))
        assert (np.asarray(diverged_at) == NEVER).all(), "a run diverged"
        step[kind] += task.chunk_steps

    return {kind: (lambda kind=kind: work(kind)) for kind in fleets}


def loader(size: Size) -> list[Row]:
    """The share of a step's time that streaming adds."""
    task = jax_work.Task(size.widths[0], size.depth, size.batch_size, size.chunk_steps)
    with Process(build_feeds, task=task, lanes=max(2, size.lanes // 2)) as process:
        seconds = take_turns(
            {n: lambda n=n: process.seconds(n) for n in process.names}, size.fine_rounds // 2
        )
    values = [100 * (value - 1) for value in ratios(seconds, "streamed", "resident")]
    label = f"streamed batches over resident ones, {task.depth}×{task.width} vectors"
    return [Row("loader", label, "%", values, None, seconds)]


def build_convolutions(batch_size: int, width: int) -> dict[str, Work]:
    """Five gradient steps of one convolution in a loop, its axes as they come or in order."""
    jax_work.claim(1)
    x = jax.random.normal(jax.random.key(0), (batch_size, 28, 28, width))
    w = jax.random.normal(jax.random.key(1), (3, 3, width, width))

    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        def loss(w: jax.Array) -> jax.Array:
            out = jax.lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.sum(jnp.square(out))

        def step(w: jax.Array, _: None) -> tuple[jax.Array, None]:
            return w - 1e-9 * jax.grad(loss)(w), None

        return jax.lax.scan(step, w, None, length=5)[0]

    programs = {"plain": jax.jit(loop), "ordered": jax.jit(in_canonical_order(loop))}
    return {
        name: (lambda program=program: jax.block_until_ready(program(x, w)))
        for name, program in programs.items()
    }


def convolutions(size: Size) -> list[Row]:
    """Convolutions in loops on a CPU, as the compiler has them over those of the engine."""
    settings = {"batch_size": size.batch_size // 2, "width": 8}
    with Process(build_convolutions, **settings) as process:
        seconds = take_turns(
            {n: lambda n=n: process.seconds(n) for n in process.names}, size.rounds // 2
        )
    label = "gradient of a 3×3 convolution in a loop, axes as they come over canonical order"
    return [Row("convolutions", label, "x", ratios(seconds, "plain", "ordered"), None, seconds)]
