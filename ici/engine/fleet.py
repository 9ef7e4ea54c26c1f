"""Many runs as one: the lanes of a group share compiled programs and spread over devices.

Lanes lie along the mesh axis ``run``, which is manual: lanes never talk. The axis ``data`` is
automatic: the batch of one lane may be spread over it, and every statistic is global over it.

A device runs its lanes either one after another (``"map"``, right for CPU cores: a lane's state
stays in cache, and a lane is bit for bit the run it would have been alone) or side by side
(``"vmap"``, right for accelerators). Active lanes sit at the front of their device, so in "map"
form the loop simply ends before the frozen ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ici.engine import hosts
from ici.engine.convolutions import in_canonical_order
from ici.engine.examples import Arrays
from ici.engine.lane import Hyper, Lane, LaneProgram
from ici.engine.leaves import named_leaves, with_leaves
from ici.engine.packing import EMPTY, Packing, pack
from ici.engine.sharding import batch_devices, over_slots

PyTree = Any
Form = Literal["map", "vmap"]

_LANES = PartitionSpec("run")
_EVERYWHERE = PartitionSpec()


def _together(n_active: Array) -> tuple[Array, Array]:
    """``(own, turns)``: how many of its slots this device is to change, and how many it is to walk.

    Devices that share a batch exchange numbers in every turn, and a compiler may well let an
    exchange of some of them wait for all devices of the mesh: with fewer turns on one than on
    another it would wait for ever. Nothing else in a lane's program may branch on its values then.
    """
    own = n_active[0]
    return own, own if batch_devices() == 1 else lax.pmax(own, "run")


def _kept(mine: Array, new: Any, old: Any) -> Any:
    """`new` where this turn is one of the device's own, `old` in the others."""
    if batch_devices() == 1:
        return new
    return jax.tree.map(lambda a, b: jnp.where(mine, a, b), new, old)


def _per_lane(
    form: Form, width: int | None, function: Callable[..., Any], n_active: Array, *lanes: Any
) -> Any:
    """``function`` of each lane of this device; NaN (or zero) where a lane is not active.

    ``lanes`` are pytrees with a leading slot axis.
    """
    if form == "vmap":
        if width is None:
            return jax.vmap(function)(*lanes)
        return lax.map(lambda slot: function(*slot), lanes, batch_size=width)
    n_slots = jax.tree.leaves(lanes)[0].shape[0]
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), lanes)

    def blank(shape: jax.ShapeDtypeStruct) -> Array:
        fill = jnp.nan if jnp.issubdtype(shape.dtype, jnp.floating) else 0
        return jnp.full((n_slots, *shape.shape), fill, shape.dtype)

    own, turns = _together(n_active)

    def body(slot: Array, results: Any) -> Any:
        lane, before = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, slot, keepdims=False), (lanes, results)
        )
        return jax.tree.map(
            lambda all_, new: lax.dynamic_update_index_in_dim(all_, new, slot, 0),
            results,
            _kept(slot < own, function(*lane), before),
        )

    results = jax.tree.map(blank, jax.eval_shape(function, *one))
    return lax.fori_loop(0, turns, body, results)


def _update_lanes(
    form: Form, width: int | None, function: Callable[..., Any], n_active: Array, lanes: Any
) -> tuple[Any, Any]:
    """Like `_per_lane` for ``function(lane) -> (lane, record)``, updating the lanes in place."""
    if form == "vmap":
        return _per_lane(form, width, function, n_active, lanes)
    n_slots = jax.tree.leaves(lanes)[0].shape[0]
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), lanes)
    records = jax.tree.map(
        lambda s: jnp.full((n_slots, *s.shape), jnp.nan, s.dtype), jax.eval_shape(function, one)[1]
    )

    own, turns = _together(n_active)

    def body(slot: Array, carry: Any) -> Any:
        # Reading and writing one slot of the carry leaves the others where they are: frozen
        # lanes are never copied, and the bound of the loop is data, so a fleet of one runs the
        # same loop as a fleet of many.
        before = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, slot, keepdims=False), carry)
        return jax.tree.map(
            lambda all_, new: lax.dynamic_update_index_in_dim(all_, new, slot, 0),
            carry,
            _kept(slot < own, function(before[0]), before),
        )

    return lax.fori_loop(0, turns, body, (lanes, records))


class Fleet:
    """The lanes of one group, on the devices, with the compiled programs that act on them.

    Args:
      program: what a lane does.
      mesh: from `make_mesh`.
      hypers: one `Hyper` of Python numbers per lane.
      train: the training split, on the host; None where `train` is given the examples it needs.
      reference: inputs of the fixed reference batch.
      form: "map" or "vmap"; by default "map" on CPUs and "vmap" elsewhere.
      width: in "vmap" form, how many lanes of a device run side by side; None is all of them.
      measurements: names of the heavy measurements that `measure` can take.
    """

    def __init__(
        self,
        program: LaneProgram,
        mesh: Mesh,
        hypers: list[Hyper],
        train: Arrays | None,
        reference: Any,
        form: Form | None = None,
        width: int | None = None,
        measurements: Sequence[str] = (),
    ):
        self.mesh = mesh
        self.form: Form = form or ("map" if mesh.devices.flat[0].platform == "cpu" else "vmap")
        self.n_devices = mesh.shape["run"]
        # Collectives of programs that run ahead of one another can deadlock on CPU devices.
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.in_step = on_cpu and (mesh.shape["data"] > 1 or hosts.n_processes() > 1)
        self.packing = pack(np.ones(len(hypers), bool), self.n_devices, None)
        self.train_data = self._put(train, _EVERYWHERE)
        self.reference_inputs = self.place(reference, batch_axis=0)
        stacked = jax.tree.map(lambda *xs: np.stack(xs), *hypers)
        example = self._put(jax.tree.map(lambda a: np.asarray(a[:1]), reference), _EVERYWHERE)
        one = jax.eval_shape(program.init, hypers[0], example)
        self.shardings = _shardings(mesh, one, program.shard_params)
        self._compile(program, width, measurements)
        self.lanes = self._init(self._n_active(), self._slots(stacked), example)

    def _compile(
        self, program: LaneProgram, width: int | None, measurements: Sequence[str]
    ) -> None:
        form = self.form

        # What is read on the host goes to every process, while the devices are at it.
        several = hosts.n_processes() > 1
        by_slot = NamedSharding(self.mesh, _EVERYWHERE if several else _LANES)

        def over_lanes(
            function: Any, data_specs: tuple[Any, ...], out: Any = by_slot, donate: bool = False
        ) -> Any:
            # Lanes one after another are a loop.
            sharded = jax.shard_map(
                in_canonical_order(function) if form == "map" else function,
                mesh=self.mesh,
                in_specs=(_LANES, _LANES, *data_specs),
                out_specs=_LANES,
                axis_names={"run"},
                check_vma=False,
            )
            # Left to itself, the compiler may return the lanes otherwise than it took them.
            return jax.jit(sharded, out_shardings=out, donate_argnums=(1,) if donate else ())

        def init(n_active: Array, hypers: Hyper, example: Any) -> Lane:
            # Every slot, an empty one too, gets a valid state; it is simply never active.
            every = jnp.full_like(n_active, jax.tree.leaves(hypers)[0].shape[0])
            return _per_lane(form, width, lambda h: program.init(h, example), every, hypers)

        def train(
            n_active: Array, lanes: Lane, first_step: Array, indices_SKB: Array, data: Arrays
        ) -> Any:
            def chunk(lane: Lane) -> Any:
                indices_KB = lax.dynamic_index_in_dim(indices_SKB, lane.hyper.order, keepdims=False)
                lane, records, taps = program.chunk(lane, first_step, indices_KB, data)
                return lane, (records, taps)

            lanes, records = _update_lanes(form, width, chunk, n_active, lanes)
            return lanes, records, lanes.diverged_at

        def reference(n_active: Array, lanes: Lane, inputs: Any) -> Any:
            return _per_lane(
                form, width, lambda lane: program.reference(lane, inputs), n_active, lanes
            )

        def evaluate(n_active: Array, lanes: Lane, data: Arrays, weights: Array) -> Any:
            return _per_lane(
                form, width, lambda lane: program.evaluate(lane, data, weights), n_active, lanes
            )

        def measure(name: str) -> Any:
            def of_lanes(
                n_active: Array,
                lanes: Lane,
                step: Array,
                at_SB: Array,
                data: Arrays,
                reference: Any,
            ) -> Any:
                def of(lane: Lane) -> dict[str, Array]:
                    at_B = lax.dynamic_index_in_dim(at_SB, lane.hyper.order, keepdims=False)
                    return program.measure(name, lane, step, at_B, data, reference)

                return _per_lane(form, width, of, n_active, lanes)

            return over_lanes(of_lanes, (_EVERYWHERE,) * 4)

        self._measure = {name: measure(name) for name in measurements}
        self._init = over_lanes(init, (_EVERYWHERE,), self.shardings)
        trained = (self.shardings, by_slot, by_slot)
        self._train = over_lanes(train, (_EVERYWHERE,) * 3, trained, donate=True)
        self._reference = over_lanes(reference, (_EVERYWHERE,))
        self._evaluate = over_lanes(evaluate, (_EVERYWHERE,) * 2)

    def _put(self, tree: PyTree, spec: PartitionSpec) -> PyTree:
        return hosts.put(tree, NamedSharding(self.mesh, spec))

    def _slots(self, per_lane: PyTree) -> PyTree:
        """Host arrays in lane order to device arrays in slot order."""
        order = self.packing.filled
        return self._put(jax.tree.map(lambda a: np.asarray(a)[order], per_lane), _LANES)

    def _n_active(self) -> Array:
        return self._put(self.packing.n_active.astype(np.int32), _LANES)

    def _done(self, results: Any) -> Any:
        return jax.block_until_ready(results) if self.in_step else results

    def train(self, first_step: int, indices_SKB: np.ndarray, data: Arrays | None = None) -> Any:
        """Trains every active lane for K steps, on the fleet's data or on placed `data`.

        Returns ``(records, taps), diverged_at`` on the device, in slot order, possibly not
        computed yet.
        """
        self.lanes, records, diverged_at = self._done(
            self._train(
                self._n_active(),
                self.lanes,
                self._put(np.int32(first_step), _EVERYWHERE),
                self._put(indices_SKB, _EVERYWHERE),
                self.train_data if data is None else data,
            )
        )
        return records, diverged_at

    def reference(self) -> Any:
        """Labelled taps of the reference batch at the present parameters, in slot order."""
        return self._done(self._reference(self._n_active(), self.lanes, self.reference_inputs))

    def measure(
        self, name: str, step: int, indices_SB: np.ndarray, data: Arrays | None = None
    ) -> Any:
        """The measurement `name` of the coming update, in slot order; nothing is trained."""
        return self._done(
            self._measure[name](
                self._n_active(),
                self.lanes,
                self._put(np.int32(step), _EVERYWHERE),
                self._put(indices_SB, _EVERYWHERE),
                self.train_data if data is None else data,
                self.reference_inputs,
            )
        )

    def evaluate(self, data: Arrays, weights: Array) -> Any:
        """Loss and accuracy on batched data, in slot order."""
        return self._done(self._evaluate(self._n_active(), self.lanes, data, weights))

    def place(
        self, tree: PyTree, batch_axis: int | None = None, part: tuple[int, int] = (0, 1)
    ) -> PyTree:
        """`tree` on every device of the fleet; the examples along `batch_axis` spread over the
        devices that share a batch. `part` is which of how many parts of a batch it holds."""
        if batch_axis is None:
            return self._put(tree, _EVERYWHERE)
        return hosts.put_examples(tree, self.mesh, batch_axis, part)

    def in_lane_order(self) -> dict[str, np.ndarray]:
        """Leaves of the lanes that have a slot, in the order of lanes, on the host."""
        held = self.packing.lanes.reshape(-1)
        slots = [int(np.flatnonzero(held == lane)[0]) for lane in np.unique(held[held != EMPTY])]
        leaves = named_leaves(self.lanes)
        return {name: hosts.fetched(leaf)[slots] for name, leaf in leaves.items()}

    def restore(self, leaves: dict[str, np.ndarray], packing: Packing) -> None:
        """Takes the lanes of a checkpoint, which lay as `packing` says, on any devices.

        Raises:
          DamagedError: they are not the lanes of this program.
        """
        lanes = with_leaves(self.lanes, leaves)
        if len(packing.lanes) == self.n_devices:
            positions = np.arange(packing.lanes.size)
        else:
            n_lanes = int(packing.lanes.max()) + 1
            # One after another, frozen lanes cost nothing and keep their place.
            n_slots = None if self.form == "vmap" else -(-n_lanes // self.n_devices)
            old, packing = packing, pack(packing.active(n_lanes), self.n_devices, n_slots)
            positions = old.position_of(packing)
        self.lanes = hosts.put(
            jax.tree.map(lambda a: hosts.taken(a, positions), lanes), self.shardings
        )
        self.packing = packing

    def repack(self, active: np.ndarray) -> bool:
        """Moves lanes between slots so that frozen ones (``active[lane]`` false) cost nothing.

        In "map" form slots stay as many as they are, so nothing compiles again. In "vmap" form
        their number halves when the active lanes allow it; the state of a frozen lane that no
        longer has a slot is dropped. Returns whether anything moved.
        """
        # A lane that froze since the last packing still fills its place in the loop.
        new = pack(active, self.n_devices, None if self.form == "vmap" else self.packing.n_slots)
        current = self.packing.cost(self.form)
        if new.cost(self.form) >= current:
            return False
        positions = self.packing.position_of(new)
        self.lanes = hosts.put(
            jax.tree.map(lambda a: hosts.taken(a, positions), jax.block_until_ready(self.lanes)),
            self.shardings,
        )
        self.packing = new
        return True


def _shardings(mesh: Mesh, one: Lane, shard_params: bool) -> Lane:
    """Where the leaves of all lanes lie, given the shapes of one."""
    like_weights = (one.params, one.opt_state, one.ema)
    params, opt_state, ema = over_slots(mesh, like_weights, shard_params)
    return replace(over_slots(mesh, one, False), params=params, opt_state=opt_state, ema=ema)
