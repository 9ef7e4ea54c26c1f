"""Event files for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ici.sinks.packages import load
from ici.sinks.sink import About
from ici.store.places import check_local

FLUSH_EVERY_S = 5.0


class TensorBoardSink:
    """Writes one folder of events per run, with its hyperparameters: ``norm=batch/lr=0.01/seed=0``.

    A run is a curve of its name in every chart of TensorBoard: ``loss``, ``evaluation/accuracy``.

    Args:
      folder: where; None is the folder ``tensorboard`` in the record.

    Raises:
      InputError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = folder
        load("tensorboardX", "tensorboard")
        # Modules that protobuf fills: type checkers see nothing in them.
        self._events = load("tensorboardX.proto.event_pb2", "tensorboard")
        self._summaries = load("tensorboardX.proto.summary_pb2", "tensorboard")
        self._writers: dict[str, Any] = {}
        self._flushed_at = 0.0

    def start(self, about: About) -> None:
        self._root = (
            Path(self.folder)
            if self.folder
            else check_local(about.folder / "tensorboard", "TensorBoard's files")
        )
        self._hyperparameters = {series.name: series.settings for series in about.series}
        self._flushed_at = time.monotonic()

    def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
        writer = self._writers.get(series)
        if writer is None:
            writer = self._writers[series] = self._open(series)
        scalars = [
            self._summaries.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._write(writer, step=step, summary=self._summaries.Summary(value=scalars))
        if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
            for each in self._writers.values():
                each.flush()
            self._flushed_at = time.monotonic()

    def finish(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _open(self, series: str) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import hparams

        folder = self._root / series
        folder.mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: it has two threads and a pipe of its own for every run.
        writer = EventsWriter(str(folder / "events"))
        # START: a run that is trained again replaces in the display what it wrote before.
        self._write(writer, step=0, session_log=self._events.SessionLog(status=1))
        metrics = {"loss": 0.0, "evaluation/loss": 0.0, "evaluation/accuracy": 0.0}
        for summary in hparams(self._hyperparameters[series], metrics):
            self._write(writer, summary=summary)
        return writer

    def _write(self, writer: Any, **content: Any) -> None:
        writer.write_event(self._events.Event(wall_time=time.time(), **content))
