"""Batches of examples read on the host."""

from __future__ import annotations

from typing import Any


class Loader:
    """Placeholder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError
