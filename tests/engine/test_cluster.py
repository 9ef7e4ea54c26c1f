"""What is sent to a cluster and what is claimed there, without a cluster."""

from __future__ import annotations

import dataclasses
import multiprocessing
import pickle
import subprocess
import sys
import time

import on_ray
import pytest

import ici
from ici.cli import main
from ici.cli.files import load_experiment
from ici.engine.distributed import parcel
from ici.engine.distributed.board import Board
from ici.engine.distributed.cluster import Claim, check_claim, claimed
from ici.store.lock import sole_writer_of_group
from ici.store.manifest import Manifest

CPUS = [{"CPU": 16.0, "memory": 1e9}]
GPUS = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}]


@pytest.mark.parametrize(
    ("nodes", "n_groups", "n_lanes", "devices", "data_parallel", "claim"),
    [
        (CPUS, 3, 24, None, 1, Claim("CPU", 5)),
        (CPUS, 3, 2, None, 1, Claim("CPU", 2)),  # no more than there are runs
        (CPUS, 100, 24, None, 1, Claim("CPU", 1)),
        (CPUS, 1, 24, None, 1, Claim("CPU", 16)),
        (CPUS, 9, 24, None, 1, Claim("CPU", 3)),  # two turns of five, not one that leaves 7 idle
        ([{"CPU": 2.0}], 3, 24, None, 1, Claim("CPU", 2)),
        (CPUS, 3, 24, 7, 1, Claim("CPU", 7)),
        (CPUS, 3, 24, None, 4, Claim("CPU", 4)),
        (CPUS, 100, 24, None, 4, Claim("CPU", 4)),
        (GPUS, 16, 24, None, 1, Claim("GPU", 1)),
        (GPUS, 1, 24, None, 1, Claim("GPU", 8)),  # a task stays on one node
        (GPUS, 3, 1, None, 8, Claim("GPU", 8)),
        ([{"CPU": 8.0}, {"CPU": 96.0, "TPU": 4.0}], 9, 24, None, 1, Claim("TPU", 4)),
        ([], 3, 24, None, 1, Claim("CPU", 1)),  # a cluster that has yet to grow
    ],
)
def test_each_task_claims_whole_devices(nodes, n_groups, n_lanes, devices, data_parallel, claim):
    assert claimed(nodes, n_groups, n_lanes, devices, data_parallel) == claim


def test_what_is_claimed_is_told_to_ray_and_to_jax():
    assert Claim("CPU", 3).options == {"num_cpus": 3}
    assert Claim("CPU", 3).variables["JAX_NUM_CPU_DEVICES"] == "3"
    assert Claim("GPU", 2).options == {"num_cpus": 1, "num_gpus": 2}
    assert Claim("TPU", 4).options == {"num_cpus": 1, "resources": {"TPU": 4}}
    assert not Claim("GPU", 2).variables  # Ray says which ones


def test_devices_that_no_node_has_are_refused_or_waited_for():
    assert check_claim(GPUS, Claim("GPU", 8), may_grow=False) is None
    told = "a task wants 9 GPUs and the largest node has 8"
    assert check_claim(GPUS, Claim("GPU", 9), may_grow=True) == told
    with pytest.raises(ici.InputError, match=f"{told}: wanted --devices of at most that"):
        check_claim(GPUS, Claim("GPU", 9), may_grow=False)


FILE = """
import dataclasses
import ici
from ici.models import norms

@dataclasses.dataclass(frozen=True)
class Mine(ici.MLPConfig):
    width: int = 4

ici.register_model("mine_of_a_file")(Mine)
experiment = ici.Experiment(data="digits", model=Mine(), norm=("none",), depth=(1,), steps=10)
"""


@pytest.fixture
def sent(tmp_path):
    """A parcel with an experiment whose file is then gone."""
    file = tmp_path / "some_question.py"
    file.write_text(FILE)
    experiment = load_experiment(str(file))
    made = parcel.packed(experiment)
    file.unlink()
    return made, experiment.fingerprint


def in_another_process(made, queue):
    try:
        queue.put(parcel.unpacked(made, "node 7").fingerprint)
    except Exception as error:
        queue.put(error)


def unpacked_elsewhere(made):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=in_another_process, args=(made, queue))
    process.start()
    try:
        return queue.get(timeout=60)
    finally:
        process.join()


@pytest.mark.slow
def test_an_experiment_is_understood_where_its_file_is_not(sent):
    made, fingerprint = sent
    assert unpacked_elsewhere(made) == fingerprint
    error = unpacked_elsewhere(dataclasses.replace(made, sources=()))
    assert isinstance(error, ici.InputError)
    assert "node 7 does not know the experiment" in str(error)


def test_other_versions_are_refused(sent):
    made, _ = sent
    other = dataclasses.replace(made, versions=made.versions | {"jax": "0.1"})
    with pytest.raises(ici.InputError, match=r"node 7 has other versions .*jax 0\.1 and here"):
        parcel.unpacked(other, "node 7")


def test_the_environment_goes_along(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    monkeypatch.setenv("HOME_OF_MINE", "x")
    made = parcel.packed(on_ray.experiment)
    assert made.variables["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
    assert "HOME_OF_MINE" not in made.variables
    assert "JAX_NUM_CPU_DEVICES" not in made.variables  # each claims its own
    # What a task unpickles before it sets its environment must not import JAX.
    code = f"import pickle, sys; pickle.loads({pickle.dumps(made)!r}); "
    code += "sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_board_hands_each_message_over_once_and_says_when_to_stop():
    board = Board()
    assert not board.tell(1, "begun", "here")
    assert board.take() == [(1, "begun", "here")]
    assert board.take() == []
    board.stop()
    assert board.tell(1, "progress", 3)


def hold(folder, seconds):
    with sole_writer_of_group(folder, "g", sent=True, wait_s=0):
        (folder / "held").touch()
        time.sleep(seconds)


def test_what_an_earlier_cluster_left_is_waited_for(tmp_path):
    with sole_writer_of_group(tmp_path, "g", sent=False, wait_s=0) as looked:
        assert not looked and not list(tmp_path.iterdir())
    orphan = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, 1.5))
    orphan.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.02)
    with (
        pytest.raises(ici.InputError, match="being written by another run"),
        sole_writer_of_group(tmp_path, "g", sent=False, wait_s=0),
    ):
        pass
    began = time.monotonic()
    with sole_writer_of_group(tmp_path, "g", sent=False, wait_s=30) as taken:
        assert taken and 0.2 < time.monotonic() - began < 20
    orphan.join()


@pytest.mark.slow
def test_a_group_that_an_orphan_ended_is_not_trained_again(tmp_path, monkeypatch):
    out = tmp_path / "out"
    short = dataclasses.replace(on_ray.experiment, norm=("none",), steps=20)
    ici.run(short, out)
    for name in Manifest.read(out).groups:
        (out / f".ici.{name}.lock").touch()
    manifest = Manifest.read(out)
    manifest.status = "running"
    manifest.write(out)
    # It ended just behind the look at the record.
    monkeypatch.setattr("ici.engine.run._is_done", lambda manifest, group: False)
    trained = []
    ici.run(short, out, on_progress=trained.append)
    assert not trained and Manifest.read(out).status == "done"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--on", "ray", "--coordinator", "auto"], "--on ray and --coordinator are both set"),
        (["--ray-address", "auto"], "--ray-address wants --on ray"),
        (["--on", "slurm"], "slurm"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, words, told):
    assert main(["run", on_ray.__file__, "--out", str(tmp_path / "out"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_cluster_at_an_address_is_told(tmp_path):
    began = time.monotonic()
    with pytest.raises(ici.InputError, match=r"no Ray cluster at 127\.0\.0\.1:1 .*ray start"):
        ici.run(on_ray.experiment, tmp_path / "out", on="ray", ray_address="127.0.0.1:1")
    assert time.monotonic() - began < 20
    with pytest.raises(ici.InputError, match="on is 'slurm': wanted 'ray'"):
        ici.run(on_ray.experiment, tmp_path / "out", on="slurm")
    with pytest.raises(ici.InputError, match="without on"):
        ici.run(on_ray.experiment, tmp_path / "out", ray_address="auto")
    assert not (tmp_path / "out").exists()
