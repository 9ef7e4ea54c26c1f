"""Random changes of training images, as functions of seed, step and example.

They run inside the compiled step. Add one with `register_augmentation`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ici.errors import InputError, unknown_name

PADDING = 4  # pixels on every side before `crop`

# Keeps these keys apart from those of weights and noise, which fold small numbers into the seed's.
_STREAM = 0x9E3779B1

Augmentation = Callable[[Any, Any], Any]
_REGISTRY: dict[str, Augmentation] = {}


def register_augmentation(name: str) -> Callable[[Augmentation], Augmentation]:
    """Decorator for a function ``(key, image[H, W, C]) -> image[H, W, C]`` in JAX.

    Raises `InputError` for a name that another function holds.
    """

    def decorate(function: Augmentation) -> Augmentation:
        holder = _REGISTRY.get(name)
        # The same function again is a module that was reloaded, as notebooks do.
        if holder is not None and _identity(holder) != _identity(function):
            raise InputError(
                f"augmentation {name!r} is already registered by {_identity(holder)}: choose "
                "another name"
            )
        _REGISTRY[name] = function
        return function

    return decorate


def augmentation_names() -> tuple[str, ...]:
    """Names that ``augment=`` takes, sorted, with "none" first."""
    return "none", *sorted(set(_REGISTRY) - {"none"})


def augmented(name: str, images: Any, ids: Any, seed: Any, step: Any) -> Any:
    """The images ``[B, H, W, C]`` of a batch, changed.

    Each depends on itself, its number ``ids[B]`` in the training split, `seed` and `step` alone:
    neither the other examples of the batch nor its order matter. All may be traced. Raises
    `InputError` for an unknown name.
    """
    import jax

    if name not in augmentation_names():
        raise unknown_name("augment", name, augmentation_names())
    if name == "none":
        return images
    function = _REGISTRY[name]
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)

    def change(image: Any, example_id: Any) -> Any:
        return function(jax.random.fold_in(key, example_id), image)

    return jax.vmap(change)(images, ids)


@register_augmentation("none")
def unchanged(key: Any, image: Any) -> Any:
    """The image as it is."""
    return image


@register_augmentation("flip")
def flip(key: Any, image: Any) -> Any:
    """Left and right exchanged with probability 1/2."""
    import jax
    import jax.numpy as jnp

    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


@register_augmentation("crop")
def crop(key: Any, image: Any) -> Any:
    """A random window of the image's own size after padding with 4 zeros on every side.

    He et al. 2016, section 4.2; inputs are normalised, so that a zero is the mean colour.
    """
    import jax
    import jax.numpy as jnp

    padded = jnp.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * PADDING + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


@register_augmentation("crop_flip")
def crop_flip(key: Any, image: Any) -> Any:
    """`crop`, then `flip`, drawn independently."""
    import jax

    for_crop, for_flip = jax.random.split(key)
    return flip(for_flip, crop(for_crop, image))


def _identity(function: Augmentation) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"
