"""What a result was computed with: versions, hardware, source revision."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

DISTRIBUTION = "ici-instrument"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "xarray", "zarr")


def version(package: str) -> str | None:
    """Installed version of a distribution, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def source_revision() -> str | None:
    """Git revision of the package's own checkout, with ``+changes`` where it differs from it."""
    folder = Path(__file__).resolve().parent
    try:
        head, status = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(folder)])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+changes" if status else head


def environment() -> dict[str, Any]:
    """JSON-able description of this process's software and hardware. Starts JAX."""
    devices = jax.devices()
    return {
        "versions": {"ici": version(DISTRIBUTION), "python": platform.python_version()}
        | {p: version(p) for p in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "backend": devices[0].platform,
        "source": source_revision(),
    }
