"""Data sources by name, and which examples make up which batch.

Importing this package loads NumPy only; each source imports what it needs when it is read.
"""

from ici.data.arrays import Arrays
from ici.data.dataset import Dataset, Split, StreamedSplit
from ici.data.image_folder import ImageFolder
from ici.data.language_text import ReviewText, TextFiles
from ici.data.language_tfds import Lm1b, TinyShakespeare
from ici.data.linear_teacher import LinearTeacher
from ici.data.mnist5k import Mnist5k
from ici.data.movie_reviews import MovieReviews
from ici.data.registry import DataConfig, names, register, resolve
from ici.data.sampler import batch_indices
from ici.data.small import Digits, Synthetic
from ici.data.tfds_sets import ImdbReviews, Mnist, TfdsDirectory
from ici.data.vision import Cifar10, FashionMnist

__all__ = [
    "Arrays",
    "Cifar10",
    "DataConfig",
    "Dataset",
    "Digits",
    "FashionMnist",
    "ImageFolder",
    "ImdbReviews",
    "LinearTeacher",
    "Lm1b",
    "Mnist",
    "Mnist5k",
    "MovieReviews",
    "ReviewText",
    "Split",
    "StreamedSplit",
    "Synthetic",
    "TextFiles",
    "TfdsDirectory",
    "TinyShakespeare",
    "batch_indices",
    "names",
    "register",
    "resolve",
]
