"""Command-line options, generated from the experiment that they change."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro
from rich.text import Text

from ici.config import Experiment
from ici.data import resolve as resolve_data
from ici.engine.checkpoint import KEEP
from ici.engine.flight_windows import WINDOWS
from ici.engine.signals import GRACE_S
from ici.engine.watchdog import WATCHDOG_S
from ici.errors import InputError, unknown_name
from ici.models import resolve as resolve_model
from ici.probe import Probe


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What `ici run` takes besides the experiment's own fields.

    Attributes:
      out: folder of the record; default runs/NAME.
      resume: insist that the folder holds a record to go on with; without it that is done too.
      restart: train this experiment again from step 0.
      overwrite: replace the record that the folder holds, another experiment's too.
      fork: leave the record in the folder alone, and use the first free of OUT-2, OUT-3, ….
      checkpoint_every_s: seconds between checkpoints; 0 is after every chunk of steps, and the
        default every minute or more rarely, to cost 2 % of the time at most.
      keep_checkpoints: how many of the newest to keep, for every group.
      grace_s: how long the process may go on after SIGTERM or Ctrl-C, to save.
      coordinator: HOST:PORT of process 0, where several processes run this together, each started
        with the same command but for --process; or auto, as a cloud TPU slice, Slurm, Open MPI or
        Kubernetes says.
      processes: how many they are.
      process: the number of this one, from 0.
      watchdog_s: how long one of them may go unheard before the others leave, with status 75.
      on: ray sends the groups to the tasks of a Ray cluster; without it they are trained here.
      ray_address: HOST:PORT of the cluster, or auto for the one that runs on this machine; default
        is RAY_ADDRESS, or a local one for as long as the run lasts.
      flight_recorder: around how many onsets of spikes and divergences every step is recorded in
        full at the end, as far as that takes 5 % of the time; 0 is none.
      figures: draw the figures at the end.
      scale: which of the file's experiments to run, such as full; default is its `experiment`.
      tensorboard: also write event files for TensorBoard to this folder; default OUT/tensorboard.
      wandb: also log to Weights & Biases; WANDB_MODE=offline needs no network.
    """

    out: str | None = None
    resume: bool = False
    restart: bool = False
    overwrite: bool = False
    fork: bool = False
    checkpoint_every_s: float | None = None
    keep_checkpoints: int = KEEP
    grace_s: float = GRACE_S
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    watchdog_s: float = WATCHDOG_S
    on: Literal["ray"] | None = None
    ray_address: str | None = None
    flight_recorder: int = WINDOWS
    figures: bool = True
    scale: str | None = None
    tensorboard: str | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        if self.out is not None and not self.out.strip():
            raise InputError(f"--out is {self.out!r}: wanted a folder, such as --out runs/mine.")
        if self.coordinator is None and (self.processes, self.process) != (None, None):
            raise InputError(
                "--processes and --process want --coordinator, where they meet: HOST:PORT or auto."
            )
        if self.on is not None and self.coordinator is not None:
            raise InputError(
                "--on ray and --coordinator are both set: wanted one; tasks of a cluster are one "
                "process each."
            )
        if self.on is None and self.ray_address is not None:
            raise InputError("--ray-address wants --on ray beside it.")
        names = ("resume", "restart", "overwrite", "fork")
        chosen = [f"--{name}" for name in names if getattr(self, name)]
        if len(chosen) > 1:
            raise InputError(
                f"{' and '.join(chosen)} are both set: wanted one; --resume goes on with a record, "
                "--restart trains its experiment again, --overwrite replaces it, --fork leaves it."
            )


_GRIDS = ("--probe.stats",) + tuple(
    f"--{f.name.replace('_', '-')}"
    for f in dataclasses.fields(Experiment)
    if str(f.type).startswith("tuple[")
)


def override(
    experiment: Experiment, arguments: list[str], prog: str
) -> tuple[Experiment, RunOptions]:
    """`experiment` with the fields that `arguments` set, and the options of the run.

    Raises:
      InputError: an option that is no field, a value of the wrong type, or an experiment that
        cannot be.
    """
    named, arguments = _named_configs(_split_options(arguments))
    base = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)} | named
    schema = _schema(base)
    parsed = _parse(schema, arguments, prog)
    options = RunOptions(
        **{f.name: getattr(parsed, f.name) for f in dataclasses.fields(RunOptions)}
    )
    values = {name: getattr(parsed, name) for name in base if hasattr(parsed, name)}
    values["probe"] = dataclasses.replace(
        experiment.probe,
        **{f.name: getattr(parsed.probe, f.name) for f in dataclasses.fields(parsed.probe)},
    )
    return Experiment(**(base | values)), options


def _split_options(arguments: list[str]) -> list[str]:
    """Every ``--key=value`` as two words, and every key with dashes."""
    words: list[str] = []
    key = ""
    for argument in arguments:
        if argument.startswith("--"):
            key, given, value = argument.partition("=")
            key = key.replace("_", "-")
            if words[-1:] == ["--tensorboard"]:
                words.append("")
            words += [key, value] if given else [key]
        else:
            value = argument
            words.append(value)
        if key in _GRIDS and "," in value:
            apart = " ".join(value.strip("()[]").replace(",", " ").split())
            raise InputError(
                f"{key} is {value!r}: wanted values separated by spaces, such as {key} {apart}."
            )
    # The one option whose value may be left out.
    return [*words, ""] if words[-1:] == ["--tensorboard"] else words


def _named_configs(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Takes ``--data NAME`` and ``--model NAME`` out: they decide which other options exist."""
    named: dict[str, Any] = {}
    rest = list(arguments)
    for field, resolve in (("data", resolve_data), ("model", resolve_model)):
        while f"--{field}" in rest:
            at = rest.index(f"--{field}")
            if at + 1 >= len(rest):
                raise InputError(f"--{field} has no value: wanted a name behind it.")
            named[field] = resolve(rest[at + 1])
            del rest[at : at + 2]
    return named, rest


def _schema(base: dict[str, Any]) -> Any:
    """A dataclass instance whose fields are all options, for tyro to read."""
    hints = get_type_hints(Experiment)
    taken = set(base) | {f.name for f in dataclasses.fields(RunOptions)}
    entries: list[tuple[str, Any, Any]] = []
    for name, value in base.items():
        kind = hints[name]
        if name == "probe":
            kind, value = _probe_schema(value)
        elif name in ("data", "model"):
            if not dataclasses.is_dataclass(value) or not _all_plain(value):
                continue
            inner = {f.name for f in dataclasses.fields(value)}
            kind = Annotated[type(value), tyro.conf.arg(name=name if inner & taken else "")]
            taken |= inner
        default = dataclasses.field(default_factory=lambda value=value: value)
        entries.append((name, kind, default))
    for each in dataclasses.fields(RunOptions):
        entries.append((each.name, get_type_hints(RunOptions)[each.name], each.default))
    schema = dataclasses.make_dataclass("Run", entries)
    schema.__doc__ = "\n".join(
        [
            "Train an experiment and show its results. --data NAME and --model NAME choose "
            "another data set or model family; several values sweep.",
            "",
            "Attributes:",
            *_attributes(Experiment.__doc__),
            *_attributes(RunOptions.__doc__),
        ]
    )
    return schema


def _attributes(docstring: str | None) -> list[str]:
    """The lines that describe the fields, for tyro to find."""
    described = (docstring or "").partition("Attributes:")[2].partition("Raises:")[0]
    return described.splitlines()[1:]


def _all_plain(config: Any) -> bool:
    """Whether every setting is text or a number, and so can be given on a command line."""
    plain = (str, int, float, bool, type(None))
    return all(isinstance(getattr(config, f.name), plain) for f in dataclasses.fields(config))


def _probe_schema(probe: Probe) -> tuple[Any, Any]:
    entries: list[tuple[str, Any, Any]] = [
        ("stats", tuple[str, ...], probe.stats),
        ("every", int, probe.every),
        ("cotangents", bool, probe.cotangents),
    ]
    if probe.select is None or isinstance(probe.select, str):
        entries.insert(0, ("select", str | None, probe.select))
    schema = dataclasses.make_dataclass("ProbeOptions", entries)
    return schema, schema()


def _parse(schema: Any, arguments: list[str], prog: str) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed, unknown = tyro.cli(schema, args=arguments, prog=prog, return_unknown_args=True)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _refusal(said.getvalue(), prog) from None
    if unknown:
        if not unknown[0].startswith("--"):
            raise InputError(f"unexpected {unknown[0]!r}: wanted options such as --depth 20.")
        near = difflib.get_close_matches(unknown[0], _option_names(schema), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown option {unknown[0]}: {hint}`{prog} --help` lists them all.")
    return parsed


def _refusal(box: str, prog: str) -> InputError:
    """The error that tyro shows as a titled box, whose first paragraph says what is wrong."""
    box = Text.from_ansi(box).plain  # coloured where standard output is a terminal
    # Rules between the parts are of "-" where the terminal has no "─".
    lines = [re.sub("^[─-]+$", "", line.strip(" │╭╮╰╯")) for line in box.splitlines()[1:]]
    what = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda x: not x, lines)))
    what = what.rstrip(".")
    choice = re.fullmatch(r"invalid choice '(.*)' for argument '--(.*)'\. .* \((.*)\)", what)
    if choice:
        value, option, known = choice.groups()
        return unknown_name(option, value, re.findall(r"'([^']*)'", known))
    return InputError(f"{what}: wanted a value of the type that `{prog} --help` names.")


def _option_names(schema: Any) -> tuple[str, ...]:
    names = ["--data", "--model"]
    for field in dataclasses.fields(schema):
        if field.name == "probe":
            names += [f"--probe.{f.name}" for f in dataclasses.fields(Probe)]
        elif field.name in ("data", "model"):
            config, arg = get_args(field.type)
            prefix = f"{arg.name}." if arg.name else ""
            names += [f"--{prefix}{f.name}" for f in dataclasses.fields(config)]
        else:
            names.append(f"--{field.name}")
    return tuple(name.replace("_", "-") for name in names)
