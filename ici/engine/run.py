"""`run`: from an experiment to its record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from ici.config import Experiment
from ici.data import Dataset
from ici.engine import hosts
from ici.engine.checkpoint import KEEP
from ici.engine.distributed.cluster import connected, is_local
from ici.engine.distributed.driver import cluster_for, train_on_cluster
from ici.engine.explained import explained
from ici.engine.flight_windows import WINDOWS, record_flights
from ici.engine.group import PreparedGroup, prepare
from ici.engine.mesh import claim_cpu_devices, make_mesh
from ici.engine.opening import as_first_sees, begin, check_data, check_shared, existing, load, mark
from ici.engine.progress import Progress
from ici.engine.signals import GRACE_S, noticed
from ici.engine.training import Recording, Upkeep, train_group
from ici.engine.watchdog import WATCHDOG_S, watched
from ici.errors import InputError, Preempted
from ici.sinks import Sink
from ici.sinks.background import following
from ici.store.lock import sole_writer
from ici.store.manifest import COMPLETE, Manifest
from ici.store.places import Place, place
from ici.store.results import Results, open_results
from ici.store.writer import check_space


def run(
    experiment: Experiment,
    out: str | Place,
    *,
    resume: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    sinks: Sequence[Sink] = (),
    checkpoint_every_s: float | None = None,
    keep_checkpoints: int = KEEP,
    grace_s: float = GRACE_S,
    watchdog_s: float = WATCHDOG_S,
    flight_recorder: int = WINDOWS,
    command: Sequence[str] | None = None,
    on: str | None = None,
    ray_address: str | None = None,
) -> Results:
    """Trains every run of `experiment` and records it in the folder `out`.

    A folder that holds this experiment is gone on with: what is complete is opened and nothing is
    trained, and an unfinished group continues bit for bit from its newest checkpoint.

    Args:
      experiment: what to run.
      out: folder of the record, made if need be, or a URL such as ``s3://bucket/runs/movies``.
      resume: insist that there is a record to go on with.
      restart: train this experiment again from step 0.
      overwrite: replace whatever record the folder holds, another experiment's too.
      on_progress: called after every chunk of steps.
      sinks: dashboards to feed, such as `TensorBoardSink()`; they change nothing else, slow or
        failing ones included.
      checkpoint_every_s: seconds between two checkpoints of a group; 0 saves after every chunk of
        steps, None every minute or more rarely, to cost 2 % of the time at most.
      keep_checkpoints: how many of the newest to keep, for every group.
      grace_s: how long after SIGTERM or Ctrl-C the process may go on, to save.
      watchdog_s: where several processes run together (`jax.distributed.initialize` was called),
        how long one may go unheard before the others leave, with status 75.
      flight_recorder: around how many onsets of spikes and divergences every step is recorded
        in full when all runs have ended, as far as that takes 5 % of their time; 0 is none.
      command: words of the command line, kept for `ici replay`.
      on: "ray" sends the groups, which have a norm and a depth each, to the tasks of a Ray cluster;
        None trains here.
      ray_address: HOST:PORT of the cluster, or "auto" for the one that runs on this machine; None
        is that of ``RAY_ADDRESS``, or a local one for as long as the run lasts.

    Raises:
      InputError: anything that cannot be, told before the first step and before anything is
        written: see `Experiment`; a folder with another experiment; too few devices; too little
        disk; data that is missing, damaged or too small; checkpoints that are all damaged. Also
        when memory runs out, with what would save some.
      UnwritableError: the disk is full or the folder read-only; what was saved before serves.
      Preempted: SIGTERM or Ctrl-C came; all is saved, and the same call goes on.
    """
    if on not in (None, "ray"):
        raise InputError(f"on is {on!r}: wanted 'ray', or None to train here.")
    if on is None and ray_address is not None:
        raise InputError(f"ray_address is {ray_address!r} without on: wanted on 'ray' with it.")
    if on is not None and hosts.n_processes() > 1:
        raise InputError(
            "on is 'ray' in one of several processes: wanted one process that sends tasks to a "
            "cluster, or several without it."
        )
    upkeep = Upkeep(checkpoint_every_s, keep_checkpoints, grace_s, watchdog_s, flight_recorder)
    folder = place(out)
    held: list[Manifest] = []

    def told_to_stop() -> None:
        for manifest in held:
            mark(manifest, folder, "preempted")

    with (
        noticed(grace_s, told_to_stop) as notice,
        watched(watchdog_s, told_to_stop),
        contextlib.ExitStack() as stack,
    ):
        old = as_first_sees(lambda: existing(folder, experiment, resume, restart, overwrite))
        if old is not None and old.status in COMPLETE:
            return open_results(folder)
        # Its processes are forks of this one, best before JAX has threads.
        ray = stack.enter_context(connected(ray_address)) if on else None
        claim_cpu_devices()
        mesh = None if on else make_mesh(experiment.devices, experiment.data_parallel)
        dataset = load(experiment)
        check_data(folder, dataset, old)
        groups = [prepare(experiment, group, dataset) for group in experiment.groups]
        cluster = None
        if ray is not None:
            missing = [g for g in groups if old is None or not _is_done(old, g)]
            cluster = cluster_for(ray, experiment, len(missing), not is_local(ray_address))
        n_bytes = sum(group.layout.n_bytes() for group in groups)
        hosts.first_says(lambda: check_space(folder, n_bytes))
        hosts.first_says(lambda: stack.enter_context(sole_writer(folder)))
        seen_here = sinks if hosts.is_first() else ()
        with following(seen_here, experiment, folder) as observers:
            words = None if command is None else list(command)
            manifest = begin(folder, old, experiment, dataset, words)
            held.append(manifest)
            check_shared(folder)
            began = time.perf_counter()
            try:
                for observer in observers:
                    observer.begin()
                groups = [each for each in groups if not _is_done(manifest, each)]
                recording = Recording(
                    experiment,
                    folder,
                    manifest,
                    upkeep,
                    notice,
                    on_progress or (lambda progress: None),
                    observers,
                )
                if cluster is not None:
                    train_on_cluster(cluster, recording, groups)
                else:
                    assert mesh is not None
                    _train_here(recording, groups, dataset, mesh)
            except Preempted:
                mark(manifest, folder, "preempted")
                raise
            except BaseException as error:
                told = explained(error, experiment, folder)
                # On a full disk this fails as well, and what failed first is what matters.
                with contextlib.suppress(OSError):
                    mark(manifest, folder, "failed", f"{type(error).__name__}: {error}")
                if told is not None:
                    raise told from error
                raise
            diverged = hosts.first_says(lambda: _all_diverged(folder, manifest))
            mark(manifest, folder, "diverged" if diverged else "done")
            took_s = time.perf_counter() - began
            if on is None:  # tasks of a cluster have recorded their own
                record_flights(experiment, folder, manifest, upkeep.flights, took_s)
    return open_results(folder)


def _is_done(manifest: Manifest, prepared: PreparedGroup) -> bool:
    entry = manifest.groups.get(prepared.group.name)
    return entry is not None and entry.done


def _train_here(
    recording: Recording, groups: Sequence[PreparedGroup], dataset: Dataset, mesh: Mesh
) -> None:
    """One group after another on the devices of `mesh`."""
    for prepared in groups:
        if recording.notice.requested:
            raise Preempted("told to stop between two groups")
        train_group(recording, prepared, dataset, mesh)


def _all_diverged(folder: Place, manifest: Manifest) -> bool:
    """Whether not one run came through."""
    return bool(np.isfinite(Results(folder, manifest).runs["diverged_at"].values).all())
