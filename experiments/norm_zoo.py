"""Twelve norms in one small convnet: which train, how fast, and how far do layer inputs move?

Command
  ici run experiments/norm_zoo.py
  ici run experiments/norm_zoo.py --scale full      (an accelerator: CIFAR-10, 18 layers, 5 seeds)

Setting
  4,000 MNIST digits, a plain convnet of 7 convolutions, the norm between convolution and ReLU,
  momentum 0.9; 200 steps of 64; 4 learning rates; seeds 0-1.

Seen on 2 cores of an Intel Xeon shared with other work (580 s; jax 0.10.2, flax 0.12.8). At each
norm's best rate, mean of 2 seeds [min-max]: final training loss; shift of the classifier's
inputs.

  - Over the batch: batch 0.18 [0.17-0.18] at 0.1, 5.8 σ; l_1 0.18 at 0.1, 5.2 σ; ghost batches of
    16 0.21 at 0.3, 4.4 σ; noisy 0.25 [0.23-0.27] at 0.3, 2.5 σ; l_inf 0.59 [0.52-0.66] at 0.3, 26
    σ.
  - Per example: instance 0.27 [0.26-0.28] at 0.3, 15 σ, and the only one whose seeds both reach
    90 % validation accuracy (in 150 and 200 steps); group 0.77 at 0.1, 25 σ; rms 0.98 at 0.1, 28
    σ; layer 1.33 at 0.03, 17 σ.
  - none 0.98 at 0.01, 184 σ, and fails from 0.1 on; weight 1.06 at 0.03, 161 σ; dyt does not
    learn at any rate here: its units die.
  - BatchNorm with noise shifts *less* than BatchNorm by this measure, in units of σ at step 0,
    where the noise is part of σ. What Santurkar et al. 2018 add is variation from step to step,
    which the fixed reference batch sees only as that σ.
  - Networks over the batch fit well and score 78-87 %: running averages lag behind in 200 steps.
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
    probe=ici.Probe(stats=("moments", "updates", "dead_units"), every=10),
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
