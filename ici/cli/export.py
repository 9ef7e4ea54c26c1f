"""``ici export``: the tables of a record as Parquet or CSV files, written in parts."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ici.errors import InputError, unknown_name
from ici.store.lock import is_held
from ici.store.places import Place, n_bytes, place, whole
from ici.store.results import Results, open_results

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("parquet", "csv", "csv.gz")
# Its rows are those of every probed step: as large as the record itself.
NOT_BY_DEFAULT = ("probe",)
_USAGE = (
    "ici export RUN [--to FOLDER] [--format parquet|csv|csv.gz] [--tables NAME ...] [--features] "
    "[--overwrite]"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"ici export: {message}: wanted {_USAGE}; --help lists the options.")


def _parser() -> _Parser:
    parser = _Parser("ici export", usage=_USAGE, description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a record")
    parser.add_argument("--to", metavar="FOLDER", help="where the files go (RUN/tables)")
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="(parquet)")
    parser.add_argument(
        "--tables", nargs="+", metavar="NAME", help="which tables (all that it has but probe)"
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="a row for every feature of a layer input, in place of percentiles over features",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


@dataclass(frozen=True)
class Written:
    """A file of an export: where, and how much."""

    path: Place
    n_rows: int
    n_bytes: int


def export_command(arguments: list[str]) -> int:
    """``ici export RUN``."""
    options = _parser().parse_args(arguments)
    results = open_results(options.run)
    folder = place(options.to) if options.to else results.path / "tables"
    if not results.complete:
        status = results.manifest.status
        if status == "running" and is_held(results.path) is False:
            status = "unfinished and its writer is gone"
        print(f"{results.path} is {status}: exporting the steps committed so far.")
    for file in export(
        results,
        folder,
        options.tables,
        format=options.format,
        features=options.features,
        overwrite=options.overwrite,
    ):
        print(f"  {file.path}: {file.n_rows:,} rows, {file.n_bytes:,} bytes", flush=True)
    return 0


def export(
    results: Results,
    folder: Place,
    tables: Sequence[str] | None = None,
    *,
    format: str = "parquet",
    features: bool = False,
    overwrite: bool = False,
) -> Iterator[Written]:
    """Writes tables of a record as ``folder/NAME.parquet``, ``.csv`` or ``.csv.gz``, one at a time.

    A file appears under its name once it is whole. Parquet pages carry checksums, and the schema
    the experiment, its fingerprint, the version of ici and the unit of every column.

    Args:
      results: the record.
      folder: where to; made if it is not there.
      tables: names from `ici.analysis.tables.tables_of`; all but "probe" unless given.
      format: parquet, csv or csv.gz.
      features: a row for every feature of a site, in place of percentiles over its features.
      overwrite: replace files that are there.

    Raises:
      InputError: no such table, a file is there already, PyArrow is missing, or the record is
        damaged; all but the last before anything is written.
    """
    from ici.analysis.tables import iter_table, tables_of

    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            "Parquet files are written with PyArrow, which is not installed: pip install pyarrow, "
            "or --format csv."
        )
    known = _sound(results, lambda: tables_of(results))
    names = list(dict.fromkeys(tables or (n for n in known if n not in NOT_BY_DEFAULT)))
    for name in names:
        if name not in known:
            raise unknown_name("table", name, known)
    paths = [folder / f"{name}.{format}" for name in names]
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        raise InputError(
            f"{there[0]} is there already: wanted a folder without it; --to names another, "
            "--overwrite replaces it."
        )
    _make(folder)
    for name, path in zip(names, paths, strict=True):
        frames = _soundly(results, iter_table(results, name, features))
        with whole(path) as part:
            if format == "parquet":
                n_rows = _write_parquet(part, frames, results, name)
            else:
                n_rows = _write_csv(part, frames, zipped=format == "csv.gz")
        yield Written(path, n_rows, n_bytes(path))


def _write_parquet(path: Path, frames: Iterator[pd.DataFrame], results: Any, name: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_rows, writer = 0, None
    try:
        for frame in frames:
            rows = pa.Table.from_pandas(_plain_numbers(frame), preserve_index=False)
            if writer is None:
                about = _about(results, name, list(frame.columns))
                schema = rows.schema.with_metadata({**(rows.schema.metadata or {}), **about})
                writer = pq.ParquetWriter(
                    path, schema, compression="zstd", write_page_checksum=True
                )
            writer.write_table(rows.cast(writer.schema))
            n_rows += len(frame)
    finally:
        if writer is not None:
            writer.close()
    return n_rows


def _write_csv(path: Path, frames: Iterator[pd.DataFrame], zipped: bool) -> int:
    n_rows = 0
    opened = gzip.open if zipped else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        for i, frame in enumerate(frames):
            frame.to_csv(file, index=False, header=i == 0)
            n_rows += len(frame)
    return n_rows


def _plain_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers for labels that are numbers: Parquet has dictionaries of texts only."""
    import pandas as pd

    labels = frame.select_dtypes("category")
    return frame.assign(
        **{
            str(name): each.astype(each.cat.categories.dtype)
            for name, each in labels.items()
            if pd.api.types.is_numeric_dtype(each.cat.categories.dtype)
        }
    )


def _about(results: Any, name: str, columns: list[str]) -> dict[str, str]:
    from ici import __version__
    from ici.analysis.columns import column

    return {
        "ici.version": __version__,
        "ici.table": name,
        "ici.experiment": json.dumps(results.experiment),
        "ici.fingerprint": results.manifest.fingerprint,
        "ici.complete": json.dumps(results.complete),
        "ici.units": json.dumps({each: column(name, each).unit for each in columns}),
    }


def _make(folder: Place) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder} ({error.strerror}): wanted a place to write to; "
            "--to names another."
        ) from error


def _soundly(results: Results, frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    while (frame := _sound(results, lambda: next(frames, None))) is not None:
        yield frame


def _sound(results: Results, read: Callable[[], Any]) -> Any:
    """What `read` gives; `InputError` if it meets a damaged record."""
    try:
        return read()
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # Zarr has no common base: missing files, keys, half-written metadata, checksums.
        raise InputError(
            f"{results.path} is damaged ({type(error).__name__}: {error}): restore it, or "
            "`ici run --overwrite` replaces the record."
        ) from error
