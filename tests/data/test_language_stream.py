"""A training split on disk: the same examples as in memory, whole or not there at all."""

import errno
import json
import os
import pickle
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ici.data.language
from ici.data import TextFiles, commands
from ici.data.cache import ARRAYS, MANIFEST, entry_path, new_part, prepare, root
from ici.data.packing import pack
from ici.data.token_rows import STARTS, TOKENS, TokenRows, TokenWriter
from ici.errors import InputError

PACKINGS = ("concatenate", "whole_documents")


@pytest.fixture
def texts(tmp_path):
    top = tmp_path / "texts"
    top.mkdir()
    for i in range(60):
        (top / f"{i}.txt").write_text(f"document {i} " + "long " * (i % 9), "utf-8")
    return str(top)


def config(texts, stream=True, packing="concatenate", length=16):
    return TextFiles(texts, "bytes", sequence_length=length, packing=packing, stream=stream)


def entries():
    directory = root() / "prepared"
    return sorted(p.name for p in directory.iterdir()) if directory.exists() else []


@pytest.mark.parametrize("packing", PACKINGS)
def test_streamed_and_in_memory_give_the_same_examples(texts, packing):
    streamed = config(texts, True, packing).load()
    memory = config(texts, False, packing).load()
    assert isinstance(streamed.train, TokenRows)
    assert len(streamed.train) == len(memory.train) > 30
    assert streamed.train.example_shape == memory.train.example_shape
    assert (streamed.train.dtype, streamed.train.n_bytes) == (
        memory.train.dtype,
        memory.train.n_bytes,
    )
    assert streamed.validation.digest == memory.validation.digest
    assert streamed.vocabulary == memory.vocabulary
    assert streamed.notes == memory.notes
    n = len(memory.train)
    every = np.random.default_rng(0).permutation(n)
    for indices in (every, every[: n - n % 4].reshape(4, -1), np.array(n - 1), np.array([-1, -n])):
        for seen, wanted in zip(
            streamed.train.take(indices), memory.train.take(indices), strict=True
        ):
            assert seen.dtype == wanted.dtype
            np.testing.assert_array_equal(seen, wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(2, 70_000), max_size=9), min_size=1, max_size=9),
    st.integers(2, 7),
    st.sampled_from(PACKINGS),
    st.sampled_from([300, 70_001]),
    st.integers(1, 20),
)
def test_any_documents(tmp_path_factory, documents, length, packing, vocab_size, chunk):
    directory = tmp_path_factory.mktemp("rows")
    arrays = [np.array(d, np.int32) % vocab_size for d in documents]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ici.data.token_rows._CHUNK_TOKENS", chunk)
        with TokenWriter(lambda: directory, vocab_size, True, 0) as writer:
            writer.extend(arrays)
            seen = writer.finish(length, packing)
        assert isinstance(seen, TokenRows)
        wanted = pack(arrays, length, packing)
        for part, expected in zip(seen.take(np.arange(len(seen))), wanted, strict=True):
            np.testing.assert_array_equal(part, expected)
        assert seen.n_tokens == writer.n_tokens == sum(1 + len(d) for d in documents)
        assert seen.n_documents == int((np.concatenate(arrays) == 1).sum()) + len(documents)
    shutil.rmtree(directory)


def test_the_size_decides_where_nothing_is_said(texts, monkeypatch):
    in_memory = config(texts, None, length=17).load()
    assert not isinstance(in_memory.train, TokenRows)
    monkeypatch.setattr(ici.data.language, "IN_MEMORY_BYTES", in_memory.train.n_bytes - 1000)
    assert isinstance(config(texts, None, length=18).load().train, TokenRows)


def test_it_is_read_back_from_where_it_is_kept(texts):
    built = config(texts).load()
    read = config(texts).load()
    assert isinstance(built.train, TokenRows) and isinstance(read.train, TokenRows)
    assert read.train.directory == built.train.directory == entry_path(config(texts))
    assert read.digest == built.digest
    assert entries() == [entry_path(config(texts)).name]
    manifest = json.loads((entry_path(config(texts)) / MANIFEST).read_text())
    assert manifest["files"].keys() == {ARRAYS, TOKENS}
    other = config(texts, packing="whole_documents").load()
    assert (entry_path(config(texts, packing="whole_documents")) / STARTS).exists()
    assert other.digest != built.digest


def test_other_rows_of_the_same_tokens_have_another_digest(texts):
    assert config(texts).load().train.digest != config(texts, length=8).load().train.digest


def test_indices_outside_are_refused_as_an_array_does(texts):
    for packing in PACKINGS:
        rows = config(texts, packing=packing).load().train
        for index in (len(rows), -len(rows) - 1):
            with pytest.raises(IndexError):
                rows.take(np.array([0, index]))


def test_another_process_may_have_the_rows(texts):
    for packing in PACKINGS:
        rows = config(texts, packing=packing).load().train
        copy = pickle.loads(pickle.dumps(rows))
        assert copy.digest == rows.digest
        np.testing.assert_array_equal(copy.take(np.arange(3))[0], rows.take(np.arange(3))[0])
        assert len(pickle.dumps(rows)) < 2000


def test_prepare_and_show(texts, monkeypatch):
    monkeypatch.setattr("ici.data.commands.resolve", lambda spec: config(texts))
    assert commands.prepare("text_files:x") == entry_path(config(texts))
    facts = commands.show("text_files:x")
    assert json.loads(json.dumps(facts)) == facts
    memory = config(texts, False).load()
    part = facts["splits"]["train"]
    assert part["streamed"] and part["size"] == part["size_of_sample"] == len(memory.train)
    assert part["tokens"] == int((memory.train.inputs != 0).sum())
    assert facts["examples"][0]["text"] == memory.decode(memory.train.inputs[0])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("name", [TOKENS, STARTS, ARRAYS])
@pytest.mark.parametrize("damage", [flip, cut, os.remove])
def test_damage_names_the_file_and_the_command_that_mends_it(texts, name, damage):
    broken = config(texts, packing="whole_documents")
    before = broken.load().digest
    damage(entry_path(broken) / name)
    with pytest.raises(InputError, match=r"damaged.*run: ici data prepare text_files:.* --rebuild"):
        broken.load()
    prepare(broken, rebuild=True)
    assert broken.load().digest == before
    assert entries() == [entry_path(broken).name]


def test_an_unwritable_directory_is_told_for_streamed_data(texts, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICI_DATA_DIR", str(tmp_path / "file" / "ici"))
    with pytest.raises(InputError, match="cannot write prepared data.*set ICI_DATA_DIR"):
        config(texts).load()
    with pytest.warns(RuntimeWarning, match="going on in memory"):
        config(texts, False).load()


@pytest.mark.parametrize("at", range(1, 6))
def test_a_full_disk_leaves_nothing_behind(texts, monkeypatch, at):
    calls = iter(range(1, 9))

    def fsync(descriptor):
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match="No space left.*set ICI_DATA_DIR") as error:
        config(texts, packing="whole_documents").load()
    assert "\n" not in str(error.value)
    assert entries() == []


def test_text_that_goes_bad_on_the_way_leaves_nothing_behind(texts, monkeypatch):
    monkeypatch.setattr("ici.data.token_rows._CHUNK_TOKENS", 50)
    calls = iter(range(1000))
    read = TextFiles._documents

    def fails_late(self):
        is_last = next(calls) == 3
        for i, text in enumerate(read(self)):
            if is_last and i == 40:
                raise InputError("gone bad")
            yield text

    monkeypatch.setattr(TextFiles, "_documents", fails_late)
    made = []
    monkeypatch.setattr(ici.data.language, "new_part", lambda: made.append(new_part()) or made[-1])
    with pytest.raises(InputError, match="gone bad"):
        config(texts).load()
    assert len(made) == 1
    assert entries() == []


def test_too_few_tokens_leave_nothing_behind(texts):
    with pytest.raises(InputError, match="wanted at least one sequence"):
        config(texts, length=100_000).load()
    assert entries() == []


def test_the_slower_of_two_takes_the_copy_of_the_faster(texts, monkeypatch):
    build = TextFiles.build

    def build_while_another_finishes(self, refresh=False):
        monkeypatch.setattr(TextFiles, "build", build)
        self.load()
        return build(self)

    monkeypatch.setattr(TextFiles, "build", build_while_another_finishes)
    rows = config(texts).load().train
    assert isinstance(rows, TokenRows)
    assert rows.directory == entry_path(config(texts))
    assert len(rows.take(np.arange(4))[0]) == 4
    assert entries() == [entry_path(config(texts)).name]


def test_the_litter_of_a_killed_writer_goes_after_a_day(texts):
    litter, young = new_part(), new_part()
    (litter / TOKENS).write_text("half")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(litter, (long_ago, long_ago))
    config(texts).load()
    assert entries() == [young.name, entry_path(config(texts)).name]


def test_a_file_that_is_no_array_is_named(tmp_path):
    (tmp_path / TOKENS).write_bytes(b"no array")
    with pytest.raises(InputError, match="train_tokens.npy"):
        TokenRows(tmp_path, 8, {TOKENS: ""})
