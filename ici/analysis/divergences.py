"""How the runs that diverged ended, in sentences: a rule each, and what was not finite first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ici.analysis.digest import Digest
from ici.analysis.outcomes import CAUSES
from ici.analysis.records import short

MAX_SENTENCES = 8


def divergences(digest: Digest) -> list[str]:
    """The question, and a sentence for every norm, depth, cause and first non-finite tensor, the
    commonest first."""
    runs = digest.runs
    dims = digest.run_dims
    at = runs["diverged_at"].values
    causes = runs["cause"].transpose(*dims).values
    first = runs["first_nonfinite"].transpose(*dims).values
    alike: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}
    for place in zip(*np.nonzero(np.isfinite(at)), strict=True):
        labels = {dim: runs[dim].values[i].item() for dim, i in zip(dims, place, strict=True)}
        key = (labels["norm"], labels["depth"], causes[place], first[place])
        alike.setdefault(key, []).append(place)
    ordered = sorted(alike.items(), key=lambda each: -len(each[1]))
    ratio = digest.experiment.get("divergence_ratio") or 1e3
    sentences = ["How did the runs end that diverged?"]
    for (norm, depth, cause, tensor), places in ordered[:MAX_SENTENCES]:
        lrs = [runs["lr"].values[place[dims.index("lr")]].item() for place in places]
        of_depth = f", depth {depth}" if runs.sizes["depth"] > 1 else ""
        without_seed = [i for i, dim in enumerate(dims) if dim != "seed"]
        cells = {tuple(place[i] for i in without_seed) for place in places}
        why = f"loss above {ratio:g} × the first" if cause == CAUSES[2] else cause
        why += f", first non-finite: {tensor}" if tensor else ""
        steps = _range([at[place] for place in places], "{:.0f}".format)
        sentences.append(
            f"{norm}{of_depth}, lr {_range(lrs, short)}: {len(places)} of "
            f"{len(cells) * digest.n_seeds} runs: {why}, at step {steps}."
        )
    if len(ordered) > MAX_SENTENCES:
        n = len(ordered) - MAX_SENTENCES
        sentences.append(f"{n} more such kinds: the table of runs has each run's.")
    return sentences


def _range(values: Sequence[float], text: Callable[[float], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"
