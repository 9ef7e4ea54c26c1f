"""Copies of folders in object stores: whole ones count."""

from __future__ import annotations

import pytest

from ici.errors import InputError
from ici.store.mirror import complete_copies, get_folder, put_folder
from ici.store.places import RemotePath, place


@pytest.fixture(params=["memory", "bucket"])
def steps(request):
    return place(request.getfixturevalue(request.param)) / "checkpoints"


@pytest.fixture
def step(tmp_path):
    folder = tmp_path / "100"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a").write_bytes(b"")
    (folder / "deep" / "er" / "b").write_bytes(bytes(range(256)))
    return folder


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_copy_comes_back(steps, step, tmp_path):
    assert complete_copies(steps) == []
    put_folder(step, steps / "100")
    assert complete_copies(steps) == ["100"]
    get_folder(steps / "100", tmp_path / "back")
    assert content(tmp_path / "back") == content(step)
    (step / "a").unlink()
    put_folder(step, steps / "100")
    get_folder(steps / "100", tmp_path / "back")
    assert content(tmp_path / "back") == content(step)


def test_one_that_was_cut_short_does_not_count(steps, step, tmp_path, monkeypatch):
    put_folder(step, steps / "100")
    upload = RemotePath.upload

    def dying(self, file):
        if file.name == "b":
            raise OSError("gone")
        upload(self, file)

    monkeypatch.setattr(RemotePath, "upload", dying)
    for name in ("100", "200"):
        with pytest.raises(OSError, match="gone"):
            put_folder(step, steps / name)
        assert name not in complete_copies(steps)
        with pytest.raises(InputError, match="no complete copy"):
            get_folder(steps / name, tmp_path / "back")


@pytest.mark.parametrize("how", ["missing", "short"])
def test_a_damaged_copy_leaves_what_is_there(steps, step, tmp_path, how):
    put_folder(step, steps / "100")
    get_folder(steps / "100", tmp_path / "back")
    file = steps / "100" / "deep/er/b"
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(b"short")
    with pytest.raises(InputError, match="wanted"):
        get_folder(steps / "100", tmp_path / "back")
    assert content(tmp_path / "back") == content(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "back"]


def test_a_checkpoint_comes_back(memory, tmp_path):
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    state = {"w": jnp.arange(6.0).reshape(2, 3), "step": jnp.int32(7)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "7", state)
        checkpointer.wait_until_finished()
        put_folder(tmp_path / "7", place(memory) / "7")
        get_folder(place(memory) / "7", tmp_path / "elsewhere" / "7")
        back = checkpointer.restore(tmp_path / "elsewhere" / "7", state)
    assert (back["w"] == state["w"]).all() and back["step"] == 7
