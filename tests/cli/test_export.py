"""``ici export``: files that read back as the tables, are whole, and know when they are not."""

from __future__ import annotations

import gzip
import importlib.util
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tabled import tabled

import ici.analysis.parts
from ici.analysis.columns import UNKNOWN, column
from ici.analysis.tables import table, tables_of
from ici.cli import main
from ici.store.lock import sole_writer
from ici.store.manifest import MANIFEST
from ici.store.results import Results, open_results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return tabled(tmp_path_factory.mktemp("export") / "record")


def test_parquet_reads_back_the_same(results, tmp_path, capsys):
    names = ("runs", "train", "probe", "spikes")
    assert main(["export", str(results.path), "--to", str(tmp_path), "--tables", *names]) == 0
    out = capsys.readouterr().out
    for name in names:
        path = tmp_path / f"{name}.parquet"
        read, wanted = pd.read_parquet(path), table(results, name)
        assert len(read) == len(wanted)
        for each in wanted:
            if wanted[each].dtype != "category":
                pd.testing.assert_series_equal(read[each], wanted[each], check_exact=True)
            else:
                assert read[each].astype(object).fillna("-").tolist() == (
                    wanted[each].astype(object).fillna("-").tolist()
                )
        assert f"{path}: {len(read):,} rows, {path.stat().st_size:,} bytes" in out


def test_a_file_says_where_it_comes_from(results, tmp_path):
    main(["export", str(results.path), "--to", str(tmp_path), "--tables", "reference"])
    about = pq.read_schema(tmp_path / "reference.parquet").metadata
    assert about is not None
    assert json.loads(about[b"ici.experiment"]) == results.experiment
    assert (
        about[b"ici.fingerprint"] == b"print" and about[b"ici.version"].decode() == ici.__version__
    )
    units = json.loads(about[b"ici.units"])
    assert list(units) == list(table(results, "reference").columns)
    assert units["mean_p50"] == "units of x" and units["step"] == "steps"


def test_csv_has_the_same_numbers(results, tmp_path):
    words = ["export", str(results.path), "--to", str(tmp_path), "--format", "csv"]
    assert main([*words, "--tables", "train", "probe", "--features"]) == 0
    for name in ("train", "probe"):
        wanted = table(results, name, features=True)
        numbers = {n: t for n, t in wanted.dtypes.items() if t == np.float32}
        read = pd.read_csv(tmp_path / f"{name}.csv", dtype=numbers)
        assert list(read.columns) == list(wanted.columns) and len(read) == len(wanted)
        for each in wanted:
            if each in numbers:
                np.testing.assert_array_equal(read[each].to_numpy(), wanted[each].to_numpy())
            else:
                assert read[each].tolist() == wanted[each].tolist()


def test_zipped_csv_is_the_csv(results, tmp_path, capsys):
    words = [
        "export",
        str(results.path),
        "--to",
        str(tmp_path),
        "--tables",
        "reference",
        "--format",
    ]
    assert main([*words, "csv"]) == main([*words, "csv.gz"]) == 0
    plain, zipped = tmp_path / "reference.csv", tmp_path / "reference.csv.gz"
    assert gzip.decompress(zipped.read_bytes()) == plain.read_bytes()
    assert f"{zipped}: " in capsys.readouterr().out
    assert zipped.stat().st_size < plain.stat().st_size


def test_parquet_without_pyarrow_is_told_before_anything_is_written(
    results, tmp_path, capsys, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    words = ["export", str(results.path), "--to", str(tmp_path / "to"), "--tables", "runs"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "pip install pyarrow" in err and err.count("\n") == 1
    assert not (tmp_path / "to").exists()
    assert main([*words, "--format", "csv"]) == 0


def test_by_default_all_but_the_probed_steps_next_to_the_record(tmp_path):
    results = tabled(tmp_path)
    assert main(["export", str(tmp_path)]) == 0
    wanted = {f"{name}.parquet" for name in tables_of(results) if name != "probe"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == wanted
    assert open_results(tmp_path).train.equals(results.train)


def test_parts_make_the_same_files(results, tmp_path, monkeypatch):
    names = ["runs", "train", "attribution"]
    words = ["export", str(results.path), "--tables", *names, "--to"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(ici.analysis.parts, "MAX_PART_BYTES", 5000)
    assert main([*words, str(tmp_path / "parts")]) == 0
    for name in names:
        whole, parts = (tmp_path / way / f"{name}.parquet" for way in ("whole", "parts"))
        assert pq.read_table(parts).equals(pq.read_table(whole), check_metadata=True)
        counts = [pq.ParquetFile(path).num_row_groups for path in (whole, parts)]
        assert counts[1] > counts[0]


def test_a_flipped_byte_is_seen(results, tmp_path):
    main(["export", str(results.path), "--to", str(tmp_path), "--tables", "train"])
    path = tmp_path / "train.parquet"
    sound = path.read_bytes()
    file = pq.ParquetFile(path)
    chunk = file.metadata.row_group(0).column(file.schema_arrow.names.index("loss"))
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    # The last bytes of a column's chunk are of its last data page.
    for place in (first + 100, first + chunk.total_compressed_size - 5):
        content = bytearray(sound)
        content[place] ^= 1
        path.write_bytes(content)
        checked = pq.ParquetFile(path, page_checksum_verification=True)
        with pytest.raises(OSError, match="CRC"):
            checked.read(columns=["loss"])
        assert checked.read(columns=["step"]).num_rows == file.metadata.num_rows


def test_files_are_replaced_only_if_asked(results, tmp_path, capsys):
    words = ["export", str(results.path), "--to", str(tmp_path), "--tables"]
    assert main([*words, "train"]) == 0
    (tmp_path / "train.parquet").write_text("mine")
    assert main([*words, "runs", "train"]) == 2
    err = capsys.readouterr().err
    assert "train.parquet is there already" in err and "--overwrite" in err and err.count("\n") == 1
    # Refused before anything was written.
    assert [path.name for path in tmp_path.iterdir()] == ["train.parquet"]
    assert (tmp_path / "train.parquet").read_text() == "mine"
    assert main([*words, "runs", "train", "--overwrite"]) == 0
    assert len(pd.read_parquet(tmp_path / "train.parquet")) == len(table(results, "train"))


def test_a_record_still_going_exports_what_is_committed(tmp_path, capsys):
    tabled(tmp_path, status="running", committed=4)
    with sole_writer(tmp_path):
        assert main(["export", str(tmp_path), "--tables", "train"]) == 0
    assert "is running: exporting the steps committed so far" in capsys.readouterr().out
    path = tmp_path / "tables" / "train.parquet"
    assert pd.read_parquet(path).step.max() == 3
    assert json.loads((pq.read_schema(path).metadata or {})[b"ici.complete"]) is False


def damaged(folder):
    tabled(folder)
    # In the second group: the rows of the first are written by then.
    chunks = folder / "records" / "norm=batch,depth=2" / "train" / "loss" / "c"
    path = next(path for path in chunks.rglob("*") if path.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def gone(folder):
    tabled(folder)
    for path in (folder / "records").rglob("zarr.json"):
        path.unlink()


def unreadable(folder):
    folder.mkdir()
    (folder / MANIFEST).write_text("{")


@pytest.mark.parametrize("harm", [damaged, gone, unreadable, lambda folder: None])
def test_a_damaged_or_absent_record_is_told_in_one_line(tmp_path, capsys, harm):
    harm(tmp_path / "record")
    words = ["export", str(tmp_path / "record"), "--to", str(tmp_path / "to"), "--tables", "train"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("damaged" in err or "holds no" in err)
    # Nothing half-written.
    assert not list((tmp_path / "to").glob("*")) if (tmp_path / "to").exists() else True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "wanted ici export RUN"),
        (["RECORD", "--format", "xlsx"], "invalid choice: 'xlsx'"),
        (["RECORD", "--tables", "trian"], "Did you mean 'train'"),
        (["RECORD", "--to", "FILE"], "cannot make the folder"),
    ],
)
def test_wrong_words_are_one_line(results, tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("")
    meant = {"RECORD": str(results.path), "FILE": str(tmp_path / "file")}
    assert main(["export", *(meant.get(word, word) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_every_column_has_a_unit(results):
    for name in tables_of(results):
        columns = [*table(results, name)]
        if name in ("probe", "reference"):
            columns += [*table(results, name, features=True)]
        for each in columns:
            assert column(name, each) is not UNKNOWN, (name, each)
