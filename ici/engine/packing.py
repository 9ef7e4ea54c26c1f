"""Which lane sits in which slot of which device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EMPTY = -1


@dataclass(frozen=True)
class Packing:
    """Lanes in slots; the active ones at the front of each device.

    Attributes:
      lanes: int ``[n_devices, n_slots]``, lane in each slot, or `EMPTY`.
      n_active: int ``[n_devices]``, how many of a device's first slots are active.
    """

    lanes: np.ndarray
    n_active: np.ndarray

    @property
    def n_slots(self) -> int:
        """Slots per device."""
        return self.lanes.shape[1]

    @property
    def filled(self) -> np.ndarray:
        """Flat ``[n_devices * n_slots]`` lane per slot, with lane 0 where a slot is empty."""
        flat = self.lanes.reshape(-1)
        return np.where(flat == EMPTY, 0, flat)

    def cost(self, form: str) -> int:
        """Time of one dispatch in units of one lane on one device."""
        return self.n_slots if form == "vmap" else int(self.n_active.max())

    def position_of(self, other: Packing) -> np.ndarray:
        """For every slot of `other`, the slot here that holds its lane (0 where empty)."""
        where = {int(lane): slot for slot, lane in enumerate(self.lanes.reshape(-1))}
        return np.array([where.get(int(lane), 0) for lane in other.lanes.reshape(-1)])

    def active(self, n_lanes: int) -> np.ndarray:
        """bool ``[n_lanes]``: which lanes are active."""
        active = np.zeros(n_lanes, bool)
        active[self.rows()[1]] = True
        return active

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """``(slots, lanes)`` of the active lanes: where to read results, and whose they are."""
        active = np.arange(self.n_slots)[None, :] < self.n_active[:, None]
        slots = np.flatnonzero(active.reshape(-1))
        return slots, self.lanes.reshape(-1)[slots]


def pack(active: np.ndarray, n_devices: int, n_slots: int | None) -> Packing:
    """Deals active lanes evenly over devices, then frozen ones into the remaining slots.

    With `n_slots` None the slots per device are a power of two times what all lanes would need
    divided by a power of two: enough for the active lanes, and few different sizes.
    """
    n_lanes = len(active)
    full = -(-n_lanes // n_devices)
    if n_slots is None:
        n_slots = full
        needed = -(-int(active.sum()) // n_devices)
        while n_slots > 1 and -(-n_slots // 2) >= needed:
            n_slots = -(-n_slots // 2)
    lanes = np.full((n_devices, n_slots), EMPTY)
    order = np.concatenate([np.flatnonzero(active), np.flatnonzero(~active)])
    order = order[: n_devices * n_slots]
    slot, device = np.divmod(np.arange(len(order)), n_devices)
    lanes[device, slot] = order
    n_active = np.bincount(device[: int(active.sum())], minlength=n_devices)
    return Packing(lanes, n_active)
