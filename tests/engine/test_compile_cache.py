"""JAX's cache of compiled programs may be in any state: a run goes on without it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("cached.py")
pytestmark = slow = pytest.mark.slow


def digest_of_run(out, cache, **more):
    """Of the final state, and what the run said on its standard error."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
    }
    run = subprocess.run(
        [sys.executable, str(CHILD), str(out)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.split()[-1], run.stderr


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A cache that a run has filled, and that run's digest."""
    folder = tmp_path_factory.mktemp("cache")
    digest, said = digest_of_run(folder / "out", folder / "compiled")
    assert "persistent compilation cache" not in said
    return folder / "compiled", digest


@contextlib.contextmanager
def _read_only(folder):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("below", [pytest.param("", marks=slow), "below/it"])
def test_a_file_in_place_of_the_compile_cache_changes_nothing(good, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    digest, said = digest_of_run(tmp_path / "out", file / below)
    assert digest == good[1]
    assert "Error reading persistent compilation cache" in said and "Traceback" not in said
    assert file.read_text() == "mine"


@slow
def test_a_read_only_compile_cache_changes_nothing(good, tmp_path):
    with _read_only(tmp_path / "compiled") as cache:
        digest, said = digest_of_run(tmp_path / "out", cache)
    assert digest == good[1]
    assert "Error writing persistent compilation cache" in said and "Traceback" not in said


@slow
def test_damaged_entries_of_the_compile_cache_are_not_used(good, tmp_path):
    """One is garbage in a whole package, one torn, one has a flipped bit, one is empty."""
    entries = sorted(good[0].glob("*-cache"))
    assert len(entries) == 4
    for at, entry in enumerate(entries):
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes((zlib.compress(b"garbage" * 100), content[:-40], content, b"")[at])
    digest, said = digest_of_run(tmp_path / "out", good[0])
    assert digest == good[1]
    assert said.count("Error reading persistent compilation cache") == 4, said
    assert "Traceback" not in said
