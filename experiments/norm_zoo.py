"""Twelve norms in one small convnet: which train, how fast, and how far do layer inputs move?

Command
  ici run experiments/norm_zoo.py
  ici run experiments/norm_zoo.py --scale full      (an accelerator: CIFAR-10, 18 layers, 5 seeds)

Setting
  4,000 MNIST digits, a plain convnet of 7 convolutions, the norm between convolution and ReLU,
  momentum 0.9; 200 steps of 64; 4 learning rates; seeds 0-1.
"""

import dataclasses

import ici
from ici.data import Cifar10
from ici.models import ConvNetConfig

experiment = ici.Experiment(
    name="norm_zoo",
    data="mnist5k",
    model=ConvNetConfig(width=8, stages=3),
    norm=(
        "none",
        "weight",
        "batch",
        "batch:ghost=16",
        "batch_noisy",
        "lp:p=1",
        "lp:p=inf",
        "layer",
        "rms",
        "group:groups=4",
        "instance",
        "dyt",
    ),
    depth=6,
    optimizer="momentum",
    lr=(1e-2, 3e-2, 1e-1, 3e-1),
    seed=(0, 1),
    steps=200,
    batch_size=64,
    probe=ici.Probe(stats=("moments", "dead_units"), every=10),
    reference_size=256,
    reference_every=50,
    eval_every=50,
    target_accuracy=0.9,
)
scales = {
    "full": dataclasses.replace(
        experiment,
        name="norm_zoo_full",
        data=Cifar10(),
        model=ConvNetConfig(width=64, stages=3),
        depth=18,
        seed=(0, 1, 2, 3, 4),
        steps=20_000,
        batch_size=128,
        schedule="cosine",
        augment="crop_flip",
        reference_every=1000,
        eval_every=500,
        target_accuracy=0.85,
    )
}
