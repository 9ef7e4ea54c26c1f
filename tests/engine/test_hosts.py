"""What joining and watching refuse, and how the processes that do not write keep count."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import ici
from ici.cli.overrides import RunOptions
from ici.engine import hosts
from ici.engine.joining import Together, join
from ici.engine.mesh import make_mesh
from ici.engine.training import Upkeep
from ici.engine.watchdog import _is_of_others
from ici.store.manifest import GroupEntry, Manifest
from ici.store.silent import SilentWriter
from ici.store.writer import GroupWriter, Layout, Node, Variable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "host"}, "coordinator is 'host': wanted HOST:PORT"),
        ({"coordinator": ":99"}, "wanted HOST:PORT"),
        ({"coordinator": "a:1"}, "processes is None and process is None: wanted how many"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "counted from 0"),
        ({"coordinator": "auto", "process": 1}, "leave --processes and --process out"),
    ],
)
def test_where_to_meet_is_checked_before_anybody_waits(settings, message):
    with pytest.raises(ici.InputError, match=message):
        Together(**settings)


def test_a_port_that_is_taken_is_named():
    import socket

    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ici.InputError, match=f"cannot listen on port {port} .*a free port"):
            join(Together(f"127.0.0.1:{port}", 2, 0))


def test_processes_without_a_meeting_point_are_refused():
    with pytest.raises(ici.InputError, match="--processes and --process want --coordinator"):
        RunOptions(processes=2, process=0)
    with pytest.raises(ici.InputError, match="watchdog_s is 0: wanted 1 or more"):
        Upkeep(watchdog_s=0)


def test_alone_nothing_is_asked_of_others():
    assert hosts.n_processes() == 1 and hosts.is_first()
    assert hosts.any_of(True, False) == (True, False)
    assert hosts.first_says(lambda: "told") == "told"
    assert hosts.gathered({"a": 1}) == [{"a": 1}]
    assert hosts.part_of_batch(make_mesh(4, 4), 8) == (0, 1)


def test_some_of_the_devices_of_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(hosts, "n_processes", lambda: 2)
    with pytest.raises(ici.InputError, match="devices is 2: 2 processes have 8 together"):
        make_mesh(2)


def test_errors_of_an_exchange_are_told_from_others():
    gone = "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:13229"
    assert _is_of_others(ValueError(gone))
    assert not _is_of_others(ValueError("shapes (2,) and (3,) do not match"))
    assert not _is_of_others(ici.InputError("no connection to the data"))


def test_who_does_not_write_counts_as_the_writer_does(tmp_path):
    nodes = {
        "train": Node(np.arange(10), 5, {"loss": Variable()}),
        "runs": Node(np.array([10]), 1, {"diverged_at": Variable()}),
    }
    layout = Layout({"seed": (0, 1)}, ("a",), (1,), nodes)
    manifest = Manifest({"norm": ["none"], "depth": [1]}, "f", "d", {})
    entries = [GroupEntry("none", 1, {}), GroupEntry("none", 1, {})]
    writers = [
        GroupWriter(tmp_path, manifest, "group", entries[0], layout),
        SilentWriter(entries[1], layout),
    ]
    for writer in writers:
        writer.write("train", {"loss": np.zeros((2, 5), np.float32)})
        writer.write("runs", {"diverged_at": np.zeros((2, 1), np.float32)}, first=0)
        writer.commit()
    assert entries[0].rows == entries[1].rows == {"train": 5, "runs": 1}
    for writer in writers:
        writer.finish()
    # Which chunks lie on the disk is for the one to know who writes them.
    assert dataclasses.replace(entries[0], written={}) == entries[1]
