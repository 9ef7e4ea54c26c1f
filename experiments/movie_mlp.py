"""Does a norm steady the inputs of the layers of a deep MLP that reads movie reviews?

Command
  ici run experiments/movie_mlp.py                                          (Adam)
  ici run experiments/movie_mlp.py --optimizer sgd --name movie_mlp_sgd     (plain mini-batch SGD)

Setting
  Sentiment of 8,530 Rotten Tomatoes snippets (80/10/10), mean of word embeddings, then 10 blocks of
  128 ReLU units, norm between linear map and ReLU; 600 steps of 128; 8 learning rates; seeds 0-2.

Seen on 2 cores of an Intel Xeon (some 105 s each, compile included; jax 0.10.2, flax 0.12.8). Every
figure is the median of 3 seeds with [min-max]; the shift is the RMS over units of the mean shift
on the fixed reference batch, step 600 against step 0, in standard deviations at step 0.

  Adam
  - No norm: trains from 1e-4 to 1e-2, best at 1e-2 (70.2 % [69.0-71.4] validation accuracy); at
    3e-2 it reaches 70 % in two of three seeds and then dies, with 11 spikes; every seed diverges at
    1e-1. The head's inputs shift by 391 [314-1053] at 1e-2, and 73 % of its units are dead by then.
  - BatchNorm: trains up to 1e-1, best at 1e-1 and 3e-2 (71.7 % [69.2-72.4], 70.7 % [69.8-72.2]);
    nothing diverges. Shift at the head 0.35 [0.28-0.36] at 1e-2 and 0.51 [0.47-0.56] at 3e-2: a
    thousandth of the above.
  - LayerNorm: trains up to 3e-3 (69.0 % [68.2-70.7], shift 38 [7-541]); from 1e-2 on the loss
    stays at ln 2 with most units dead. It learns fastest of all at the smallest rates.
  - Accuracy at the best rate does not tell the three apart at 3 seeds. BatchNorm's gain here is
    the width of the range of rates; the smaller shift goes with it, which is not to say causes it.
  - The RMS is driven by units that are nearly constant at step 0. Runs are chaotic: the last bit
    alone (another order of sums in a build) moves them by about the seed interval, and at 3e-2
    without a norm decides whether the network is alive at the end.

  SGD (its own grid, 3e-3 to 10)
  - Nobody reaches 70 % in 600 steps. Best final training loss: BatchNorm 0.36 [0.34-0.37] at 0.3,
    no norm 0.63 [0.61-0.64] at 0.1, LayerNorm 0.63 [0.62-0.66] at 0.03; validation accuracy
    54-57 % at those rates.
  - No norm diverges in 2 of 3 seeds at 1, LayerNorm in all at 3; BatchNorm never does, and learns
    up to 1. Shift at the head at 0.1: 3.0 [2.5-7.4] without norm, 0.054 [0.050-0.067] with
    BatchNorm, 28 [9-149] with LayerNorm.
"""

import ici
from ici.data import MovieReviews

experiment = ici.Experiment(
    name="movie_mlp",
    data=MovieReviews(source="rotten_tomatoes", vocab_size=4096, max_tokens=48),
    model=ici.MLPConfig(width=128, activation="relu", init="he"),
    norm=("none", "batch", "layer"),
    depth=(10,),
    seed=(0, 1, 2),
    steps=600,
    batch_size=128,
    probe=ici.Probe(stats=("moments", "updates"), every=10),
    target_accuracy=0.70,
)
