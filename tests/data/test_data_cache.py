import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

import ici.data.registry
from ici.data import Dataset, Split, register
from ici.data.cache import ARRAYS, MANIFEST, CachedData, entry_path, is_prepared, prepare, root
from ici.data.registry import _REGISTRY
from ici.errors import InputError

builds: list[bool] = []


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(ici.data.registry, "_REGISTRY", dict(_REGISTRY))
    builds.clear()

    @register("counted")
    @dataclass(frozen=True)
    class Counted(CachedData):
        size: int = 6

        def build(self, refresh=False):
            builds.append(refresh)
            tokens = np.full((self.size, 3), 2)
            split = Split(tokens, np.arange(self.size) % 2)
            words = ("<pad>", "<unk>", "caf\u00e9 \u2028")
            return Dataset("c", split, split, split, 2, "tokens", 3, words, notes="some prose")

    return Counted()


def parts():
    return list(root().rglob(".part-*"))


def test_built_once_and_read_back_whole(config):
    assert not is_prepared(config)
    built = config.load()
    assert is_prepared(config)
    read = config.load()
    assert builds == [False]
    assert read.digest == built.digest
    assert (read.name, read.vocabulary, read.notes) == (built.name, built.vocabulary, built.notes)
    assert read.train.inputs.dtype == np.int32
    assert parts() == []


def test_every_setting_has_its_own_entry(config):
    other = type(config)(size=8)
    assert len(config.load().train) == 6
    assert len(other.load().train) == 8
    assert len(config.load().train) == 6
    assert builds == [False, False]


def test_a_new_revision_or_source_is_built_again(config, monkeypatch):
    config.load()
    monkeypatch.setattr(type(config), "revision", 2)
    config.load()
    monkeypatch.setattr(type(config), "source_stamp", lambda self: {"bytes": 9})
    config.load()
    assert builds == [False] * 3


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def empty(path):
    path.write_bytes(b"")


def edit(path):
    path.write_text(path.read_text().replace("some prose", "other prose"))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (ARRAYS, flip),
        (ARRAYS, cut),
        (ARRAYS, empty),
        (ARRAYS, os.remove),
        (MANIFEST, cut),
        (MANIFEST, empty),
        (MANIFEST, edit),
        (MANIFEST, os.remove),
    ],
)
def test_damage_names_the_file_and_the_command_that_mends_it(config, name, damage):
    before = config.load().digest
    path = entry_path(config) / name
    damage(path)
    with pytest.raises(InputError, match="run: ici data prepare counted --rebuild$") as error:
        config.load()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="--rebuild"):
        prepare(config)
    assert builds == [False]
    assert prepare(config, rebuild=True) == entry_path(config)
    assert builds == [False, True]
    assert config.load().digest == before
    assert parts() == []


def test_any_flipped_bit_of_the_manifest_is_noticed(config):
    config.load()
    path = entry_path(config) / MANIFEST
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="damaged"):
            config.load()


def test_a_pickle_in_the_arrays_is_not_loaded(config):
    config.load()
    entry = entry_path(config)
    bad = np.array([{"a": 1}], dtype=object)
    np.savez(entry / ARRAYS, train_inputs=bad)
    with pytest.raises(InputError, match="checksum"):
        config.load()


def test_rebuild_mends_the_other_settings_too(config):
    other = type(config)(size=8)
    other.load()
    flip(entry_path(other) / ARRAYS)
    with pytest.raises(InputError, match="ici data prepare counted/8 --rebuild"):
        other.load()
    prepare(config, rebuild=True)
    assert len(other.load().train) == 8


def test_rebuild_leaves_longer_names_alone(config):
    config.load()
    other = root() / "prepared" / "counted-not-0123456789abcdef"
    other.mkdir()
    prepare(config, rebuild=True)
    assert other.exists()


def test_prepare_builds_once(config):
    assert prepare(config) == prepare(config) == entry_path(config)
    assert builds == [False]


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """A cache directory that cannot be: below a file, which stops even the superuser."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICI_DATA_DIR", str(tmp_path / "file" / "ici"))


def test_an_unwritable_directory_is_a_warning_and_no_obstacle(config, read_only):
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="going on in memory; set ICI_DATA_DIR"):
            assert len(config.load().train) == 6
    assert builds == [False, False]
    assert not is_prepared(config)


def test_prepare_in_an_unwritable_directory_says_so(config, read_only):
    with pytest.raises(InputError, match=r"cannot write .*GB free\): set ICI_DATA_DIR"):
        prepare(config)


def disk_full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_behind(config, monkeypatch):
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert len(config.load().train) == 6
    assert list((root() / "prepared").iterdir()) == []


def test_a_failed_rebuild_keeps_what_was_there(config, monkeypatch):
    config.load()
    monkeypatch.setattr(type(config), "build", lambda self, refresh: disk_full())
    with pytest.raises(OSError, match="No space"):
        prepare(config, rebuild=True)
    assert len(config.load().train) == 6


def test_a_disk_that_fills_up_during_a_rebuild_keeps_what_was_there(config, monkeypatch):
    config.load()
    with monkeypatch.context() as patch, pytest.raises(InputError, match="No space left"):
        patch.setattr(os, "fsync", disk_full)
        prepare(config, rebuild=True)
    assert len(config.load().train) == 6
    assert parts() == []


def test_the_slower_of_two_takes_the_copy_of_the_faster(config, monkeypatch):
    def build_while_another_finishes(self, refresh=False):
        monkeypatch.setattr(type(self), "build", build)
        self.load()
        return build(self)

    build = type(config).build
    monkeypatch.setattr(type(config), "build", build_while_another_finishes)
    assert len(config.load().train) == 6
    assert builds == [False, False]
    assert len(list((root() / "prepared").iterdir())) == 1


def run(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.multiprocess
def test_two_processes_at_once_end_with_the_same_data(data_dir):
    code = "import ici.data; print(ici.data.resolve('digits').load().digest)"
    processes = [run(code) for _ in range(2)]
    digests = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(digests[0]) == 65
    assert digests[0] == digests[1]
    assert len(list((data_dir / "prepared").iterdir())) == 1


WRITER = """
import os, sys
from dataclasses import dataclass
import numpy as np
from ici.data import Dataset, Split, register
from ici.data.cache import CachedData

def fsync(descriptor, calls=iter(range(1, 9))):
    if next(calls) == int(sys.argv[1]):
        os._exit(9)

@register("written")
@dataclass(frozen=True)
class Written(CachedData):
    def build(self, refresh=False):
        split = Split(np.ones((5, 2)), np.arange(5) % 2)
        return Dataset("w", split, split, split, 2, "vectors")

os.fsync = fsync
print(len(Written().load().train))
"""


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4])
def test_a_killed_writer_leaves_no_entry_or_a_whole_one(data_dir, kill_at):
    # os._exit is as abrupt as SIGKILL: no handler runs. The fourth fsync follows the renaming.
    killed = run(WRITER, str(kill_at))
    killed.communicate(timeout=60)
    assert killed.returncode == 9
    (left,) = (data_dir / "prepared").iterdir()
    assert left.name.startswith(".part-") == (kill_at < 4)
    assert run(WRITER, "0").communicate(timeout=60)[0].strip() == "5"
    assert len(list((data_dir / "prepared").glob("written-*"))) == 1


def test_the_litter_of_a_killed_writer_goes_after_a_day(config):
    litter = root() / "prepared" / ".part-0"
    litter.mkdir(parents=True)
    (litter / ARRAYS).write_text("half")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(litter, (long_ago, long_ago))
    config.load()
    assert parts() == []


def test_the_young_part_of_a_living_writer_is_left_alone(config):
    young = root() / "prepared" / ".part-0"
    young.mkdir(parents=True)
    config.load()
    assert young.exists()


def test_the_manifest_says_what_is_there(config):
    config.load()
    manifest = json.loads((entry_path(config) / MANIFEST).read_text())
    assert manifest["config"] == {"data": "counted", "size": 6}
    assert manifest["schema"] == 2
    assert manifest["files"].keys() == {ARRAYS}


def test_the_directory_is_a_dial(monkeypatch, tmp_path):
    monkeypatch.setenv("ICI_DATA_DIR", str(tmp_path / "with space \u00fc"))
    assert root() == tmp_path / "with space \u00fc"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ICI_DATA_DIR")
    assert root() == tmp_path / "home" / ".cache" / "ici"
    monkeypatch.setenv("ICI_DATA_DIR", "~/data")
    assert root() == tmp_path / "home" / "data"


def test_odd_paths_work(config, monkeypatch, tmp_path):
    monkeypatch.setenv("ICI_DATA_DIR", str(tmp_path / "with space \u00fc [1]*"))
    config.load()
    assert prepare(config, rebuild=True).exists()
    assert builds == [False, True]
