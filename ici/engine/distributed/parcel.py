"""What a task of a cluster is sent: the experiment, and what it takes to understand it there.

Nothing heavy is imported before a task has set its environment: JAX reads much of it once.
"""

from __future__ import annotations

import enum
import os
import sys
import types
from dataclasses import dataclass
from typing import Any

from ici.errors import InputError

# Variables of the sender that decide what is computed, or where data lie.
_PASSED = ("JAX_", "XLA_", "NNX_", "ICI_", "TFDS_")
# Said by the task's own claim, or about another process.
_OWN = ("JAX_NUM_CPU_DEVICES", "JAX_COORDINATOR", "JAX_PROCESS", "JAX_LOCAL_DEVICE")
# Settings of JAX that change numbers, where they were not set by variables.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
_VERSIONS = ("ici-instrument", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")
# Modules that `ici run FILE` makes of experiments' files: no other process can import them.
EXPERIMENT_MODULE = "ici_experiment_"


@dataclass(frozen=True)
class Parcel:
    """An experiment on its way to another process.

    Attributes:
      pickled: the experiment, by cloudpickle.
      folders: where modules are looked for.
      sources: name, path and text of the experiments' files that are loaded here.
      variables: of the environment.
      settings: of JAX.
      versions: of packages, which have to be the same there.
    """

    pickled: bytes
    folders: tuple[str, ...]
    sources: tuple[tuple[str, str, str], ...]
    variables: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str | None]


def packed(experiment: Any) -> Parcel:
    """`experiment` for other processes.

    Raises:
      InputError: something in it cannot be sent.
    """
    import jax
    from ray import cloudpickle

    try:
        pickled = cloudpickle.dumps(experiment)  # pyright: ignore[reportPrivateImportUsage]
    except Exception as error:
        raise InputError(
            f"the experiment cannot be sent to other processes ({type(error).__name__}: {error}): "
            "wanted data and a model made of plain settings, in a file that `ici run` takes."
        ) from error
    return Parcel(
        pickled=pickled,
        folders=tuple(sys.path),
        sources=tuple(_loaded_files()),
        variables={
            name: value
            for name, value in os.environ.items()
            if name.startswith(_PASSED) and not name.startswith(_OWN)
        },
        settings={name: _plain(getattr(jax.config, name)) for name in _SETTINGS},
        versions=_versions(),
    )


def unpacked(parcel: Parcel, where: str) -> Any:
    """The experiment, in the process `where`, whose environment has been set.

    Raises:
      InputError: other versions here, or something that the experiment names is not known here.
    """
    here = _versions()
    other = [
        f"{name} {version} and here {here[name]}"
        for name, version in parcel.versions.items()
        if here[name] != version
    ]
    if other:
        raise InputError(
            f"{where} has other versions than the one that sent the work ({'; '.join(other)}): "
            "wanted the same on all; install constraints.txt everywhere."
        )
    import jax
    from ray import cloudpickle

    for name, value in parcel.settings.items():
        jax.config.update(name, value)
    sys.path += [folder for folder in parcel.folders if folder not in sys.path]
    for name, path, text in parcel.sources:
        _execute(name, path, text)
    try:
        experiment = cloudpickle.loads(parcel.pickled)
        # Names that are registered elsewhere only are noticed when it is made.
        return type(experiment)(**vars(experiment))
    except Exception as error:
        raise InputError(
            f"{where} does not know the experiment ({type(error).__name__}: {error}): wanted what "
            "it registers and uses in its own file, for `ici run FILE --on ray`, or in a package "
            "that is installed everywhere."
        ) from error


def _plain(setting: Any) -> Any:
    """A setting without a type of JAX's, which would be imported to read it."""
    return setting.value if isinstance(setting, enum.Enum) else setting


def _execute(name: str, path: str, text: str) -> None:
    """Makes a module of an experiment's file, which need not lie on this machine."""
    if name in sys.modules:
        return
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    exec(compile(text, path, "exec"), module.__dict__)


def _loaded_files() -> list[tuple[str, str, str]]:
    found = []
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.startswith(EXPERIMENT_MODULE) and path and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                found.append((name, path, file.read()))
    return found


def _versions() -> dict[str, str | None]:
    from ici.environment import version

    python = ".".join(map(str, sys.version_info[:2]))
    return {"python": python} | {name: version(name) for name in _VERSIONS}
