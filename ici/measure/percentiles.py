"""Percentiles of features over a batch, such as Ioffe & Szegedy showed of single units."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ici.errors import InputError
from ici.measure.statistics import Configured, broadcast_leading, counted, pooled, unless_empty

LEVELS = (15.0, 50.0, 85.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Percentiles:
    """Chosen percentiles of chosen units over all examples and positions.

    The q-th percentile of N sorted values is the one at position ``(N − 1)·q/100``, linearly
    interpolated (Hyndman & Fan's type 7, NumPy's default). ``Percentiles.levels(5, 95,
    units=(0, 7))`` makes the entry of ``Probe(stats=...)`` for other levels or for some units
    only; the record has NaN for the units that were not chosen.

    Attributes:
      count: float32 ``[...]``, number of pooled values per unit.
      grid: float32 ``[..., Q, U]``, quantiles at every whole per cent and at the chosen levels.
      at: the chosen levels, in per cent.
      units: indices of the chosen features; None is all of them.
      n_features: D.

    Source:
      Ioffe & Szegedy, "Batch Normalization: Accelerating deep network training by reducing
      internal covariate shift" (ICML 2015), figure 1 (b, c): 15th, 50th and 85th percentile of the
      input to a nonlinearity.

    Cost:
      reference: sorts the values of every chosen unit.

    Caveats:
      Exact in one pass. Merging joins the two distribution functions, straight between grid
      points: after m nested merges of L samples the rank of a percentile among N values is off by
      at most m hundredths of N, plus L ranks. A unit with a value that is not finite has none.
    """

    name: ClassVar[str] = "percentiles"
    cost: ClassVar[str] = "reference"
    where: ClassVar[str] = "input"

    count: Array
    grid: Array
    at: tuple[float, ...] = field(metadata={"static": True})
    units: tuple[int, ...] | None = field(metadata={"static": True})
    n_features: int = field(metadata={"static": True})

    @staticmethod
    def levels(
        *levels: float, units: tuple[int, ...] | None = None, name: str = "percentiles"
    ) -> Configured:
        """An entry of ``Probe(stats=...)``: percentiles at `levels` (in per cent) of `units`.

        Args:
          levels: numbers from 0 to 100; none gives 15, 50 and 85.
          units: indices of features; None is all of them.
          name: what the readings are filed under.

        Raises:
          InputError: a level outside 0 to 100, or units that are empty, negative or repeated.
        """
        at = tuple(float(level) for level in levels) or LEVELS
        if not all(0 <= level <= 100 for level in at) or len(set(at)) < len(at):
            raise InputError(f"percentile levels {at}: wanted different numbers from 0 to 100.")
        if units is not None:
            units = tuple(int(unit) for unit in units)
            if not units or min(units) < 0 or len(set(units)) < len(units):
                raise InputError(
                    f"percentile units {units}: wanted different feature indices from 0 up, or "
                    "None for every feature."
                )
        return Configured(name, Percentiles, (("levels", at), ("units", units)))

    @classmethod
    def of(
        cls,
        x: Array,
        mask: Array | None = None,
        *,
        levels: tuple[float, ...] = LEVELS,
        units: tuple[int, ...] | None = None,
    ) -> Percentiles:
        """Percentiles of ``x[..., D]`` over all axes but the last, where `mask` is True.

        Raises:
          InputError: a unit that the site does not have, or a mask that is not a bool array of
            shape ``x.shape[:-1]``.
        """
        x_ND = pooled(x)
        n_features = x_ND.shape[-1]
        if units is not None:
            if max(units) >= n_features:
                raise InputError(
                    f"percentiles of unit {max(units)} at a site of {n_features} features: wanted "
                    "units below that, or a probe that selects other sites."
                )
            x_ND = x_ND[:, jnp.asarray(units)]
        broken_D = jnp.any(~jnp.isfinite(x_ND), axis=0)
        count = jnp.float32(x_ND.shape[0])
        if mask is not None:
            mask_N1 = counted(x, mask)[:, None]
            broken_D = jnp.any(~jnp.isfinite(x_ND) & mask_N1, axis=0)
            count = jnp.sum(mask_N1, dtype=jnp.float32)
            x_ND = jnp.where(mask_N1, x_ND, jnp.inf)  # to the end of the sorted values
        sorted_ND = jnp.sort(x_ND, axis=0)
        position_Q = _grid(levels) * jnp.maximum(count - 1, 0)
        below_Q = jnp.floor(position_Q).astype(jnp.int32)
        above_Q = jnp.ceil(position_Q).astype(jnp.int32)
        low_QU, high_QU = sorted_ND[below_Q], sorted_ND[above_Q]
        part_Q1 = (position_Q - below_Q)[:, None]
        # Large values of opposite sign do not overflow this way, and equal ones stay as they are.
        between_QU = low_QU * (1 - part_Q1) + high_QU * part_Q1
        grid_QU = jnp.where(low_QU == high_QU, low_QU, between_QU)
        missing_U = broken_D | (count == 0)
        return cls(
            count, jnp.where(missing_U[None], jnp.nan, grid_QU), tuple(levels), units, n_features
        )

    def merge(self, other: Percentiles) -> Percentiles:
        """Percentiles of the two samples together, within the rank error stated above.

        Raises:
          InputError: the two are of different levels, units or sites.
        """
        mine, theirs = ((p.at, p.units, p.n_features) for p in (self, other))
        if mine != theirs:
            raise InputError(
                f"merge of percentiles {mine} with {theirs}: wanted the same levels, units and "
                "number of features."
            )
        a, b = broadcast_leading(self, other)
        unit = partial(_merge_unit, jnp.asarray(_grid(self.at)))
        merged = jnp.vectorize(unit, signature="(),(),(q),(q)->(q)")(
            a.count[..., None],
            b.count[..., None],
            jnp.moveaxis(a.grid, -1, -2),
            jnp.moveaxis(b.grid, -1, -2),
        )
        grid = jnp.moveaxis(merged, -1, -2)
        grid = unless_empty(a.count, b.count, a.grid, b.grid, grid)
        return Percentiles(a.count + b.count, grid, *mine)

    def labelled(self) -> dict[str, Array]:
        grid = _grid(self.at).tolist()
        record = {}
        for level in self.at:
            values = self.grid[..., grid.index(np.float32(level / 100)), :]
            if self.units is not None:
                every = jnp.full((*values.shape[:-1], self.n_features), jnp.nan)
                values = every.at[..., jnp.asarray(self.units)].set(values)
            record[f"percentile_{level:g}"] = values
        return record


def _grid(levels: tuple[float, ...]) -> np.ndarray:
    """Where quantiles are kept, float32 in [0, 1]: every whole per cent and `levels`."""
    percent = sorted({float(p) for p in range(101)} | {float(level) for level in levels})
    return np.asarray([p / 100 for p in percent], np.float32)


def _merge_unit(levels_Q: Array, n_a: Array, n_b: Array, a_Q: Array, b_Q: Array) -> Array:
    """Quantiles at `levels_Q` of one unit's mixture of two samples known by theirs."""
    values = jnp.sort(jnp.concatenate([a_Q, b_Q]))

    def below(grid_Q: Array, side: str) -> Array:
        """Part of a sample that is < (left) or ≤ (right) each value; straight in between."""
        i = jnp.searchsorted(grid_Q, values, side=side)
        low, high = jnp.clip(i - 1, 0), jnp.clip(i, 0, grid_Q.size - 1)
        width = grid_Q[high] - grid_Q[low]
        part = jnp.where(width > 0, (values - grid_Q[low]) / jnp.where(width > 0, width, 1.0), 0.0)
        rise = levels_Q[high] - levels_Q[low]
        return levels_Q[low] + jnp.where(jnp.isfinite(part), part, 0.0) * rise

    share = n_b / jnp.maximum(n_a + n_b, 1.0)
    # A value that many share is a jump: both its ends are points of the distribution function.
    left, right = (below(a_Q, s) * (1 - share) + below(b_Q, s) * share for s in ("left", "right"))
    levels = jnp.stack([left, right], axis=-1).reshape(-1)
    merged = jnp.interp(levels_Q, levels, jnp.repeat(values, 2))
    broken = jnp.any(jnp.isnan(a_Q) & (n_a > 0)) | jnp.any(jnp.isnan(b_Q) & (n_b > 0))
    return jnp.where(broken, jnp.nan, merged)
