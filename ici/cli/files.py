"""Experiment files."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from ici.config import Experiment
from ici.engine.distributed.parcel import EXPERIMENT_MODULE
from ici.errors import InputError


def load_experiment(path: str, scale: str | None = None) -> Experiment:
    """The object named ``experiment`` in a Python file, or ``scales[scale]`` in the same file.

    Raises:
      InputError: no such file, it fails to load, it defines no experiment, or not at that scale.
    """
    file = Path(path).resolve()  # as Python names it in tracebacks
    if not file.is_file():
        raise InputError(f"no file {path}: wanted a Python file that defines `experiment`.")
    spec = importlib.util.spec_from_file_location(f"{EXPERIMENT_MODULE}{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not Python: wanted a .py file that defines `experiment`.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
        line = frames[-1].lineno if frames else "?"
        if isinstance(error, SyntaxError) and error.filename == str(file):
            line = error.lineno
        raise InputError(
            f"{path}, line {line}: {type(error).__name__}: {error}: correct the experiment file."
        ) from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise InputError(
            f"{path} defines {type(experiment).__name__ if experiment else 'no'} `experiment`: "
            "wanted `experiment = ici.Experiment(...)`."
        )
    if scale is None:
        return experiment
    scales = getattr(module, "scales", {})
    if not isinstance(scales, dict) or not isinstance(scales.get(scale, experiment), Experiment):
        raise InputError(f"{path}: wanted `scales`, a dictionary of experiments by name.")
    if scale not in scales:
        known = ", ".join(scales) or "none"
        raise InputError(
            f"{path} has no scale {scale!r}: wanted one of its scales ({known}), or no --scale."
        )
    return scales[scale]


def taken_scale(arguments: list[str]) -> str | None:
    """The value of ``--scale`` among the words of a command line; None without."""
    for i, word in enumerate(arguments):
        key, given, value = word.partition("=")
        if key == "--scale":
            following = value if given else next(iter(arguments[i + 1 :]), "")
            if not following or following.startswith("--"):
                raise InputError("--scale has no value: wanted a name behind it, such as full.")
            return following
    return None
