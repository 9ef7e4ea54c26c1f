"""What every caption begins with: the runs behind a figure."""

from __future__ import annotations

from typing import Any

from ici.analysis.digest import Digest

_NOUNS = {"norm": "norm", "lr": "learning rate", "seed": "seed", "depth": "depth"}


def of_runs(digest: Digest, setting: dict[str, Any] | None = None) -> str:
    """``9 runs (3 norms, 3 seeds) of 600 steps, adam, batch 128, 2 diverged.``

    Of the runs with the labels of `setting`, or of all.
    """
    experiment, runs = digest.experiment, digest.runs[["diverged_at", "going"]].sel(setting or {})
    at = runs["diverged_at"]
    kinds = ", ".join(_counted(str(dim), at.sizes[dim]) for dim in at.dims)
    going = int(runs["going"].sum())
    return (
        f"{_plural(at.size, 'run')} ({kinds}) of {experiment['steps']} steps, "
        f"{experiment.get('optimizer', '?')}, batch {experiment.get('batch_size', '?')}, "
        f"{int(at.notnull().sum())} diverged{f', {going} still going' if going else ''}."
    )


def of_seeds(digest: Digest) -> str:
    """Of how many seeds a value is the median, or that one seed has no interval."""
    n = digest.n_seeds
    return f"Medians over the running ones of {n} seeds." if n > 1 else "One seed, no interval."


def _counted(dim: str, n: int) -> str:
    return _plural(n, _NOUNS[dim]) if dim in _NOUNS else f"{_plural(n, 'value')} of {dim}"


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
