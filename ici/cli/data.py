"""``ici data list | prepare | show``."""

from __future__ import annotations

import json

from rich.markup import escape
from rich.table import Table

from ici.cli.consoles import whole_lines
from ici.data import commands
from ici.errors import InputError, unknown_name


def data_command(arguments: list[str]) -> int:
    """Dispatches the sub-command."""
    name, *rest = arguments or ["list"]
    if name not in _COMMANDS:
        raise unknown_name("data command", name, tuple(_COMMANDS))
    _COMMANDS[name](rest)
    return 0


def _list(arguments: list[str]) -> None:
    if arguments:
        raise InputError(f"ici data list takes nothing: saw {arguments[0]!r}.")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("name", "kind", "prepared", "needs"):
        table.add_column(column)
    for row in commands.listing():
        table.add_row(row["name"], row["kind"], row["prepared"], escape(row["needs"]))
    whole_lines().print(table)


def _prepare(arguments: list[str]) -> None:
    rebuild = "--rebuild" in arguments
    names = [a for a in arguments if a != "--rebuild"]
    path = commands.prepare(_one_name("prepare", names), rebuild=rebuild)
    where = f"in {path}" if path else "made when it is used; nothing to store"
    text = f"{names[0]} is ready: {where}"
    whole_lines().print(text, highlight=False, markup=False, soft_wrap=True)


def _show(arguments: list[str]) -> None:
    facts = commands.show(_one_name("show", arguments))
    console = whole_lines()
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if key in ("splits", "examples"):
            console.print(f"{key}:", style="bold")
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for name, entry in entries:
                entry = json.dumps(entry, ensure_ascii=False)
                console.print(f"  {name}: {entry}", highlight=False, markup=False, soft_wrap=True)
        else:
            console.print(f"{key}: {text}", highlight=False, markup=False, soft_wrap=True)


def _one_name(command: str, names: list[str]) -> str:
    if len(names) != 1 or names[0].startswith("-"):
        seen = " ".join(names) or "nothing"
        raise InputError(f"ici data {command}: saw {seen}: wanted one name from `ici data list`.")
    return names[0]


_COMMANDS = {"list": _list, "prepare": _prepare, "show": _show}
