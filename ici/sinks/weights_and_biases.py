"""Weights & Biases, online or offline."""

from __future__ import annotations

import contextlib
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ici.errors import InputError
from ici.sinks.packages import load
from ici.sinks.sink import About
from ici.store.places import Place


class WandbSink:
    """One W&B run per experiment, whose metrics are named ``norm=batch/lr=0.01/seed=0/loss``.

    The experiment is its config, and ``step`` the axis of every metric. Files go to the record's
    folder unless ``WANDB_DIR`` says where; ``WANDB_MODE=offline`` needs no network.

    Args:
      project: None is the experiment's name. The run is named as the record's folder.

    Raises:
      InputError: wandb is not installed, or online and not logged in.
    """

    def __init__(self, project: str | None = None):
        self.project = project
        self._library = load("wandb", "wandb")
        self._check_login()
        self._step: int | None = None
        self._row: dict[str, float] = {}

    def _check_login(self) -> None:
        settings = self._library.setup().settings
        known = settings.api_key or settings.identity_token_file or os.environ.get("WANDB_API_KEY")
        host = urlsplit(settings.base_url).hostname or ""
        # wandb would ask for a key at the terminal, in the middle of the run.
        if settings.mode in ("online", "shared") and not (known or _has_login(host)):
            raise InputError(
                "wandb is online and has no API key: `wandb login` once, or set WANDB_MODE=offline."
            )

    def start(self, about: About) -> None:
        self._run: Any = self._library.init(
            project=self.project or about.name,
            name=about.folder.resolve().name,
            config=about.experiment | {"series_are_medians": about.medians},
            dir=os.environ.get("WANDB_DIR") or _own_folder(about.folder),
            reinit="create_new",  # leaves a run of the user's own script alone
            settings=self._library.Settings(silent=True, console="off"),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        # One row of W&B's history holds what all series have at a step.
        if step != self._step:
            self._send()
            self._step = step
        self._row |= {f"{series}/{name}": value for name, value in values.items()}

    def finish(self) -> None:
        self._send()
        self._run.finish()

    def _send(self) -> None:
        if self._row:
            self._run.log({"step": self._step, **self._row})
            self._row = {}


def _own_folder(folder: Place) -> str | None:
    # Without a folder, W&B takes ./wandb.
    return str(folder) if isinstance(folder, Path) else None


def _has_login(host: str) -> bool:
    """Whether the file in which `wandb login` keeps keys has one for `host`."""
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if name and netrc.netrc(os.path.expanduser(name)).authenticators(host):
                return True
    return False
