"""Groups as tasks of a Ray cluster: bit for bit what they are here, whatever is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import on_ray
import pytest
import ray
from ray.cluster_utils import Cluster

import ici
from ici.engine.distributed import driver
from ici.errors import Preempted
from ici.sinks import Sink
from ici.store.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
FILE = Path(on_ray.__file__)


def digests(folder) -> dict[str, str | None]:
    return {name: entry.state_digest for name, entry in Manifest.read(folder).groups.items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """What the same experiment gives without Ray."""
    out = tmp_path_factory.mktemp("here") / "out"
    ici.run(on_ray.experiment, out)
    return out


@pytest.fixture(scope="module")
def fault(tmp_path_factory):
    return tmp_path_factory.mktemp("fault") / "what"


@pytest.fixture(scope="module")
def cluster(fault):
    """Two nodes of one core each; the second one may be taken away."""
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        monkeypatch.setenv(on_ray.FAULT, str(fault))
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        warnings.simplefilter("ignore")
        head = {"num_cpus": 1, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(num_cpus=1)
        ray.init(made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def warned():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: " | ".join(
            str(each.message) for each in caught if issubclass(each.category, RuntimeWarning)
        )


class Kept(Sink):
    def __init__(self):
        self.seen: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def start(self, about):
        pass

    def log(self, series, step, values):
        self.seen.setdefault(series, []).append((step, values))

    def finish(self):
        pass


def tasks() -> list[int]:
    """Processes of tasks on this machine that carry a group of this test."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words.startswith("ray::ici norm="):
            found.append(int(path.parent.name))
    return found


def test_tasks_and_nodes_that_are_lost_end_as_they_would_have_here(cluster, here, tmp_path, warned):
    killed, progress, sink = [], [], Kept()
    (node,) = cluster.worker_nodes

    def kill(seen):
        progress.append(seen)
        if not killed and seen.step >= 40:
            killed.extend(tasks())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        if node in cluster.worker_nodes and seen.step >= 120:
            cluster.remove_node(node, allow_graceful=False)

    out = tmp_path / "a b" / "out"
    results = ici.run(
        on_ray.experiment,
        out,
        on="ray",
        on_progress=kill,
        checkpoint_every_s=0,
        sinks=[sink],
    )
    assert killed and "its process died" in warned()
    assert "its node is gone" in warned()
    assert digests(out) == digests(here)
    for node in ("train", "probe", "reference", "evaluation", "runs"):
        mine, theirs = getattr(results, node), getattr(ici.open(here), node)
        for name in theirs.data_vars:
            np.testing.assert_array_equal(mine[name].values, theirs[name].values, err_msg=name)
    assert {(p.norm, p.step) for p in progress} >= {("none", 200), ("batch", 200)}
    assert {name.partition("/")[0] for name in sink.seen} == {"norm=none", "norm=batch"}
    assert any("shift/deepest" in values for seen in sink.seen.values() for _, values in seen)
    assert results.manifest.status == "done"
    assert results.manifest.environment["devices"] == 1  # two cores for two groups
    cluster.add_node(num_cpus=1)


def test_groups_that_cannot_be_trained_leave_the_others_alone(
    cluster, fault, here, tmp_path, monkeypatch, warned
):
    monkeypatch.setattr(driver, "CHUNKS_PER_WATCH", 25)
    monkeypatch.setattr(driver, "ATTEMPTS", 2)
    more = dataclasses.replace(on_ray.experiment, norm=("none", *on_ray.HARM))
    fault.touch()
    try:
        with pytest.raises(ici.InputError) as caught:
            ici.run(more, tmp_path, on="ray", watchdog_s=1)
    finally:
        fault.unlink()
    for told in (
        "norm=batch,depth=1 was lost 2 times .*its process died.*the same command tries again",
        "norm=layer,depth=1 was lost 2 times .*it was ended",
        "norm=rms,depth=1: memory ran out .*42 bytes.*: lane_width below",
        "norm=group.*cannot take inputs .*what the user forgot",
    ):
        assert re.search(told, str(caught.value))
    assert "norm=layer,depth=1: no chunk of steps for 25 s" in warned()
    assert Manifest.read(tmp_path).status == "failed"
    alone = "norm=none,depth=1"
    assert digests(tmp_path) == {alone: digests(here)[alone]}
    # Only what is missing is trained, there or here.
    array = tmp_path / "records" / alone / "train/loss/zarr.json"
    before = array.stat().st_mtime_ns
    ici.run(more, tmp_path)
    assert digests(tmp_path).items() > digests(here).items()
    assert array.stat().st_mtime_ns == before


def test_the_process_that_tasks_report_to_may_be_lost(cluster, here, tmp_path):
    def kill(seen):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_bytes().startswith(b"ray::Board"):
                    os.kill(int(path.parent.name), signal.SIGKILL)

    with pytest.raises(Preempted, match="Ray lost the process that tasks report to"):
        ici.run(on_ray.experiment, tmp_path, on="ray", on_progress=kill, checkpoint_every_s=0)
    assert Manifest.read(tmp_path).status == "preempted"
    ici.run(on_ray.experiment, tmp_path)
    assert digests(tmp_path) == digests(here)


def test_a_hook_that_raises_stops_all_behind_a_save(cluster, here, tmp_path):
    def hook(progress):
        raise RuntimeError("the hook's own")

    with pytest.raises(RuntimeError, match="the hook's own"):
        ici.run(on_ray.experiment, tmp_path, on="ray", on_progress=hook)
    assert Manifest.read(tmp_path).status == "failed"
    ici.run(on_ray.experiment, tmp_path)  # here: a record is a record
    assert digests(tmp_path) == digests(here)


def test_devices_that_no_node_has(cluster, tmp_path, monkeypatch):
    many = dataclasses.replace(on_ray.experiment, devices=64)
    with pytest.raises(ici.InputError, match="64 CPUs and the largest node has 1"):
        ici.run(many, tmp_path / "out", on="ray", ray_address="local")
    assert not (tmp_path / "out").exists()


def started(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "ici.cli", "run", str(FILE), "--on", "ray"]
    return subprocess.Popen(
        [*command, "--out", str(out), "--no-figures", "--checkpoint-every-s", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(out: Path, process: subprocess.Popen[str], within_s: float = 120) -> None:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s and process.poll() is None:
        if any((out / "checkpoints").glob("*/[1-9]*")):
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"nothing was saved in {within_s} s: {process.communicate()}")


def test_whatever_befalls_the_driver_the_same_command_goes_on(here, tmp_path):
    out = tmp_path / "out"
    first = started(out)
    wait_for_rows(out, first)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 75, err
    assert "the same command goes on" in err and "Traceback" not in err
    assert Manifest.read(out).status == "preempted"

    second = started(out)
    time.sleep(8)  # somewhere between its start and its end
    second.kill()
    second.communicate()
    # What it left may still be at work for an instant: the next one waits for that.
    third = started(out)
    _, err = third.communicate(timeout=180)
    assert third.returncode == 0, err
    assert "Traceback" not in err
    assert digests(out) == digests(here)
