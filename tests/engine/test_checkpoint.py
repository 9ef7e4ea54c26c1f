"""Checkpoints: what comes back is what was saved, or it does not come back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ici.engine.checkpoint import Checkpoints
from ici.engine.leaves import (
    DamagedError,
    digests,
    is_intact,
    named_leaves,
    state_digest,
    with_leaves,
)
from ici.errors import InputError


def tree(scale=1.0):
    return {
        "weights": scale * jnp.arange(24.0).reshape(3, 8),
        "keys": jax.random.split(jax.random.key(0), 3),
        "count": jnp.int32([1, 2, 3]),
    }


def saved(folder, steps=(10, 20, 30), keep=5, mark=None):
    checkpoints = Checkpoints(folder / "group", every_s=0, keep=keep)
    if mark is not None:
        checkpoints.mark(mark)
    for step in steps:
        checkpoints.save(step, named_leaves(tree(step)), {"rows": {"train": step}})
    checkpoints.wait()
    return checkpoints


def flip(folder, kind):
    """Flips a bit in the middle of the largest file of a kind."""
    file = max((p for p in folder.rglob(kind) if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    checkpoints = saved(tmp_path)
    restored = checkpoints.restore()
    assert restored.step == 30 and restored.about == {"rows": {"train": 30}}
    back = with_leaves(tree(), restored.leaves)
    assert digests(named_leaves(back)) == digests(named_leaves(tree(30)))
    assert back["keys"].dtype == tree()["keys"].dtype
    checkpoints.close()


def test_another_process_reads_it(tmp_path):
    saved(tmp_path).close()
    again = Checkpoints(tmp_path / "group")
    assert again.steps == [10, 20, 30] and again.restore(before=25).step == 20
    again.close()


def test_the_newest_and_the_marked_are_kept(tmp_path):
    checkpoints = saved(tmp_path, steps=(10, 20, 30, 40, 50), keep=2, mark=20)
    assert checkpoints.steps == [20, 40, 50]
    checkpoints.close()


# Orbax's reading of damaged data leaves a callback behind that finds its event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [
        lambda step: flip(step / "state", "d/*"),
        lambda step: flip(step / "about", "metadata"),
        lambda step: [p.unlink() for p in (step / "state").rglob("manifest.ocdbt")],
        lambda step: [p.write_bytes(b"") for p in step.rglob("*") if p.is_file()],
        lambda step: [p.unlink() for p in step.rglob("*") if p.is_file()],
    ],
    ids=["data", "description", "manifest", "emptied", "gone"],
)
def test_a_damaged_newest_falls_back_and_names_both(tmp_path, damage):
    saved(tmp_path).close()
    damage(tmp_path / "group" / "30")
    checkpoints = Checkpoints(tmp_path / "group")
    with pytest.warns(RuntimeWarning, match=r"step 30: .*step 20"):
        assert checkpoints.restore().step == 20
    checkpoints.close()


def test_a_flipped_bit_is_named_by_its_leaf(tmp_path, monkeypatch):
    # Compressed data cannot be flipped without notice: what is not compressed can.
    checkpoints = saved(tmp_path, steps=(10,))
    leaves = checkpoints.restore().leaves
    (rotting,) = [leaf for name, leaf in leaves.items() if "weights" in name]

    def bit_rot(array, digest):
        rotten = np.array(array)
        if np.array_equal(rotten, rotting):
            rotten.view(np.uint8)[0, 0] ^= 1
        return is_intact(rotten, digest)

    monkeypatch.setattr("ici.engine.checkpoint.is_intact", bit_rot)
    with pytest.raises(InputError, match=r"step 10: .*weights.* does not match.*--restart"):
        checkpoints.restore()
    checkpoints.close()


def test_all_damaged_is_refused(tmp_path):
    saved(tmp_path).close()
    for step in (10, 20, 30):
        flip(tmp_path / "group" / str(step) / "about", "metadata")
    checkpoints = Checkpoints(tmp_path / "group")
    with pytest.raises(InputError, match=r"every checkpoint.*step 30.*step 10.*--restart"):
        checkpoints.restore()
    checkpoints.close()


def test_nothing_saved_is_nothing_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "group")
    assert checkpoints.restore() is None
    checkpoints.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaves: leaves.pop(next(iter(leaves))), "other leaves"),
        (lambda leaves: leaves.update({k: v.astype("f8") for k, v in leaves.items()}), "float64"),
        (lambda leaves: leaves.update({k: v[..., :1] for k, v in leaves.items()}), "wants"),
    ],
)
def test_another_models_state_is_not_cast(change, message):
    leaves = {"['w']": np.zeros((3, 4), np.float32), "['v']": np.zeros((3, 4), np.float32)}
    change(leaves)
    with pytest.raises(DamagedError, match=message):
        with_leaves({"w": jnp.zeros((3, 4)), "v": jnp.zeros((3, 4))}, leaves)


def test_a_digest_sees_types_shapes_and_names():
    zeros = np.zeros((2, 3), np.float32)
    others = [{"a": zeros.reshape(3, 2)}, {"a": zeros.view(np.int32)}, {"b": zeros}, {"a": -zeros}]
    assert len({state_digest(leaves) for leaves in [{"a": zeros}, *others]}) == 5


def test_a_save_of_a_step_that_is_there_replaces_it(tmp_path):
    checkpoints = saved(tmp_path, steps=(10,))
    checkpoints.save(10, named_leaves(tree(3)), {})
    checkpoints.wait()
    np.testing.assert_array_equal(checkpoints.restore().leaves["['weights']"], tree(3)["weights"])
    checkpoints.close()


def test_cadence(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ici.engine.checkpoint.time.monotonic", lambda: now[0])
    each, auto = Checkpoints(tmp_path / "a", every_s=5), Checkpoints(tmp_path / "b")
    auto.cost_s = 3.0  # 2 % of 150 s
    seen = []
    for now[0] in (4.0, 6.0, 61.0, 149.0, 151.0):
        seen.append((each.due, auto.due))
    assert seen == [(False, False), (True, False), (True, False), (True, False), (True, True)]
    each.close()
    auto.close()


def test_a_step_counts_as_saved_once_it_is_on_disk(tmp_path):
    checkpoints = Checkpoints(tmp_path / "group", every_s=0)
    seen = []
    for step in (10, 20):
        checkpoints.save(step, named_leaves(tree(step)), {})
        seen.append(checkpoints.on_disk)
    checkpoints.wait()
    assert [*seen, checkpoints.on_disk] == [None, 10, 20]
    checkpoints.close()


def test_a_description_that_was_changed_is_noticed(tmp_path):
    """Rows are cut by it: it must be what was saved, although it reads well."""
    saved(tmp_path).close()
    for file in (tmp_path / "group" / "30" / "about").iterdir():
        file.write_text(file.read_text().replace('"rows": {"train": 30}', '"rows": {"train": 80}'))
    checkpoints = Checkpoints(tmp_path / "group")
    with pytest.warns(RuntimeWarning, match="step 30: .*description does not match"):
        assert checkpoints.restore().about == {"rows": {"train": 20}}
    checkpoints.close()


def test_a_leaf_in_parts_is_intact_where_all_its_parts_are():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    of = {"0:2,0:6": array[:2], "2:4,0:3": array[2:, :3], "2:4,3:6": array[2:, 3:]}
    parts = {where: digests({"part": part})["part"] for where, part in of.items()}
    assert is_intact(array, parts)
    assert not is_intact(array, {"0:2,0:6": parts["0:2,0:6"]})  # some of it was never saved
    array.view(np.uint8)[3, 20] ^= 1
    assert not is_intact(array, parts)
