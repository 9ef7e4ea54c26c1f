"""Devices and the mesh ('run', 'data') that a fleet lives on."""

from __future__ import annotations

import contextlib
import os

import jax
from jax.sharding import AxisType, Mesh

from ici.engine import hosts
from ici.errors import InputError


def usable_cores() -> int:
    """Number of CPU cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def claim_cpu_devices() -> None:
    """Makes every CPU core a device of its own.

    JAX fixes the number when it first computes something; after that this does nothing, and
    neither does it when ``JAX_NUM_CPU_DEVICES`` has been set.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", usable_cores())


def make_mesh(n_devices: int | None = None, data_parallel: int = 1) -> Mesh:
    """Mesh of `n_devices` (all of them by default): lanes over 'run', batches over 'data'.

    Raises:
      InputError: fewer devices than asked for, or `data_parallel` does not divide them.
    """
    devices = jax.devices()
    wanted = len(devices) if n_devices is None else n_devices
    if wanted > len(devices):
        hint = (
            "set devices to at most that, or start Python with "
            f"JAX_NUM_CPU_DEVICES={wanted} for virtual ones"
            if devices[0].platform == "cpu"
            else "set devices to at most that"
        )
        raise InputError(
            f"devices is {wanted}: this process has {len(devices)} "
            f"{devices[0].platform} device(s); {hint}."
        )
    if hosts.n_processes() > 1 and wanted < len(devices):
        raise InputError(
            f"devices is {wanted}: {hosts.n_processes()} processes have {len(devices)} together, "
            "and each wants work; leave devices out."
        )
    if wanted % data_parallel:
        raise InputError(
            f"data_parallel is {data_parallel}: wanted a divisor of the {wanted} devices."
        )
    # The default axis type, Explicit, types shardings into programs that Flax modules don't expect.
    return jax.make_mesh(
        (wanted // data_parallel, data_parallel),
        ("run", "data"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[:wanted],
    )
