"""Random changes of training images, as functions of seed, step and example."""

from __future__ import annotations

from typing import Any


def augmentation_names() -> tuple[str, ...]:
    """Names that ``augment=`` takes."""
    return ("none",)


def augmented(name: str, images: Any, ids: Any, seed: Any, step: Any) -> Any:
    """The images of a batch, changed."""
    raise NotImplementedError
