"""The traces of Ioffe & Szegedy 2015, Figure 1: do the inputs of the last sigmoids hold still?

Command
  ici run experiments/mnist_traces.py
  ici run experiments/mnist_traces.py --scale full      (all of MNIST, 50,000 steps, as the paper)

Setting
  4,000 MNIST digits, 3 hidden layers of 100 sigmoid units, weights from a small Gaussian, norm
  before the nonlinearity, mini-batch SGD, 60 examples a step. On a fixed batch the 15th, 50th and
  85th percentile of every input to a nonlinearity; `blocks/2/nonlinearity` is the one of the paper.
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
