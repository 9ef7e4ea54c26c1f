"""The traces of Ioffe & Szegedy 2015, Figure 1: do the inputs of the last sigmoids hold still?

Command
  ici run experiments/mnist_traces.py
  ici run experiments/mnist_traces.py --scale full      (all of MNIST, 50,000 steps, as the paper)

Setting
  4,000 MNIST digits, 3 hidden layers of 100 sigmoid units, weights from a small Gaussian, norm
  before the nonlinearity, mini-batch SGD, 60 examples a step. On a fixed batch the 15th, 50th and
  85th percentile of every input to a nonlinearity; `blocks/2/nonlinearity` is the one of the paper.

Seen on 2 cores of an Intel Xeon (83 s, compile included; jax 0.10.2, flax 0.12.8). Median of 3
seeds [min-max]; shift of the classifier's inputs, step 4000 against step 0, in σ of step 0.

  - Steps to 90 % validation accuracy: no norm 2600 [2500-2900] at 0.1, 1000 at 0.3, 500 at 1 and
    3; BatchNorm 800 [500-1200] at 0.1, 400 [400-900] at 0.3, 900 [500-1100] at 1, 300 [200-300]
    at 3. So BatchNorm is three times as fast at the smallest rate, and at most twice at the best
    one.
  - Shift: no norm 8.8 [8.5-10.2] at 0.1 to 24 [23-25] at 3; BatchNorm 0.050 [0.049-0.056] at 0.1
    to 1.22 [1.21-1.28] at 3. The inputs do hold still; how much of the speed that explains is
    another question.
  - Final accuracy 90-93 % on 500 held-out digits either way.
"""

import dataclasses

import ici
from ici.data import Mnist
from ici.models import MLPConfig

experiment = ici.Experiment(
    name="mnist_traces",
    data="mnist5k",
    model=MLPConfig(width=100, activation="sigmoid", init="small_gaussian", gaussian_std=0.1),
    norm=("none", "batch"),
    depth=3,
    optimizer="sgd",
    lr=(0.1, 0.3, 1.0, 3.0),
    seed=(0, 1, 2),
    steps=4000,
    batch_size=60,
    probe=ici.Probe(
        select=lambda site: site.has_weights or site.is_norm or site.name.endswith("nonlinearity"),
        stats=("moments", "percentiles"),
        every=50,
    ),
    measure=("gradient_shift@500",),
    reference_size=512,
    reference_every=100,
    eval_every=100,
    target_accuracy=0.9,
)
scales = {
    "full": dataclasses.replace(
        experiment, name="mnist_traces_full", data=Mnist(), steps=50_000, reference_every=500
    )
}
