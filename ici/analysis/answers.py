"""What a record answers, in sentences with numbers: the head of a report.

Every sentence carries its number of seeds and says what it rests on; none says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ici.analysis.choices import best_lr
from ici.analysis.digest import Digest
from ici.analysis.divergences import divergences
from ici.analysis.records import describe_setting, short
from ici.analysis.sensitivity import largest_stable_lr, lr_sensitivity


@dataclass(frozen=True)
class Answer:
    """A question of the field and what the record says to it, a sentence each."""

    question: str
    sentences: tuple[str, ...]


def answers(digest: Digest) -> list[Answer]:
    """The answers of a record, most wanted first; questions it cannot answer are left out."""
    makers = (
        _training,
        _speed,
        _stability,
        divergences,
        _sensitivity,
        _shift,
        _spikes,
        _gradients,
        _trust,
    )
    found = []
    for maker in makers:
        question, *sentences = maker(digest)
        if sentences:
            found.append(Answer(question, tuple(sentences)))
    return found


def _settings(digest: Digest) -> Iterator[tuple[dict[str, Any], str]]:
    """Depths and other settings with their names, at most four of many."""
    dims = [dim for dim in digest.cell_dims if dim not in ("norm", "lr")]
    shape = [digest.runs.sizes[dim] for dim in dims]
    n = int(np.prod(shape))
    few = sorted({round(i) for i in np.linspace(0, n - 1, min(n, 4))})
    for i in few:
        at = np.unravel_index(i, shape) if shape else ()
        setting = {dim: digest.runs[dim].values[j].item() for dim, j in zip(dims, at, strict=True)}
        yield setting, f" at {describe_setting(setting)}" if n > 1 else ""


def _spread(values: np.ndarray, form: str = ".3g", factor: float = 1.0, unit: str = "") -> str:
    """``median [min to max]`` of the numbers that are finite, with the number of seeds."""
    known = values[np.isfinite(values)] * factor
    seeds = f"{known.size} seed" + ("s" if known.size != 1 else "")
    if not known.size:
        return "no seed"
    text = f"{np.median(known):{form}}{unit}"
    if known.size == 1:
        return f"{text} ({seeds}, no interval)"
    return f"{text} [{known.min():{form}} to {known.max():{form}}, {seeds}]"


def _so_far(digest: Digest, **run: Any) -> str:
    """A remark on a cell with runs to come: how far they are, since others may be further."""
    going = digest.runs["going"].sel(run)
    if not bool(going.any()):
        return ""
    known = digest.scores.sel(run).where(going).notnull()
    known = known.any([dim for dim in known.dims if dim != "step"])
    if not bool(known.any()):
        return " (so far)"
    step = int(known["step"].values[known.values][-1])
    return f" (so far, step {step} of {digest.experiment['steps']})"


def _score_text(digest: Digest, values: np.ndarray) -> str:
    if digest.score == "accuracy":
        return _spread(values, ".1f", 100.0, " %")
    return _spread(values)


def _training(digest: Digest) -> list[str]:
    kind = "validation accuracy" if digest.score == "accuracy" else "validation loss"
    sentences = [f"Which norm trains best ({kind})?"]
    scores, best = digest.runs[f"best_validation_{digest.score}"], best_lr(digest)
    for setting, where in _settings(digest):
        said, none = [], []
        for norm in digest.runs["norm"].values.tolist():
            lr = float(best.sel({"norm": norm, **setting}))
            if math.isnan(lr):
                none.append(norm)
                continue
            cell = {"norm": norm, "lr": lr, **setting}
            values = scores.sel(cell).values
            text = f"{norm} {_score_text(digest, values)} at lr {short(lr)}"
            said.append((np.median(values), text + _so_far(digest, **cell)))
        said.sort(key=lambda each: -each[0] if digest.score == "accuracy" else each[0])
        if said:
            sentences.append(
                f"Best evaluation of each at its own best learning rate{where}: "
                + "; ".join(text for _, text in said)
                + "."
            )
        if none:
            sentences.append(
                f"{_listed(none)}{where}: at every learning rate a seed diverged or has no "
                "evaluation."
            )
    return sentences


def _speed(digest: Digest) -> list[str]:
    sentences = [f"How fast do they get there ({digest.runs.attrs['target']})?"]
    if "steps_to_target" not in digest.runs:
        return sentences
    steps, best = digest.runs["steps_to_target"], best_lr(digest)
    if not bool(np.isfinite(steps).any()):
        return [*sentences, f"No run has met the target ({digest.target_source})."]
    for setting, where in _settings(digest):
        said = []
        for norm in digest.runs["norm"].values.tolist():
            lr = float(best.sel({"norm": norm, **setting}))
            if math.isnan(lr):
                continue
            values = steps.sel({"norm": norm, "lr": lr, **setting}).values
            met = np.isfinite(values)
            middle = np.median(np.where(np.isnan(values), np.inf, values))
            missed = "not met yet" if np.isnan(values).any() else "missed"
            share = "half of the" if 2 * met.sum() == len(values) else "most"
            text = f"{middle:.0f} steps" if math.isfinite(middle) else f"{missed} by {share} seeds"
            said.append((middle, f"{norm} {text} ({met.sum()} of {len(values)} seeds met it)"))
        said.sort(key=lambda each: each[0])
        if said:
            sentences.append(
                f"Median steps to the target, {digest.target_source}, at each norm's best rate"
                f"{where}: " + "; ".join(text for _, text in said) + "."
            )
    return sentences


def _stability(digest: Digest) -> list[str]:
    sentences = ["Up to which learning rate and depth do they train?"]
    runs = digest.runs.sortby("lr")
    ended, begun = runs["diverged_at"].notnull(), runs["first_loss"].notnull()
    lrs = ended["lr"].values
    n_lrs = len(lrs)
    for setting, where in _settings(digest):
        said = []
        for norm in digest.runs["norm"].values.tolist():
            of_norm = ended.sel({"norm": norm, **setting}).transpose("lr", "seed").values
            largest = float(largest_stable_lr(lrs, of_norm))
            if not (of_norm.any() or bool(begun.sel({"norm": norm, **setting}).any())):
                said.append(f"{norm} has not started")
                continue
            # Of rates above one that fails no more is asked.
            up_to = {"norm": norm, "lr": lrs[lrs <= largest].tolist(), **setting}
            if largest == 0:
                said.append(f"{norm} at none of the rates")
            elif largest == lrs[-1]:
                said.append(f"{norm} at all {n_lrs} (up to {short(largest)}, the end of the grid)")
            else:
                said.append(f"{norm} up to {short(largest)}")
            said[-1] += _so_far(digest, **up_to)
        sentences.append(f"No seed diverges{where}: " + "; ".join(said) + ".")
    stuck = digest.runs["no_progress"]
    for norm in digest.runs["norm"].values.tolist():
        n = int(stuck.sel(norm=norm).sum())
        if n:
            sentences.append(
                f"{norm}: {n} of {stuck.sel(norm=norm).size} runs did not diverge but ended no "
                "lower than their first loss."
            )
    return sentences


def _sensitivity(digest: Digest) -> list[str]:
    sentences = ["How much does the learning rate matter?"]
    if digest.runs.sizes["lr"] < 2 or bool(digest.runs["going"].any()):
        return sentences
    for setting, where in _settings(digest):
        said = [
            f"{norm} {_spread(values)}"
            for norm, values in sensitivity(digest, setting).items()
            if np.isfinite(values).any()
        ]
        if said:
            n = digest.runs.sizes["lr"]
            sentences.append(
                f"Mean final training loss above the best rate's{where}, over {n} rates"
                f"{uneven(digest.runs['lr'].values)} with diverged runs counted as their first "
                f"loss: {'; '.join(said)}."
            )
        idle = [n for n, values in sensitivity(digest, setting).items() if np.isnan(values).all()]
        if idle:
            sentences.append(f"{_listed(idle)}{where}: no rate ends below the first loss.")
    return sentences


def uneven(lrs: np.ndarray) -> str:
    """A word on grids whose rates do not weigh the same on a logarithmic axis."""
    gaps = np.diff(np.log(np.sort(lrs)))
    return " (unevenly spaced)" if gaps.max() > 2.5 * gaps.min() else ""


def sensitivity(digest: Digest, setting: dict[str, Any]) -> dict[str, np.ndarray]:
    """`lr_sensitivity` of each seed ``[seed]`` by norm, from final training losses.

    NaN for a seed that no rate takes below its first loss: the definition gives 0, its best, to
    what never learns.
    """
    runs = digest.runs.sel(setting).sortby("lr")
    found = {}
    for norm in runs["norm"].values.tolist():
        first = runs["first_loss"].sel(norm=norm).median("lr").transpose("seed").values
        if not np.isfinite(first).all():
            continue
        final = runs["final_loss"].sel(norm=norm).transpose("seed", "lr").values
        learned = (final < first[:, None]).any(axis=1)
        found[norm] = np.where(learned, lr_sensitivity(final, first), np.nan)
    return found


def _shift(digest: Digest) -> list[str]:
    site = digest.runs.attrs["site"]
    sentences = [f"How far do the inputs of {site} move?"]
    if site is None:
        return sentences
    best = best_lr(digest)
    for setting, where in _settings(digest):
        said = []
        for norm in digest.runs["norm"].values.tolist():
            lr = float(best.sel({"norm": norm, **setting}))
            if math.isnan(lr):
                continue
            values = digest.runs["shift"].sel({"norm": norm, "lr": lr, **setting}).values
            if np.isfinite(values).any():
                text = f"{norm} {_spread(values)} at lr {short(lr)}"
                text += _so_far(digest, norm=norm, lr=lr, **setting)
                said.append((np.nanmedian(values), text))
        said.sort(key=lambda each: each[0])
        if said:
            end = "the last measurement" if bool(digest.runs["going"].any()) else "the end"
            sentences.append(
                f"Mean shift from step 0 to {end} on the reference batch, in standard deviations "
                f"of a unit{where}: {'; '.join(text for _, text in said)}. An unchanged network "
                "has exactly 0."
            )
    return sentences


def _spikes(digest: Digest) -> list[str]:
    sentences = ["Where do losses spike, and what moved first?"]
    counts = digest.runs["spikes"]
    if not bool(counts.notnull().any()):
        rule = digest.runs.attrs["spike_rule"]
        return [*sentences, f"No run is long enough to judge a single step ({rule})."]
    by_norm = []
    for norm in digest.runs["norm"].values.tolist():
        of_norm = counts.sel(norm=norm)
        spiky, judged = int((of_norm > 0).sum()), int(of_norm.notnull().sum())
        early = of_norm.size - judged
        by_norm.append(
            f"{norm} {int(of_norm.sum())} in {spiky} of {judged} runs"
            + (f" ({early} too short to judge)" if early else "")
        )
    sentences.append(f"Spikes: {'; '.join(by_norm)} ({digest.runs.attrs['spike_rule']}).")
    lead = digest.spikes.lead
    if lead is not None and lead.n_events:
        sentences.append(
            f"Before {lead.n_led} of {lead.n_events} spikes a layer's inputs left their usual "
            f"range within {lead.lookback_steps} steps"
            + (f" (median {lead.median_steps:.0f} steps before)" if lead.n_led else "")
            + f"; by chance it would be {100 * lead.null_share:.0f} % "
            f"(p = {lead.p_value:.3g}, spikes at {lead.n_rotations} other sets of times)."
        )
        first = [spike.movers[0].site for spike in digest.spikes.spikes if spike.movers]
        if first:
            names, n = np.unique(first, return_counts=True)
            top = np.argsort(-n, kind="stable")[:3]
            sentences.append(
                "First to move: " + ", ".join(f"{names[i]} ({n[i]}×)" for i in top) + "."
            )
    return sentences


def _gradients(digest: Digest) -> list[str]:
    sentences = ["Do gradients vanish or explode with depth?"]
    if digest.gradients is None or "growth" not in digest.gradients:
        return sentences
    first = digest.gradients.isel(step=0)
    for setting, where in _settings(digest):
        said = []
        for norm in digest.runs["norm"].values.tolist():
            at = first.sel({"norm": norm, **setting})
            growth, r2 = (float(at[name].median("lr")) for name in ("growth", "r2"))
            if math.isfinite(growth):
                said.append(f"{norm} × {growth:.3g} (R² {r2:.2f})")
        if said:
            sentences.append(
                f"From a layer to the one below, at initialization{where}, gradient norms grow by "
                f"{'; '.join(said)}; below 1 they vanish. Median seed."
            )
    return sentences


def _trust(digest: Digest) -> list[str]:
    sentences = ["How sure is this?"]
    n, runs = digest.n_seeds, digest.runs
    several = runs.sizes["norm"] > 1
    if n == 1:
        sentences.append("One seed: no interval and no verdict is possible; sweep seed.")
    else:
        sentences.append(
            f"{n} seeds a cell. Brackets are the range over seeds, which with so few says little "
            "of other seeds" + ("; `--compare norm` tests the differences." if several else ".")
            if n < 6
            else f"{n} seeds a cell; brackets are the range over seeds."
        )
    begun = runs["first_loss"].notnull() | runs["diverged_at"].notnull()
    ongoing = runs["going"] & begun
    ended, going = int(runs["diverged_at"].notnull().sum()), int(ongoing.sum())
    total = int(begun.sum())
    sentences.append(
        f"{total} runs, {ended} diverged" + ("; those have no final value." if ended else ".")
    )
    if going:
        norms = [n for n in runs["norm"].values.tolist() if bool(ongoing.sel(norm=n).any())]
        sentences.append(
            f"{going} runs are still going ({_listed(norms)}): this is what they have recorded so "
            "far, and none of them has come through yet."
        )
    if digest.not_begun:
        sentences.append(runs.attrs["incomplete"])
    return sentences


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
