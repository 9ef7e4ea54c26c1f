"""Tiny Shakespeare and lm1b from small archives in the original layout, over loopback."""

import io
import shutil
import socket
import sys
import tarfile
import time

import numpy as np
import pytest
from documents import one_line, texts_of

from ici.data import Lm1b, TinyShakespeare, resolve
from ici.data.cache import prepare as prepare_cached
from ici.data.cache import root
from ici.data.tfds_prepare import base_url_variable, locate, own_directory, prepare
from ici.data.token_rows import TokenRows
from ici.errors import InputError

NAMES = ("tiny_shakespeare", "lm1b")
ARCHIVE = "1-billion-word-language-modeling-benchmark-r13output"
PLAY = "".join(f"ACTOR {i}:\nCaf\u00e9 \U0001f600 speaks line {i}.\n\n" for i in range(40))
PLAY += "!" * 11
SENTENCES = {
    "train": [f"Sentence {i} , said the paper \u2014 na\u00efve ." for i in range(120)],
    "test": [f"Held out {i} ." for i in range(30)],
}


def write_archives(directory):
    directory.mkdir(parents=True)
    (directory / "input.txt").write_bytes(PLAY.encode())
    folders = {
        "train": "training-monolingual.tokenized.shuffled/news.en-{:05}-of-00100",
        "test": "heldout-monolingual.tokenized.shuffled/news.en.heldout-{:05}-of-00050",
    }
    with tarfile.open(directory / f"{ARCHIVE}.tar.gz", "w:gz") as tar:
        add(tar, f"{ARCHIVE}/README", b"no sentence")
        for split, rows in SENTENCES.items():
            for shard in range(2):
                lines = "".join(f"{row}\n" for row in rows[shard::2]).encode()
                add(tar, f"{ARCHIVE}/{folders[split].format(shard)}", lines)
    return directory


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def prepared_text(tmp_path_factory, serve):
    """Both data sets, downloaded from loopback and written by the real TFDS machinery."""
    pytest.importorskip("tensorflow_datasets")
    directory = tmp_path_factory.mktemp("prepared_text")
    files = write_archives(directory / "files")
    with pytest.MonkeyPatch.context() as monkeypatch, serve(files) as url:
        monkeypatch.setenv("ICI_DATA_DIR", str(directory / "ici"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in NAMES:
            monkeypatch.setenv(base_url_variable(name), url)
        return {name: prepare(name) for name in NAMES}


@pytest.fixture
def in_place(prepared_text):
    """Copies of both directories where the data sets look for them."""
    for name in NAMES:
        shutil.copytree(prepared_text[name], own_directory(name))
    return prepared_text


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_layout_is_that_of_tfds(prepared_text):
    import tensorflow_datasets as tfds

    assert prepared_text["tiny_shakespeare"].parts[-2:] == ("tiny_shakespeare", "1.0.0")
    assert prepared_text["lm1b"].parts[-2:] == ("lm1b", "1.1.0")
    for name, splits, keys in (
        ("tiny_shakespeare", {"train": 1, "validation": 1, "test": 1}, None),
        ("lm1b", {"train": 120, "test": 30}, ("text", "text")),
    ):
        info = tfds.builder_from_directory(prepared_text[name]).info
        assert {split: part.num_examples for split, part in info.splits.items()} == splits
        assert info.supervised_keys == keys
        assert isinstance(info.features["text"], tfds.features.Text)


def test_nothing_here_loads_tensorflow(prepared_text):
    assert "tensorflow" not in sys.modules


def test_shakespeare_is_cut_by_characters(in_place):
    dataset = TinyShakespeare(sequence_length=64).load()
    texts = texts_of(dataset)
    assert [len(part) for part in texts.values()] == [1, 1, 1]
    n = len(PLAY)
    first, second = int(n * 0.9), int((n - int(n * 0.9)) * 0.5)
    assert second != int(n * 0.05)  # the length is such that the rounding shows
    assert texts["train"][0] == PLAY[:first]
    assert texts["validation"][0] == PLAY[first : first + second]
    assert texts["test"][0] == PLAY[first + second :]
    assert (dataset.task, dataset.vocab_size) == ("language_model", 258)


def test_every_sentence_of_lm1b_is_a_document(in_place):
    dataset = Lm1b("bytes", sequence_length=32).load()
    texts = texts_of(dataset)
    assert sorted(texts["train"]) == sorted(SENTENCES["train"])
    assert sorted(texts["validation"] + texts["test"]) == sorted(SENTENCES["test"])
    assert len(texts["validation"]) == len(texts["test"]) == 15


def test_fewer_held_out_sentences(in_place):
    seen = [texts_of(Lm1b("bytes", held_out=4, split_seed=seed).load()) for seed in (0, 0, 1)]
    assert [len(part) for part in seen[0].values()] == [120, 4, 4]
    assert not set(seen[0]["validation"]) & set(seen[0]["test"])
    assert seen[0] == seen[1]
    assert seen[0]["validation"] != seen[2]["validation"]


def test_lm1b_streams_what_it_holds_in_memory(in_place):
    pytest.importorskip("tokenizers")
    settings = {"vocab_size": 290, "sequence_length": 16}
    streamed, memory = (Lm1b(stream=stream, **settings).load() for stream in (True, False))
    assert isinstance(streamed.train, TokenRows)
    assert streamed.vocabulary == memory.vocabulary
    every = np.arange(len(memory.train))
    for seen, wanted in zip(streamed.train.take(every), memory.train.take(every), strict=True):
        np.testing.assert_array_equal(seen, wanted)


def test_records_are_read_in_batches(in_place, monkeypatch):
    before = Lm1b("bytes").load()
    monkeypatch.setattr("ici.data.language_tfds._BATCH", 7)
    assert Lm1b("bytes", sequence_length=255).load().notes != before.notes
    shutil.rmtree(root() / "prepared")
    assert Lm1b("bytes").load().digest == before.digest


def test_a_directory_of_tfds_itself_is_used(prepared_text, tmp_path):
    stock = tmp_path / "stock" / "lm1b" / "1.1.0"
    shutil.copytree(prepared_text["lm1b"], stock)
    assert locate("lm1b") == stock
    assert len(texts_of(Lm1b("bytes").load())["train"]) == 120


@pytest.mark.parametrize("name", NAMES)
def test_the_cached_tokens_need_no_directory(in_place, name):
    config = resolve(f"{name}/bytes")
    before = config.load().digest
    shutil.rmtree(own_directory(name))
    assert config.load().digest == before


@pytest.mark.parametrize(
    ("name", "archive", "directory"),
    [
        ("tiny_shakespeare", "input.txt", "tfds/tiny_shakespeare/1.0.0"),
        ("lm1b", f"{ARCHIVE}.tar.gz", "tfds/lm1b/1.1.0"),
    ],
)
def test_without_network_the_choices_are_told_fast(no_network, data_dir, name, archive, directory):
    pytest.importorskip("tokenizers")
    start_s = time.monotonic()
    with pytest.raises(InputError, match="cannot be downloaded.*prepare it elsewhere") as error:
        resolve(name).load()
    assert time.monotonic() - start_s < 10
    for part in (archive, f"copy the directory to {data_dir / directory}", base_url_variable(name)):
        assert part in one_line(error)
    assert not data_dir.exists()


def test_the_published_checksums_cover_the_archives():
    from ici.data.tfds_text_builders import TEXT_BUILDERS

    for builder in TEXT_BUILDERS.values():
        (name,) = builder.ARCHIVES
        known = builder.url_infos[builder.BASE_URL + name]
        assert (known.filename, len(known.checksum)) == (name, 64)


def cut_archive(directory):
    path = directory / f"{ARCHIVE}.tar.gz"
    path.write_bytes(path.read_bytes()[:-100])


def foreign_archive(directory):
    with tarfile.open(directory / f"{ARCHIVE}.tar.gz", "w:gz") as tar:
        add(tar, f"{ARCHIVE}/news.en-00000-of-00100", b"elsewhere")


def sentence_in_latin1(directory):
    with tarfile.open(directory / f"{ARCHIVE}.tar.gz", "w:gz") as tar:
        folder = f"{ARCHIVE}/training-monolingual.tokenized.shuffled"
        add(tar, f"{folder}/news.en-00000-of-00100", b"caf\xe9\n")


def play_in_latin1(directory):
    (directory / "input.txt").write_bytes(b"x" * 100 + b"\xe9 ")


def no_play(directory):
    (directory / "input.txt").write_bytes(b"404")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("lm1b", cut_archive, "is damaged"),
        ("lm1b", foreign_archive, "holds no sentences in training-"),
        ("lm1b", sentence_in_latin1, "can't decode byte 0xe9"),
        ("tiny_shakespeare", play_in_latin1, "no UTF-8 at byte 100"),
        ("tiny_shakespeare", no_play, "holds 3 characters"),
    ],
)
def test_damaged_downloads_are_named_and_leave_no_directory(
    serve, monkeypatch, tmp_path, name, damage, message
):
    files = write_archives(tmp_path / "files")
    damage(files)
    with serve(files) as url:
        monkeypatch.setenv(base_url_variable(name), url)
        with pytest.raises(InputError, match=message) as error:
            resolve(f"{name}/bytes").load()
    assert "delete it and prepare again" in one_line(error)
    assert list((root() / "tfds").rglob("dataset_info.json")) == []
    assert not (root() / "prepared").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # in the header of the first records, which only reading them reveals
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def swap_for_the_shorter_split(path):
    shutil.copyfile(path.with_name(path.name.replace("train", "test")), path)


@pytest.mark.parametrize(
    "damage", [flip, cut, lambda path: path.unlink(), swap_for_the_shorter_split]
)
def test_a_damaged_shard_is_named_and_a_rebuild_mends_it(
    in_place, serve, monkeypatch, tmp_path, damage
):
    expected = Lm1b("bytes").load().digest
    shutil.rmtree(root() / "prepared")
    shard = own_directory("lm1b") / "lm1b-train.array_record-00000-of-00001"
    damage(shard)
    with pytest.raises(InputError, match="damaged or missing .*prepare lm1b --rebuild") as error:
        Lm1b("bytes").load()
    assert str(shard) in one_line(error)
    assert list(root().glob("prepared/*")) == []
    with serve(write_archives(tmp_path / "files")) as url:
        monkeypatch.setenv(base_url_variable("lm1b"), url)
        prepare_cached(Lm1b("bytes"), rebuild=True)
    assert Lm1b("bytes").load().digest == expected


def test_a_shard_with_more_records_than_listed_is_named(in_place):
    shards = {s: f"lm1b-{s}.array_record-00000-of-00001" for s in SENTENCES}
    directory = own_directory("lm1b")
    shutil.copyfile(directory / shards["train"], directory / shards["test"])
    with pytest.raises(InputError, match="120 records where 30 are listed"):
        Lm1b("bytes").load()


def test_a_directory_without_the_wanted_split_is_refused(write_tfds, tmp_path):
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text()}
    made = write_tfds(tmp_path / "t", features, {"train": [{"text": "x"}]})
    shutil.copytree(made, own_directory("lm1b"))
    with pytest.raises(InputError, match="has the splits train: wanted test"):
        Lm1b("bytes").load()


def test_a_directory_without_text_is_refused(write_tfds, tmp_path):
    import tensorflow_datasets as tfds

    features = {"label": tfds.features.Scalar(dtype=np.int64)}
    made = write_tfds(tmp_path / "t", features, {"train": [{"label": 1}], "test": [{"label": 1}]})
    shutil.copytree(made, own_directory("lm1b"))
    with pytest.raises(InputError, match="has the features label: wanted text"):
        Lm1b("bytes").load()
