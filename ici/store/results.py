"""Opening the record of an experiment as labelled arrays."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ici.errors import InputError
from ici.store.diagnoses import Diagnosis
from ici.store.lazily import damage_named, labelled
from ici.store.manifest import COMPLETE, RECORDS, Manifest
from ici.store.missing import Committed
from ici.store.places import Place, place, zarr_store

if TYPE_CHECKING:
    import pandas as pd

# Dimensions of the runs that a dataset has only where several values were swept.
OPTIONAL = ("weight_decay", "warmup_steps", "beta1", "beta2")


@dataclass(frozen=True)
class Results:
    """The committed record of an experiment; read as it is asked for.

    Every dataset has the dimensions norm, depth, lr, seed and step, and weight_decay, warmup_steps,
    beta1 and beta2 where several values were swept. What does not exist is NaN: steps after a run
    diverged, sites that a group's networks lack, features beyond a site's own.

    Attributes:
      path: folder of the record.
      manifest: what is committed, and by what it was written.
    """

    path: Place
    manifest: Manifest

    @property
    def experiment(self) -> dict[str, Any]:
        """The experiment's settings."""
        return self.manifest.experiment

    @property
    def task(self) -> str:
        """classification, language_model or regression."""
        return self.manifest.task

    @property
    def complete(self) -> bool:
        """Whether every run of the experiment has ended."""
        return self.manifest.status in COMPLETE

    @cached_property
    def train(self) -> xr.Dataset:
        """Every training step: ``loss`` (before the update), ``grad_norm``."""
        return self._node("train")

    @cached_property
    def probe(self) -> xr.Dataset:
        """Probed training steps: ``mean``, ``std`` by site and feature, ``count`` by site."""
        return self._node("probe")

    @cached_property
    def reference(self) -> xr.Dataset:
        """The same statistics on the fixed reference batch, after ``step`` updates."""
        return self._node("reference")

    @cached_property
    def evaluation(self) -> xr.Dataset:
        """On the validation split, after ``step`` updates: ``loss`` and, unless targets are real
        numbers, ``accuracy``; with ``ema_`` in front, those of the averaged weights."""
        return self._node("evaluation")

    @cached_property
    def runs(self) -> xr.Dataset:
        """Per run: ``diverged_at``, the step whose update was refused, NaN where none was; and
        ``first_nonfinite``, what was not finite first in it, in words, empty where unknown."""
        runs = self._node("runs")
        if not runs.sizes["step"]:
            raise InputError(f"{self.path} has no committed step yet: wait for its first ones.")
        runs = runs.isel(step=-1, drop=True)
        return runs.assign(first_nonfinite=self._first_nonfinite(runs["diverged_at"]))

    def _first_nonfinite(self, of_runs: xr.DataArray) -> xr.DataArray:
        """What the groups' diagnoses say, along the dimensions of the runs."""
        words = of_runs.copy(data=np.full(of_runs.shape, "", object))
        dims = [dim for dim in of_runs.dims if dim not in ("norm", "depth")]
        shape = [of_runs.sizes[dim] for dim in dims]
        begun = [e for e in self.manifest.groups.values() if e.rows.get("runs")]
        for entry in begun:
            for each in entry.diagnoses:
                at = np.unravel_index(each["lane"], shape)
                labels = {dim: of_runs[dim].values[i] for dim, i in zip(dims, at, strict=True)}
                where = {"norm": entry.norm, "depth": entry.depth, **labels}
                words.loc[where] = Diagnosis(**each).describe()
        return words

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Norm and depth of every group that has a committed step, in the order of training."""
        return [
            (entry.norm, entry.depth)
            for entry in self.manifest.groups.values()
            if entry.rows.get("train")
        ]

    def group(self, norm: str, depth: int) -> Results:
        """The record of one group alone, whose arrays are read only where they are sliced.

        Raises:
          InputError: there is no such group, or it has no committed step.
        """
        if (norm, depth) not in self.groups:
            known = ", ".join(f"norm {n} depth {d}" for n, d in self.groups) or "none yet"
            raise InputError(f"{self.path} has no group norm {norm} depth {depth}: it has {known}.")
        own = {
            name: entry
            for name, entry in self.manifest.groups.items()
            if (entry.norm, entry.depth) == (norm, depth)
        }
        return Results(self.path, replace(self.manifest, groups=own))

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the heavy measurements that were recorded."""
        return tuple(entry.partition("@")[0] for entry in self.experiment.get("measure", ()))

    def measurement(self, name: str) -> xr.Dataset:
        """A heavy measurement of the update that followed ``step`` others.

        Besides the dimensions of all datasets: ``block`` and ``site`` in execution order, and
        ``multiple`` of the learning rate, as far as the measurement has them.

        Raises:
          InputError: it was not part of the experiment.
        """
        if name not in self.measured:
            recorded = ", ".join(self.measured) or "none"
            raise InputError(
                f"{self.path} has no measurement {name!r} (recorded: {recorded}): run the "
                f"experiment with measure=({name!r},)."
            )
        return self._node(name)

    def to_dataframe(self, what: str = "runs", features: bool = False) -> pd.DataFrame:
        """A table of the record; docs/tables.md has their columns and units.

        Args:
          what: "runs", "train", "evaluation", "reference", "probe", "updates", "spikes" or a heavy
            measurement, as far as the record has them.
          features: a row for every feature of a site, in place of percentiles over its features.

        Raises:
          InputError: there is no such table, or no step is committed yet.
        """
        # What a run came to is for the analysis to say, which this layer must not import.
        return importlib.import_module("ici.analysis.tables").table(self, what, features)

    def _committed(self, part: xr.Dataset, group: str, node: str) -> dict[str, Committed]:
        """Of a node's variables, as `xarray.open_zarr` gives them, which chunks must be there."""
        written = self.manifest.groups[group].written
        keys = {str(name): f"{node}/{name}" for name in part.data_vars}
        return {
            name: Committed(
                self.path / RECORDS / group / node / name,
                part[name].encoding["chunks"],
                part[name].dims.index("step"),
                written[key],
                partial(self._written_now, group, key),
            )
            for name, key in keys.items()
            if key in written
        }

    def _written_now(self, group: str, key: str) -> int:
        entry = Manifest.read(self.path).groups.get(group)
        return 0 if entry is None else entry.written.get(key, 0)

    def _node(self, node: str) -> xr.Dataset:
        parts = []
        for name, entry in self.manifest.groups.items():
            where = f"{self.path / RECORDS / name}/{node}"
            with damage_named(where):
                part = xr.open_zarr(
                    zarr_store(self.path / RECORDS / name),
                    group=node,
                    consolidated=False,
                    zarr_format=3,  # saves a store the search for others
                    chunks=None,
                )
            part = part.isel(step=slice(0, entry.rows[node]))
            committed = self._committed(part, name, node)
            parts.append(labelled(part, where, committed, norm=entry.norm, depth=entry.depth))
        if len(parts) == 1:
            # Lazy as opened: lining several groups up would read them whole.
            return parts[0].squeeze([dim for dim in OPTIONAL if parts[0].sizes.get(dim) == 1])
        if not parts:
            raise InputError(f"{self.path} has no committed group yet: wait for its first steps.")
        # A group that has just begun has nothing to line up yet.
        parts = [part for part in parts if part.sizes["step"]] or parts[:1]
        for dim in {"site", "block"} & set(parts[0].dims):
            labels = merge_sites([part[dim].values.tolist() for part in parts])
            parts = [part.reindex({dim: labels}) for part in parts]
        if "feature" in parts[0].dims:
            widest = max(part.sizes.get("feature", 0) for part in parts)
            parts = [
                part.pad(feature=(0, widest - part.sizes["feature"]))
                if "feature" in part.dims
                else part
                for part in parts
            ]
        dataset = xr.combine_by_coords(
            parts, join="outer", compat="no_conflicts", combine_attrs="drop"
        )
        assert isinstance(dataset, xr.Dataset)
        # Every node has the runs that have a step, also where this one has none of theirs.
        known = self.groups or [
            (entry.norm, entry.depth) for entry in self.manifest.groups.values()
        ]
        begun = {"norm": {norm for norm, _ in known}, "depth": {depth for _, depth in known}}
        dataset = dataset.reindex(
            {dim: [v for v in self.experiment[dim] if v in begun[dim]] for dim in begun}
        )
        return dataset.squeeze([dim for dim in OPTIONAL if dataset.sizes.get(dim) == 1])


def merge_sites(orders: list[list[str]]) -> list[str]:
    """One execution order that contains all: a new site goes right behind its predecessor."""
    merged = list(max(orders, key=len))
    for order in orders:
        for i, site in enumerate(order):
            if site not in merged:
                merged.insert(merged.index(order[i - 1]) + 1 if i else 0, site)
    return merged


def open_results(path: str | Place) -> Results:
    """Opens the record in `path`, a folder or a URL such as s3://bucket/run, finished or not.

    Raises:
      InputError: there is no record, it is damaged, or another schema wrote it.
    """
    folder = place(path)
    return Results(folder, Manifest.read(folder))


def padded(per_site: dict[str, np.ndarray], sites: tuple[str, ...], n_features: int) -> np.ndarray:
    """Stacks ``{site: [..., D_site]}`` to ``[..., site, n_features]``, NaN where there is none."""
    first = next(iter(per_site.values()))
    stacked = np.full((*first.shape[:-1], len(sites), n_features), np.nan, np.float32)
    for site, values in per_site.items():
        stacked[..., sites.index(site), : values.shape[-1]] = values
    return stacked
