"""A loop that knows nothing of measurement, looked at through its checkpoints.

    python experiments/own_loop/checkpoints_only.py

Six seconds on two busy CPU cores, nearly all of it compiling. The training step is left alone: a
copy of the net at each checkpoint is run on one fixed batch, and `ici.shift` compares what its
layers receive with what they received at the start. One seed, 60 steps of Adam at 3e-3: the first
layer's input is the data and shifts by exactly 0, the second's by 7 σ, the third's by 14 σ, the
head's by 67 σ (RMS over features, which those that hardly varied at the start dominate).
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


@nnx.jit
def train_step(net, optimizer, images, labels):
    def loss_of(net):
        return optax.softmax_cross_entropy_with_integer_labels(net(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_of)(net)
    optimizer.update(net, grads)
    return loss


def main(steps: int = 60, every: int = 20) -> list[dict[str, float]]:
    digits = load_digits()
    images, labels = (digits.data / 16).astype("float32"), digits.target
    net = Net(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(3e-3), wrt=nnx.Param)
    probe, reference = ici.Probe(), images[-128:]
    checkpoints = [nnx.clone(net)]
    for i in range(steps):
        rows = slice(128 * i % 1536, 128 * i % 1536 + 128)
        train_step(net, optimizer, images[rows], labels[rows])
        if (i + 1) % every == 0:
            checkpoints.append(nnx.clone(net))

    taps = [ici.watch(checkpoint, probe)(reference)[1] for checkpoint in checkpoints]
    shifts = [
        {
            site: round(float(ici.shift(taps[0][site], after[site]).aggregate()["mean_shift"]), 3)
            for site in after
        }
        for after in taps[1:]
    ]
    for i, row in enumerate(shifts, 1):
        print(f"step {i * every:3d}  mean shift in σ since the start {row}")
    return shifts


if __name__ == "__main__":
    main()
