"""Up to which depth and learning rate does a plain convnet train, with and without a norm?

Command
  ici run experiments/convnet_depth_lr.py
  ici run experiments/convnet_depth_lr.py --scale full    (an accelerator: CIFAR-10, to 98 layers)

Setting
  1,437 digits of 8 x 8 pixels, plain convnets without residual connections, the norm between
  convolution and ReLU, momentum 0.9; 200 steps of 64; depths 6, 18 and 36; 5 learning rates; seeds
  0-1.
"""

import dataclasses

import ici
from ici.data import Cifar10, Digits
from ici.models import ConvNetConfig

experiment = ici.Experiment(
    name="convnet_depth_lr",
    data=Digits(layout="images"),
    model=ConvNetConfig(width=16, stages=2),
    norm=("none", "batch", "layer"),
    depth=(6, 18, 36),
    optimizer="momentum",
    lr=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    seed=(0, 1),
    steps=200,
    batch_size=64,
    probe=ici.Probe(stats=("moments", "updates"), every=10),
    reference_size=128,
    reference_every=50,
    eval_every=50,
    target_accuracy=0.9,
)
scales = {
    "full": dataclasses.replace(
        experiment,
        name="convnet_depth_lr_full",
        data=Cifar10(),
        model=ConvNetConfig(width=16, stages=3),
        depth=(8, 20, 44, 98),
        lr=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
        seed=(0, 1, 2),
        steps=20_000,
        batch_size=128,
        schedule="cosine",
        augment="crop_flip",
        measure=("gradient_shift@2000",),
        reference_every=1000,
        eval_every=500,
        target_accuracy=0.8,
    )
}
