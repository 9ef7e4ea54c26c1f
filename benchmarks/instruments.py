"""What each statistic and each measurement costs, as a multiple of a plain training step."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import ici
from benchmarks import jax_work
from benchmarks.contestants import Process, Work, take_turns
from benchmarks.rows import Row, Target, ratios
from benchmarks.sizes import Size
from ici.adapt import Model
from ici.dissect.gradient_shift import gradient_shift_of
from ici.engine.step import Batch, cross_entropy, init_train_state, make_train_step

STATISTICS = (
    "moments",
    "extremes",
    "dead_units",
    "higher_moments",
    "split_moments",
    "updates",
    "effective_rank",
    "percentiles",
)
DEPTHS = (10, 25)


class _Attention(nnx.Module):
    """One pre-LN attention block and a classifier: 64 tokens of width 128, 4 heads."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 128, decode=False, rngs=rngs)
        self.head = nnx.Linear(128, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jnp.mean(x + self.attention(self.norm(x)), axis=1))


def _step_work(model: Model, batch: Batch, probe: ici.Probe | None) -> Work:
    optimizer = optax.adam(jax_work.LEARNING_RATE)
    step = make_train_step(model, optimizer, cross_entropy, probe)
    state = init_train_state(model, optimizer, jax.random.key(0), batch[0])

    def work() -> None:
        nonlocal state
        for _ in range(10):
            state, metrics = step(state, batch)
        jax.block_until_ready((state.params, metrics))

    return work


def _batch(task: jax_work.Task) -> Batch:
    inputs, labels = task.data()
    return jnp.asarray(inputs[: task.batch_size]), jnp.asarray(labels[: task.batch_size])


def build_statistics(task: jax_work.Task) -> dict[str, Work]:
    """Ten training steps with each statistic at every step, and ten plain ones."""
    jax_work.claim(1)
    model, batch = task.model(), _batch(task)
    work = {"plain": _step_work(model, batch, None)}
    for name in STATISTICS:
        stats = (name,) if name != "updates" else ("moments", name)
        work[name] = _step_work(model, batch, ici.Probe(nnx.Linear, stats=stats, every=1))
    cotangents = ici.Probe(nnx.Linear, every=1, cotangents=True)
    return work | {"cotangents": _step_work(model, batch, cotangents)}


def build_attention(batch_size: int) -> dict[str, Work]:
    """The same for the statistics of attention and output."""
    jax_work.claim(1)
    model = ici.from_nnx(lambda rngs: _Attention(rngs))
    x = jax.random.normal(jax.random.key(0), (max(2, batch_size // 4), 64, 128))
    batch = x, jnp.arange(len(x)) % 2
    work = {"plain": _step_work(model, batch, None)}
    for name in ("attention", "output_logits"):
        work[name] = _step_work(model, batch, ici.Probe(stats=(name,), every=1))
    return work


def build_measurements(task: jax_work.Task) -> dict[str, Work]:
    """Each measurement of one update, and ten plain steps."""
    jax_work.claim(1)
    model, batch = task.model(), _batch(task)
    before = model.init(jax.random.key(0), batch[0])
    after = before._replace(params=jax.tree.map(lambda a: a + 1e-3, before.params))
    rate = jax_work.LEARNING_RATE
    measurements = {
        "gradient_shift": partial(ici.gradient_shift, model, cross_entropy, before, after, batch),
        "attribution": partial(ici.attribute_shift, model, before, after, batch[0]),
        "landscape": partial(ici.landscape, model, cross_entropy, before, batch, rate),
        "sharpness": partial(ici.sharpness, model, cross_entropy, before, batch),
    }

    def ready(measure):
        return lambda: jax.block_until_ready(measure())

    work = {"plain": _step_work(model, batch, None)}
    return work | {name: ready(measure) for name, measure in measurements.items()}


def build_gradient_shift(task: jax_work.Task) -> dict[str, Work]:
    """The gradient shift of all blocks, against a forward-backward pass per block."""
    jax_work.claim(1)
    model, batch = task.model(), _batch(task)
    before = model.init(jax.random.key(0), batch[0])
    after = jax.tree.map(lambda a: a + 1e-3, before.params)
    n_blocks = task.depth + 1

    def loss(params: object) -> jax.Array:
        out, _, _ = model.apply(before._replace(params=params), batch[0], train=True)
        return cross_entropy(out, batch[1])

    @jax.jit
    def passes(params):
        # One after another, each at the parameters that the one before moved a little, so that
        # none can be left out.
        def one(params, _):
            grads = jax.grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 1e-9 * g, params, grads), None

        return jax.lax.scan(one, params, None, length=n_blocks)[0]

    shared = jax.jit(
        lambda params: gradient_shift_of(
            model, cross_entropy, before._replace(params=params), after, batch, "stacked"
        )
    )
    return {
        "shared": lambda: jax.block_until_ready(shared(before.params)),
        "passes": lambda: jax.block_until_ready(passes(before.params)),
    }


def gradient_shift(size: Size) -> list[Row]:
    """All k blocks at once against k passes."""
    rows = []
    for norm in ("none", "batch"):
        for depth in DEPTHS if size.is_full else (size.depth,):
            task = jax_work.Task(size.widths[0], depth, size.batch_size, norm=norm)
            with Process(build_gradient_shift, task=task) as process:
                seconds = take_turns(
                    {n: lambda n=n: process.seconds(n) for n in process.names}, size.rounds
                )
            label = f"gradient shift of all blocks over as many passes, {depth}×{task.width} {norm}"
            values = ratios(seconds, "shared", "passes")
            rows.append(Row("gradient_shift", label, "x", values, Target(0.5, "at most"), seconds))
    return rows


def costs(size: Size) -> list[Row]:
    """Every statistic and measurement in plain steps of the same network."""
    task = jax_work.Task(size.widths[0], size.depth, size.batch_size)
    rows = []
    for kind, build, settings in (
        ("statistic", build_statistics, {"task": task}),
        ("statistic", build_attention, {"batch_size": size.batch_size}),
        ("measurement", build_measurements, {"task": task}),
    ):
        with Process(build, **settings) as process:
            seconds = take_turns(
                {n: lambda n=n: process.seconds(n) for n in process.names}, size.rounds
            )
        for name in process.names:
            if name == "plain":
                continue
            # Ten steps a turn for statistics and the plain step, one measurement a turn.
            scale = 1.0 if kind == "statistic" else 10.0
            values = ratios(seconds, name, "plain", scale)
            if kind == "statistic":
                values = [value - 1 for value in values]
            raw = {key: seconds[key] for key in (name, "plain")}
            rows.append(Row("costs", f"{kind} {name}, in plain steps", "x", values, None, raw))
    return rows
