"""Packages that only some sinks want."""

from __future__ import annotations

import importlib
from typing import Any

from ici.errors import InputError


def load(package: str, extra: str) -> Any:
    """The imported `package`.

    Raises:
      InputError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{package} cannot be imported ({error}): pip install 'ici-instrument[{extra}]'."
        ) from None
