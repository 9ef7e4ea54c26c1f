"""Does a norm steady the inputs of the layers of a deep MLP that reads movie reviews?

Command: ``ici run experiments/movie_mlp.py`` (Adam) and
``ici run experiments/movie_mlp.py --optimizer sgd --name movie_mlp_sgd`` (plain mini-batch SGD).
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
    target_accuracy=0.70,
)
