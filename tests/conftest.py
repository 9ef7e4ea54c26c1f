"""Guard rails of every test: virtual devices, strict shapes, a data cache of its own."""

from __future__ import annotations

import os

# JAX fixes the number of devices when it starts: before anything is computed.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def compile_once(tmp_path_factory):
    """Tests compile the same small programs over and over: share them within one session."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(autouse=True, scope="session")
def own_data_cache(tmp_path_factory):
    """Prepared data goes to a folder of this session, never to the user's."""
    folder = tmp_path_factory.mktemp("data-cache")
    before = os.environ.get("ICI_DATA_DIR")
    os.environ["ICI_DATA_DIR"] = str(folder)
    yield folder
    os.environ.pop("ICI_DATA_DIR")
    if before is not None:
        os.environ["ICI_DATA_DIR"] = before
