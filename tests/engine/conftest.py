"""Fixtures of the engine's tests."""

from tiny import data, make_tiny

__all__ = ["data", "make_tiny"]
