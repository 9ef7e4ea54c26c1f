"""One way to name, read and write files, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from ici.errors import InputError
from ici.store.places import (
    RemotePath,
    check_local,
    check_writable,
    checkpoint_folder,
    free_bytes,
    n_bytes,
    place,
    remove,
    stamp,
    whole,
    write_whole,
)


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return tmp_path / "run"
    return (
        place(request.getfixturevalue({"s3": "bucket"}.get(request.param, request.param))) / "run"
    )


@pytest.mark.parametrize(
    ("named", "is_remote", "text"),
    [
        ("runs/movies", False, "runs/movies"),
        (Path("runs/movies"), False, "runs/movies"),
        ("file:///runs/my%20movies", False, "/runs/my movies"),
        ("memory://a/b/", True, "memory://a/b"),
        (Path("memory://a/b"), True, "memory://a/b"),
        ("memory:/a", True, "memory://a"),
        ("C:/runs", False, "C:/runs"),
        ("with: colon", False, "with: colon"),
    ],
)
def test_what_a_user_names(named, is_remote, text):
    found = place(named)
    assert isinstance(found, RemotePath) == is_remote
    assert str(found) == text and place(found) == found


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nonsense://a/b", "scheme 'nonsense'.*fsspec does not know"),
        ("memory://", "names no place"),
    ],
)
def test_what_is_no_place_is_told_in_one_line(named, message):
    with pytest.raises(InputError, match=message) as caught:
        place(named)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_told_with_what_to_install(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.filesystem", missing)
    with pytest.raises(InputError, match=r"pip install 'ici-instrument\[s3\]'"):
        place("s3://bucket/run")


def test_names_join_as_paths_do():
    path = place("memory://a/b") / "c" / "records/d.txt"
    assert str(path) == "memory://a/b/c/records/d.txt"
    assert (path.name, path.suffix, str(path.parent)) == ("d.txt", ".txt", "memory://a/b/c/records")
    assert str(path.with_name("e")) == "memory://a/b/c/records/e"
    assert path == place(str(path)) and hash(path) == hash(place(str(path)))
    with pytest.raises(TypeError):
        Path(path)  # never by accident a local file of this name


def test_files_come_and_go(folder):
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "some.txt"
    assert not file.exists() and stamp(file) is None
    with pytest.raises(FileNotFoundError):
        file.read_text()
    write_whole(file, "älter")
    assert file.read_text(encoding="utf-8") == "älter" and file.is_file() and not file.is_dir()
    assert folder.is_dir() and not folder.is_file() and n_bytes(file) == 6
    first = stamp(file)
    assert first == stamp(file)
    write_whole(file, "newer!!")
    assert stamp(file) != first
    with whole(folder / "big.bin") as part:
        part.write_bytes(b"123")
        assert not (folder / "big.bin").exists()
    assert (folder / "big.bin").read_bytes() == b"123"
    (folder / "below").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "below" / "x", "x")
    assert sorted(path.name for path in folder.iterdir()) == ["below", "big.bin", "some.txt"]
    (folder / "big.bin").unlink()
    (folder / "big.bin").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "nothing").read_text()
    remove(folder)
    assert not file.exists() and not (folder / "below" / "x").exists()
    remove(folder)


def test_what_fails_halfway_leaves_the_old_file(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "a", "old")
    with pytest.raises(RuntimeError), whole(folder / "a") as part:
        part.write_text("half")
        raise RuntimeError
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_another_process_wrote_is_seen(bucket):
    from botocore.session import Session

    folder = place(bucket) / "run"
    write_whole(folder / "mine", "1")
    assert [path.name for path in folder.iterdir()] == ["mine"]
    client = Session().create_client("s3")
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="run/theirs", Body=b"22")
    client.close()
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "theirs"]
    assert (folder / "theirs").exists() and n_bytes(folder / "theirs") == 2


@pytest.mark.parametrize("store", ["memory", "bucket"])
def test_a_file_is_created_once(store, request):
    new = place(request.getfixturevalue(store)) / "new"
    assert new.create("1") is True and new.create("2") is False
    assert new.read_text() == "1"


def test_space_is_known_of_disks_only(tmp_path, memory):
    assert free_bytes(tmp_path / "not" / "yet") > 0
    assert free_bytes(place(memory)) is None


def test_a_bucket_that_is_not_there_is_told(bucket):
    with pytest.raises(InputError, match="cannot write to s3://no-such-bucket/run"):
        check_writable(place("s3://no-such-bucket/run"))


def test_what_wants_a_folder_says_so(tmp_path, memory):
    assert check_local(tmp_path, "this") == tmp_path
    with pytest.raises(InputError, match="this cannot be written to memory://place"):
        check_local(place(memory), "this")


def test_checkpoints_go_where_orbax_writes(tmp_path, memory, bucket):
    assert checkpoint_folder(tmp_path) == tmp_path
    for remote in (memory, bucket):
        with pytest.raises(InputError, match="folders and gs:// only"):
            checkpoint_folder(place(remote))
