"""Up to which depth and learning rate does a plain convnet train, with and without a norm?

Command
  ici run experiments/convnet_depth_lr.py
  ici run experiments/convnet_depth_lr.py --scale full    (an accelerator: CIFAR-10, to 98 layers)

Setting
  1,437 digits of 8 x 8 pixels, plain convnets without residual connections, the norm between
  convolution and ReLU, momentum 0.9; 200 steps of 64; depths 6, 18 and 36; 5 learning rates; seeds
  0-1.

Seen on 2 cores of an Intel Xeon shared with other work (470 s, half of it compiling; jax 0.10.2,
flax 0.12.8). Mean of 2 seeds [min-max]; validation accuracy at the best rate, and the shift of
the classifier's inputs there, step 200 against step 0, in σ of step 0.

  - Depth 6: no norm 95 % at 0.03 (53 σ), BatchNorm 99 % at 0.1 (2.8 σ), LayerNorm 97 % at 0.03
    (11 σ). All three train.
  - Depth 18: no norm 89 % [83-95] at 0.01 (500 σ) and nothing at half of the rates; BatchNorm 97
    % at 0.03 (1.5 σ); LayerNorm 93 % at 0.01 (10 σ), and nothing at 0.1.
  - Depth 36: no norm stays near chance (10 %) but for one seed at 0.01 (49 %), and diverges at
    0.1; BatchNorm 82 % [80-84] at 0.01 (0.9 σ), LayerNorm 78 % [75-81] at 0.003 (17 σ); nobody
    reaches 90 % in 200 steps.
  - The largest rate at which no seed stays at chance: no norm 0.03, 0.01, none; LayerNorm 0.1,
    0.03, 0.01; BatchNorm 0.1 at every depth. BatchNorm's best rate falls from 0.1 to 0.01 with
    depth all the same.
  - Without a norm the shift grows with depth at the rates that train (77, 499, 383 σ at 0.01);
    with BatchNorm it is 1 σ at 0.01 whatever the depth.
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
