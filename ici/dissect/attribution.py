"""The attribution matrix: which block's update shifted whose inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ici.adapt import Model, Variables, check_same_model
from ici.dissect.blocks import Blocks, find_blocks
from ici.dissect.objective import variables_of
from ici.errors import InputError
from ici.measure.shift import DEAD_STD, shift
from ici.measure.statistics import Moments
from ici.probe import Probe

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attribution:
    """Shift of every site's inputs, taken apart by the block that caused it.

    Definition, on one fixed batch and between parameters θ_t and θ_t':
    A[j, s], the shift at site s when only block j moves; T[s], when all move; I[s], the root mean
    square over features of the part of T's mean displacement, in σ, that the sum over j of the
    single-block displacements leaves unexplained; and the path form P[j, s], the displacement
    when blocks 0 … j have moved less that when 0 … j−1 have, which telescopes to the total.

    Source: introduced with this package. The networks of P are those of the gradient shift's G'
    (Santurkar et al. 2018, definition 2.1).

    Cost: reference: 2·k + 1 forward passes for k blocks, one after another.

    Caveats: A is exact for each block alone; how far the update is from a sum of its parts is
    what ``interaction`` over ``total`` says. A[j, s] is exactly 0 where block j is not upstream of
    s. Features with a standard deviation below 1e-6 on either side are left out of every
    aggregate, and counted.

    Attributes:
      alone: ``[k, S]``, A as the RMS over features of the mean shift, in σ.
      alone_scale: ``[k, S]``, the same of the scale shift ln(σ'/σ).
      path: ``[k, S]``, P as an RMS in σ of the network before.
      total: ``[S]``, T, RMS mean shift.
      total_scale: ``[S]``, RMS scale shift.
      interaction: ``[S]``, I in σ.
      dead_features: ``[S]``, number of features left out of T.
      displacement: per site ``[k, D]``, signed mean shift per feature with block j alone moved.
      path_displacement: per site ``[k, D]``, signed.
      total_displacement: per site ``[D]``, signed.
      blocks, sites: names, both in execution order.
    """

    alone: Array
    alone_scale: Array
    path: Array
    total: Array
    total_scale: Array
    interaction: Array
    dead_features: Array
    displacement: dict[str, Array]
    path_displacement: dict[str, Array]
    total_displacement: dict[str, Array]
    blocks: tuple[str, ...] = field(metadata={"static": True})
    sites: tuple[str, ...] = field(metadata={"static": True})

    def labelled(self) -> dict[str, Array]:
        """Named arrays for the record, ``[k, S]`` and ``[S]``."""
        return {
            "attribution": self.alone,
            "attribution_scale": self.alone_scale,
            "attribution_path": self.path,
            "update_shift": self.total,
            "update_scale_shift": self.total_scale,
            "interaction": self.interaction,
            "dead_features": self.dead_features,
        }


def _rms(values: Array, live: Array) -> Array:
    """Root mean square over the live features ``[..., D]``; NaN where there is none."""
    n_live = jnp.sum(live, axis=-1, dtype=jnp.float32)
    squares = jnp.where(live, jnp.square(values), 0.0)
    return jnp.sqrt(jnp.sum(squares, axis=-1) / jnp.where(n_live > 0, n_live, jnp.nan))


def attribution_of(
    model: Model,
    before: Variables,
    after: PyTree,
    inputs: Any,
    probe: Probe,
    blocks: Blocks | None = None,
) -> Attribution:
    """`Attribution` as a traceable function; `after` holds parameters only."""
    blocks = find_blocks(model, before, inputs) if blocks is None else blocks
    k = len(blocks)
    index = jnp.arange(k)
    # Asked for apart: a dictionary that goes through lax.map comes back in alphabetical order.
    sites = tuple(model.taps_shape(before, inputs, probe).stat("moments"))

    def moments(chosen: Array) -> dict[str, Moments]:
        params = blocks.select(chosen, after, before.params)
        taps = model.apply(Variables(params, before.state), inputs, train=True, probe=probe)[2]
        assert taps is not None
        return taps.stat("moments")

    # One program for every network, the unchanged one too: what does not move is 0 to the bit.
    alone_rows = index[:, None] == index[None, :]
    path_rows = index[None, :] <= index[:, None]
    rows = jnp.concatenate([jnp.zeros((1, k), bool), alone_rows, path_rows])
    everything = lax.map(moments, rows)
    columns: dict[str, list[Any]] = {}
    signed: dict[str, dict[str, Array]] = {"alone": {}, "path": {}, "total": {}}
    for site in sites:
        values = everything[site]
        base, alone, path = (
            jax.tree.map(lambda a, part=part: a[part], values)
            for part in (0, slice(1, k + 1), slice(k + 1, None))
        )
        live = (base.std >= DEAD_STD)[None]
        sigma = jnp.where(live, base.std[None], jnp.nan)
        steps = jnp.diff(path.mean, axis=0, prepend=base.mean[None])
        by_block, by_path = (alone.mean - base.mean[None]) / sigma, steps / sigma
        all_moved = jax.tree.map(lambda a: a[-1], path)
        together = (all_moved.mean - base.mean) / sigma[0]
        total = shift(base, all_moved).aggregate()
        single = shift(base, alone).aggregate()
        unexplained = _rms(together - jnp.sum(by_block, axis=0), live[0])
        for name, value in (
            ("alone", single["mean_shift"]),
            ("alone_scale", single["scale_shift"]),
            ("path", _rms(by_path, live)),
            ("total", total["mean_shift"]),
            ("total_scale", total["scale_shift"]),
            ("interaction", unexplained),
            ("dead_features", total["dead_features"]),
        ):
            columns.setdefault(name, []).append(value)
        signed["alone"][site], signed["path"][site] = by_block, by_path
        signed["total"][site] = together
    return Attribution(
        **{name: jnp.stack(values, axis=-1) for name, values in columns.items()},
        displacement=signed["alone"],
        path_displacement=signed["path"],
        total_displacement=signed["total"],
        blocks=blocks.names,
        sites=sites,
    )


@lru_cache(maxsize=32)
def _compiled(model: Model, probe: Probe) -> Any:
    return jax.jit(
        lambda before, after, inputs: attribution_of(model, before, after, inputs, probe)
    )


def attribute_shift(
    model: Model,
    before: Variables,
    after: Variables,
    inputs: Any,
    *,
    probe: Probe | None = None,
) -> Attribution:
    """Which block's move from `before` to `after` shifted whose inputs.

    Args:
      model: from `from_nnx` or `from_linen`.
      before, after: variables at two steps; the state is taken from `before`.
      inputs: the fixed batch, in training mode.
      probe: selects the sites; by default every layer with weights and every norm.

    Raises:
      InputError: `before` and `after` are not of one model, or the probe lacks moments.
    """
    probe = probe or Probe()
    if "moments" not in probe.kinds:
        raise InputError(f"probe stats is {probe.stats}: attribution wants 'moments' among them.")
    before, after = variables_of(before, "before"), variables_of(after, "after")
    check_same_model(before, after)
    return _compiled(model, probe)(before, after.params, inputs)
