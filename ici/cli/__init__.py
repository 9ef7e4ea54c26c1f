"""The command line: ``ici run | report | data | doctor``."""

from ici.cli.main import main

__all__ = ["main"]
