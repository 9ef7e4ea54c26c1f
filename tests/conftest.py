"""Guard rails of every test: virtual devices, strict shapes, a data cache of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# JAX fixes the number of devices when it starts, and processes that tests start inherit it. A GPU
# would hide the virtual devices; to test on one: JAX_PLATFORMS=cuda make test
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Every operation that is traced notes where it came from, a tenth of the time: here nobody asks.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property compiles and the others don't: their times say nothing. Failures
# are not remembered in the checkout; where CI sets itself up, every run tries the same examples.
hypothesis.settings.register_profile("local", deadline=None, database=None)
hypothesis.settings.register_profile("ci", deadline=None, database=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True, scope="session")
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests and the processes they start compile the same small programs over and over: share them.

    One session shares them, or all where ICI_TEST_COMPILED names a folder.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = os.environ.get("ICI_TEST_COMPILED") or str(shared / "compiled")
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.05,
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in settings.items():
            jax.config.update(name, value)
            monkeypatch.setenv(name.upper(), str(value))
        yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(autouse=True, scope="session")
def own_data_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data goes to a folder of this session, never to the user's."""
    folder = tmp_path_factory.mktemp("data-cache")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("ICI_DATA_DIR", str(folder / "ici"))
        monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
        yield folder / "ici"


@pytest.fixture
def transfer_guard() -> Iterator[None]:
    """Fails a test that moves arrays between host and device without saying so."""
    with jax.transfer_guard("disallow"):
        yield
