"""A sink runs beside the training: it never waits for it and never ends with it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import ici
from ici.sinks import background
from ici.sinks.background import Background, following
from ici.sinks.scalars import Rows
from ici.sinks.sink import about

EXPERIMENT = ici.Experiment(
    data="synthetic", norm=("none",), depth=(1,), lr=(0.1,), seed=(0,), steps=100
)


class Kept:
    """Keeps what it is given."""

    def __init__(self):
        self.seen, self.calls = [], []

    def start(self, about):
        self.calls.append("start")

    def log(self, series, step, values):
        self.seen.append((series, step, dict(values)))

    def finish(self):
        self.calls.append("finish")


class Blocked(Kept):
    """Waits at its first value until the test opens the gate."""

    def __init__(self):
        super().__init__()
        self.reached, self.gate = threading.Event(), threading.Event()

    def log(self, series, step, values):
        self.reached.set()
        assert self.gate.wait(30)
        super().log(series, step, values)


def rows(step: int, loss: float = 1.0, n_bytes_of: int = 1) -> Rows:
    values = {"loss": np.full((1, 1), loss, np.float32)}
    if n_bytes_of > 1:
        values["more"] = np.full((1, 1, n_bytes_of), np.nan, np.float32)
    return Rows("none", 1, "train", np.array([step]), values)


@contextlib.contextmanager
def one(sink, tmp_path):
    with following([sink], EXPERIMENT, tmp_path) as (only,):
        only.begin()
        yield only


def test_everything_arrives_in_order_and_the_sink_is_finished(tmp_path):
    sink = Kept()
    with one(sink, tmp_path) as feed:
        for step in range(50):
            feed.put(rows(step, loss=step / 2))
    assert sink.calls == ["start", "finish"]
    assert sink.seen == [("norm=none/lr=0.1/seed=0", s, {"loss": s / 2}) for s in range(50)]


def test_a_run_that_never_begins_never_starts_a_sink(tmp_path):
    sink = Kept()
    with following([sink], EXPERIMENT, tmp_path):
        pass
    assert sink.calls == []


def test_a_blocked_sink_loses_the_oldest_and_training_goes_on(tmp_path):
    sink = Blocked()
    feed = Background(sink, about(EXPERIMENT, tmp_path), max_rows=4)
    feed.begin()
    feed.put(rows(0))
    assert sink.reached.wait(30)
    start = time.monotonic()
    for step in range(1, 11):
        feed.put(rows(step))
    assert time.monotonic() - start < 1.0  # ten appends; a wait for the sink takes 30 s
    sink.gate.set()
    with pytest.warns(RuntimeWarning, match="Blocked was too slow: 6 of 11 pieces"):
        feed.close(time.monotonic() + 10)
    assert [step for _, step, _ in sink.seen] == [0, 7, 8, 9, 10]
    assert sink.calls == ["start", "finish"]


def test_what_waits_is_bounded_in_bytes_too(tmp_path):
    sink = Blocked()
    feed = Background(sink, about(EXPERIMENT, tmp_path), max_bytes=10_000)
    feed.begin()
    feed.put(rows(0))
    assert sink.reached.wait(30)
    for step in range(1, 6):
        feed.put(rows(step, n_bytes_of=1000))
    assert feed._n_bytes <= 10_000 and feed.n_dropped == 3
    sink.gate.set()
    with pytest.warns(RuntimeWarning, match="too slow"):
        feed.close(time.monotonic() + 10)


def test_a_sink_that_does_not_end_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_S", 0.2)
    sink = Blocked()
    start = time.monotonic()
    with (
        pytest.warns(RuntimeWarning, match="Blocked did not end in time"),
        one(sink, tmp_path) as feed,
    ):
        feed.put(rows(0))
        feed.put(rows(1))
    assert time.monotonic() - start < 5.0
    sink.gate.set()
    feed._thread.join(10)
    # The value it hung at is its last: nobody expects more of it.
    assert [step for _, step, _ in sink.seen] == [0]


@pytest.mark.parametrize("method", ["start", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("down"), SystemExit(3)])
def test_a_failing_sink_is_named_once_and_left_alone(tmp_path, method, error):
    sink = Kept()
    calls = []

    def fail(*args):
        calls.append(method)
        raise error

    setattr(sink, method, fail)
    good = Kept()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with following([sink, good], EXPERIMENT, tmp_path) as feeds:
            for feed in feeds:
                feed.begin()
            for step in range(5):
                for feed in feeds:
                    feed.put(rows(step))
                time.sleep(0.01)
    messages = [str(w.message) for w in said]
    assert len(messages) == 1 and messages[0].startswith("Kept failed")
    assert type(error).__name__ in messages[0] and str(error) in messages[0]
    assert calls == [method]
    assert len(good.seen) == 5 and good.calls == ["start", "finish"]
    assert (sink.calls == ["start", "finish"]) == (method == "log")


def test_not_even_warnings_made_errors_end_a_run(tmp_path, capsys):
    sink = Kept()
    sink.log = lambda *args: sys.exit(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with one(sink, tmp_path) as feed:
            feed.put(rows(0))
    assert "ici: warning: Kept failed" in capsys.readouterr().err


def test_a_run_that_fails_finishes_its_sinks(tmp_path):
    sink = Kept()
    with pytest.raises(KeyboardInterrupt), one(sink, tmp_path) as feed:
        feed.put(rows(0))
        raise KeyboardInterrupt
    assert sink.calls == ["start", "finish"] and len(sink.seen) == 1
