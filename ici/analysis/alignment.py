"""What of different norms, depths or experiments can be held against one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from ici.analysis.digest import Digest
from ici.analysis.records import last_recorded, short
from ici.errors import InputError


def at_best(runs: xr.Dataset, score: str) -> xr.Dataset:
    """Every cell at its own best learning rate: the dimension ``lr`` becomes the variable
    ``best_lr``; blank where at every rate a seed diverged."""
    median = runs[f"best_validation_{score}"].sortby("lr").median("seed", skipna=False)
    merit = median if score == "accuracy" else -median
    known = merit.notnull().any("lr")
    position = merit.fillna(-np.inf).argmax("lr")
    best = merit["lr"].isel(lr=position).drop_vars("lr")
    numbers = [name for name in runs if runs[name].dtype.kind in "fbiu"]
    chosen = runs[numbers].sortby("lr").isel(lr=position).drop_vars("lr")
    chosen = chosen.astype(np.float64).where(known)
    return chosen.assign(
        best_lr=best.where(known), diverged_share=runs["diverged_at"].notnull().mean("lr")
    )


def finished(runs: xr.Dataset) -> xr.Dataset:
    """The runs with those that are still going blank: they have no final value yet."""
    names = [name for name in runs if runs[name].dtype.kind == "f" and name != "diverged_at"]
    return runs.assign({name: runs[name].where(~runs["going"].astype(bool)) for name in names})


def comparable(digests: Mapping[str, Digest]) -> tuple[list[xr.Dataset], list[str]]:
    """The runs of each experiment without what cannot be compared, and notes that say so.

    Raises:
      InputError: experiments of different tasks.
    """
    if len({digest.task for digest in digests.values()}) > 1:
        tasks = ", ".join(f"{name} {digest.task}" for name, digest in digests.items())
        raise InputError(f"experiments of different tasks ({tasks}): wanted the same task.")
    tables, notes = [digest.runs for digest in digests.values()], []

    def differing(attribute: str) -> str:
        values = [table.attrs.get(attribute) for table in tables]
        named = ", ".join(f"{n} {v}" for n, v in zip(digests, values, strict=True))
        return named if len(set(values)) > 1 else ""

    if targets := differing("target"):
        tables = [table.drop_vars("steps_to_target", errors="ignore") for table in tables]
        notes.append(f"no steps to target, as the targets differ: {targets}")
    if sites := differing("site"):
        notes.append(f"shift is that of the deepest site of each: {sites}")
    if len({int(digest.experiment["steps"]) for digest in digests.values()}) > 1:
        notes.append("the experiments trained for different numbers of steps")
    return tables, notes


def shared(
    tables: Sequence[xr.Dataset], names: Sequence[str]
) -> tuple[list[xr.Dataset], list[str]]:
    """The tables cut down to the labels that all have, and what was dropped."""
    found, notes = list(tables), []
    dims = list(dict.fromkeys(str(dim) for table in tables for dim in table.dims if dim != "seed"))
    for dim in dims:
        have = [table[dim].values.tolist() if dim in table.dims else None for table in found]
        if any(each is None for each in have):
            single = [i for i, each in enumerate(have) if each is not None]
            raise InputError(
                f"{dim} was swept in {names[single[0]]} and not in all: wanted experiments that "
                f"sweep the same, or one value of {dim} each."
            )
        common = [v for v in have[0] or [] if all(v in (each or []) for each in have)]
        if not common:
            if all(len(each or []) == 1 for each in have):
                # One value each, such as two depths: that is what is compared.
                found = [table.isel({dim: 0}, drop=True) for table in found]
                values = ", ".join(
                    f"{name} {short(each[0])}"
                    for name, each in zip(names, have, strict=True)
                    if each
                )
                notes.append(f"{dim} differs: {values}")
                continue
            raise InputError(
                f"experiments share no {dim} ({'; '.join(str(each) for each in have)}): wanted at "
                "least one in common."
            )
        if any(len(each or []) > len(common) for each in have):
            notes.append(f"only the shared values of {dim}: {', '.join(map(short, common))}")
        found = [table.sel({dim: common}) for table in found]
    return found, notes


def site_shifts(
    digests: Mapping[str, Digest], align: Literal["name", "depth"] = "name"
) -> list[tuple[str, dict[str, float]]]:
    """Shift at the end of training by layer input, experiments side by side.

    Medians over the settings that all have and in which a run came through, for a description and
    not for a test. Sites are matched by name; with ``align="depth"`` by their place between the
    first and the last site of their own experiment, to every site of the deepest one: the nearest
    whose path ends alike, unless it is more than a site off, and else the nearest, which may be
    another kind of layer: its name stands beside it.

    Raises:
      InputError: an experiment without moments, without a shared setting in which a run came
        through, or without a site in common by name.
    """
    common = _common_labels(list(digests.values()))
    profiles = {name: _profile(name, digest, common) for name, digest in digests.items()}
    for name, profile in profiles.items():
        if not profile:
            raise InputError(f"in no setting of {name} that all have did a run come through.")
    if align == "name":
        shared = [
            s for s in next(iter(profiles.values())) if all(s in p for p in profiles.values())
        ]
        if not shared:
            raise InputError(
                "the experiments share no site by name: wanted --align depth, which matches them "
                "by relative depth."
            )
        return [(site, {name: p[site] for name, p in profiles.items()}) for site in shared]
    deepest = max(profiles.values(), key=len)
    rows = []
    for i, site in enumerate(deepest):
        place = i / max(1, len(deepest) - 1)
        values, others = {}, []
        for name, profile in profiles.items():
            own = _match(site, place, list(profile))
            values[name] = profile[own]
            others += [f"; {name}: {own}"] * (own != site)
        rows.append((f"{site} ({place:.2f}{''.join(others)})", values))
    return rows


def _match(site: str, place: float, sites: Sequence[str]) -> str:
    last = max(1, len(sites) - 1)
    sites_off = {each: abs(i - place * last) for i, each in enumerate(sites)}
    alike = [each for each in sites if _kind(each) == _kind(site) and sites_off[each] <= 1 + 1e-9]
    return (
        min(alike, key=sites_off.__getitem__) if alike else sites[round(place * (len(sites) - 1))]
    )


def _kind(site: str) -> str:
    """The last part of a path that is no number: ``linear`` of ``blocks/3/linear``."""
    return next((part for part in reversed(site.split("/")) if not part.isdigit()), site)


def _common_labels(digests: Sequence[Digest]) -> dict[str, list[Any]]:
    """Labels that all have, along the dimensions that all have and share any of."""
    common = {}
    for dim in digests[0].cell_dims:
        have = [d.runs[dim].values.tolist() if dim in d.cell_dims else [] for d in digests]
        if labels := [value for value in have[0] if all(value in each for each in have)]:
            common[dim] = labels
    return common


def _profile(name: str, digest: Digest, labels: dict[str, list[Any]]) -> dict[str, float]:
    if digest.shift is None:
        raise InputError(f"{name} has no moments of layer inputs: wanted a probe with moments.")
    initial = digest.shift["initial"]
    came_through = digest.runs["diverged_at"].isnull().any("seed")
    final = last_recorded(initial.where(initial["step"] > 0)).where(came_through).sel(labels)
    medians = final.median([dim for dim in final.dims if dim != "site"])
    return {
        str(site): float(value)
        for site, value in zip(medians["site"].values, medians.values, strict=True)
        if math.isfinite(value)
    }
