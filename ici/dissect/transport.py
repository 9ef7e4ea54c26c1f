"""Exact earth mover's distance of every site's inputs between two settings of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ici.adapt import Model, Variables, check_same_model
from ici.dissect.objective import variables_of
from ici.measure.transport import wasserstein1
from ici.probe import Probe

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Values:
    """A site's values themselves, for what needs two samples; they stay inside the program."""

    name: ClassVar[str] = "values"

    x: Array
    mask: Array | None

    @classmethod
    def of(cls, x: Array, mask: Array | None = None) -> _Values:
        return cls(x, mask)


def wasserstein_shift_of(
    model: Model, before: Variables, after: PyTree, inputs: Any, probe: Probe
) -> dict[str, Array]:
    """`wasserstein_shift` as a traceable function; `after` holds parameters only."""
    values = Probe(probe.select, stats=(_Values,), mask=probe.mask)
    sites = model.taps_shape(before, inputs, values).sites

    def at(moved: Array) -> dict[str, _Values]:
        params = jax.tree.map(lambda a, b: jnp.where(moved, b, a), before.params, after)
        taps = model.apply(Variables(params, before.state), inputs, train=True, probe=values)[2]
        assert taps is not None
        return taps.stat("values")

    # One program for both: what does not move is 0 to the bit.
    both = lax.map(at, jnp.asarray([False, True]))

    def distance(seen: _Values) -> Array:
        mask = None if seen.mask is None else seen.mask[0]
        return wasserstein1(seen.x[0], seen.x[1], mask)

    return {site: distance(both[site]) for site in sites}


@lru_cache(maxsize=32)
def _compiled(model: Model, probe: Probe) -> Any:
    return jax.jit(
        lambda before, after, inputs: wasserstein_shift_of(model, before, after, inputs, probe)
    )


def wasserstein_shift(
    model: Model,
    before: Variables,
    after: Variables,
    inputs: Any,
    *,
    probe: Probe | None = None,
) -> dict[str, Array]:
    """Wasserstein-1 distance of each feature of every site's inputs, by site, ``[D]``.

    `wasserstein1` of what `before` and `after` make of the same inputs, in units of x.

    Args:
      model: from `from_nnx` or `from_linen`.
      before, after: variables at two steps; the state is taken from `before`.
      inputs: the fixed batch, in training mode.
      probe: selects the sites, and masks; by default every layer with weights and every norm.

    Raises:
      InputError: `before` and `after` are not of one model.

    Source:
      Huang & Yu, "An internal covariate shift bounding algorithm for deep neural networks by
      unitizing layers' outputs" (CVPR 2020), on one unit.

    Cost:
      reference: two forward passes, and a sort of every site's values.

    Caveats:
      In units of x, so sites and norms of different scale do not compare; the other shifts divide
      by σ. Holds all sites' values of both settings in memory while it runs.
    """
    before, after = variables_of(before, "before"), variables_of(after, "after")
    check_same_model(before, after)
    found = _compiled(model, probe or Probe())(before, after.params, inputs)
    sites = model.taps_shape(before, inputs, probe or Probe()).sites
    return {site: found[site] for site in sites if site in found}
