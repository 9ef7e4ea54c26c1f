"""Entry point of ``ici``: dispatches, and turns bad input into one line and exit status 2."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ici.errors import PREEMPTED, InputError, unknown_name

DONE, BAD_INPUT = 0, 2

_USAGE = """\
usage: ici COMMAND ...

  ici run FILE [--out DIR] [--FIELD VALUE ...]   train an experiment and show its results
                                                 (ici run FILE --help lists every field)
  ici report RUN [RUN ...] [--compare DIM]       answers of a record: tables, interactive page,
                                                 figures, comparisons with verdicts
  ici replay RUN --norm N --lr X --seed S        train steps of a recorded run again, and measure
    --from STEP --to STEP [--measure all]        every one of them
  ici export RUN [--to FOLDER] [--format csv]    tables of a record as Parquet or CSV files
  ici watch DIR [--once]                         follow a record that is being written
  ici data list                                  the data sets there are
  ici data prepare NAME [--rebuild]              make a data set ready, e.g. before going offline
  ici data show NAME                             sizes, labels and examples of a data set
  ici explain [NAME]                             definition, source, cost and caveats of a quantity
  ici doctor                                     what this machine has, and what is missing
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    0: done (a diverged run is a result). 2: bad input, told in one line. 75: told to stop, by
    SIGTERM or Ctrl-C; the same command goes on.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        status = _status(arguments)
    except Exception:
        if not _has_peers():
            raise
        traceback.print_exc()
        status = 1
    if _has_peers():
        from ici.engine.hosts import leave

        leave(status)
    return status


def _has_peers() -> bool:
    """Whether this is one of several processes of a run, which end together."""
    hosts = sys.modules.get("ici.engine.hosts")
    return hosts is not None and hosts.n_processes() > 1


def _status(arguments: list[str]) -> int:
    try:
        with _warnings_in_one_line():
            return _dispatch(arguments)
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = f"{error.filename}: " if error.filename else ""
        free = shutil.disk_usage(".").free / 2**20
        return _fail(
            f"{where}{error.strerror} ({free:.0f} MiB free here): wanted a writable folder with "
            "enough space; make room or change --out."
        )
    except KeyboardInterrupt as error:
        print(f"ici: {str(error) or 'interrupted'}; the same command goes on.", file=sys.stderr)
        return PREEMPTED


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Shows this package's own warnings as it shows errors: without a line of its source."""
    package = Path(__file__).parents[1]
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str, category: type[Warning], filename: str, *more: Any
        ) -> None:
            if issubclass(category, RuntimeWarning) and Path(filename).is_relative_to(package):
                print("ici: warning: " + " ".join(str(message).split()), file=sys.stderr)
            else:
                usual(message, category, filename, *more)

        warnings.showwarning = show
        yield


def _fail(message: str) -> int:
    print("ici: " + " ".join(message.split()), file=sys.stderr)
    return BAD_INPUT


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return DONE
    if arguments[0] == "--version":
        from ici import __version__

        print(f"ici {__version__}")
        return DONE
    name, *rest = arguments
    if name not in _COMMANDS:
        raise unknown_name("command", name, tuple(_COMMANDS))
    return _COMMANDS[name](rest)


def _run(arguments: list[str]) -> int:
    from ici.cli.run import run_command

    return run_command(arguments)


def _report(arguments: list[str]) -> int:
    from ici.cli.report import report_command

    return report_command(arguments)


def _replay(arguments: list[str]) -> int:
    from ici.cli.replay import replay_command

    return replay_command(arguments)


def _export(arguments: list[str]) -> int:
    from ici.cli.export import export_command

    return export_command(arguments)


def _watch(arguments: list[str]) -> int:
    from ici.cli.watch import watch_command

    return watch_command(arguments)


def _data(arguments: list[str]) -> int:
    from ici.cli.data import data_command

    return data_command(arguments)


def _explain(arguments: list[str]) -> int:
    from ici.cli.explain import explain_command

    return explain_command(arguments)


def _doctor(arguments: list[str]) -> int:
    from ici.cli.doctor import doctor_command

    return doctor_command(arguments)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "report": _report,
    "replay": _replay,
    "export": _export,
    "watch": _watch,
    "data": _data,
    "explain": _explain,
    "doctor": _doctor,
}
