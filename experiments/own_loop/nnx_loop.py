"""A hand-written `nnx.jit` loop, measured: the three lines that mention ici.

    python experiments/own_loop/nnx_loop.py

Nine seconds on two busy CPU cores, nearly all of it compiling. On scikit-learn's 1,797 digits, one
seed: the loss falls from 2.3 to 0.20 in 50 steps of Adam at 3e-3 while the standard deviation of
the head's inputs grows from 0.07 to 0.92; that of the first layer's, the data, stays at 0.22.
"""

from __future__ import annotations

import optax
from flax import nnx
from sklearn.datasets import load_digits

import ici


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


PROBE = ici.Probe(every=10)


@nnx.jit(static_argnames="probe")
def train_step(net, optimizer, images, labels, probe):
    def loss_of(net):
        logits, taps = ici.watch(net, probe)(images)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, taps

    (loss, taps), grads = nnx.value_and_grad(loss_of, has_aux=True)(net)
    optimizer.update(net, grads)
    return loss, taps


def main(steps: int = 60) -> tuple[list[float], list[dict[str, float]]]:
    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target
    net = Net(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(3e-3), wrt=nnx.Param)
    losses, spreads = [], []
    for i in range(steps):
        rows = slice(128 * i % 1664, 128 * i % 1664 + 128)
        probe = PROBE if i % PROBE.every == 0 else None
        loss, taps = train_step(net, optimizer, images[rows], labels[rows], probe=probe)
        losses.append(float(loss))
        if taps is not None:
            spreads.append({site: round(float(m.std.mean()), 3) for site, m in taps.items()})
            print(f"step {i:3d}  loss {losses[-1]:.3f}  std of inputs {spreads[-1]}")
    return losses, spreads


if __name__ == "__main__":
    main()
