"""The one exception that means "the input is at fault"."""


class InputError(ValueError):
    """Bad input, told in one line: what was seen, what was wanted, how to fix it.

    The command line prints the message without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: list[str] | tuple[str, ...]) -> InputError:
    """An `InputError` for a misspelt name: lists the known ones and the nearest match."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}: wanted one of {', '.join(sorted(known))}.{hint}")


# Exit status of a process that was told to stop: the same command goes on.
PREEMPTED = 75


class Preempted(KeyboardInterrupt):  # noqa: N818
    """A run was told to stop, by SIGTERM or Ctrl-C, and has been saved: running it again goes on.

    No `Exception`, as Ctrl-C is none: code that survives errors must not survive this.
    """
