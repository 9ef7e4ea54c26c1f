"""``ici explain [NAME]``."""

from __future__ import annotations

from ici.errors import InputError
from ici.quantities import explain


def explain_command(arguments: list[str]) -> int:
    """Prints one quantity, or the names of all."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        seen = " ".join(arguments)
        raise InputError(f"ici explain {seen}: wanted one name, or none for the list of names.")
    explain(*arguments)
    return 0
