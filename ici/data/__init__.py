"""Data sources by name, and which examples make up which batch.

Importing this package loads NumPy only; each source imports what it needs when it is read.
"""

from ici.data.arrays import Arrays
from ici.data.dataset import Dataset, Split, StreamedSplit
from ici.data.movie_reviews import MovieReviews
from ici.data.registry import DataConfig, names, register, resolve
from ici.data.sampler import batch_indices
from ici.data.small import Digits, Synthetic
from ici.data.tfds_sets import ImdbReviews, Mnist, TfdsDirectory

__all__ = [
    "Arrays",
    "DataConfig",
    "Dataset",
    "Digits",
    "ImdbReviews",
    "Mnist",
    "MovieReviews",
    "Split",
    "StreamedSplit",
    "Synthetic",
    "TfdsDirectory",
    "batch_indices",
    "names",
    "register",
    "resolve",
]
