"""Read rows of JSONL, CSV and parquet files and hub data sets, each with its place for messages.

If the format allows it, only the used columns are read, because an unused column may hold anything.
"""

from __future__ import annotations

import collections
import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from alphaalign_jax import buckets
from alphaalign_jax.data.row import show
from alphaalign_jax.data.source import Source, source_kind
from alphaalign_jax.text import json_of


class Record(NamedTuple):
    place: str  # file and line, or row, counted from 1
    values: Mapping[str, Any]  # by column; unused columns may be missing
    columns: Collection[str]  # all columns of the row, for messages


class Used(NamedTuple):
    """Columns to read. ``texts`` are optional: they are read only if they hold text."""

    columns: frozenset[str]
    texts: frozenset[str] = frozenset()


# Maps the names of all columns of a file to the columns to read.
Choose = Callable[[Collection[str]], Used]


def read_records(source: Source, choose: Choose) -> Iterator[Record]:
    """Yield the rows of a source of any kind except ``demo``.

    Raise ValueError, with the place, for a row that cannot be read.
    """
    return _READERS[source_kind(source)](source, choose)


def _read_jsonl(source: Source, choose: Choose) -> Iterator[Record]:
    # Lines are split as bytes: str.splitlines also breaks at U+2028, which JSON strings may hold.
    with _open(source) as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{source.path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                record = json_of(text)
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                raise ValueError(
                    f"{place}: not a line of UTF-8 JSON ({error}): {line[:80]!r}; expected one JSON object a line"
                ) from error
            if not isinstance(record, dict):
                raise ValueError(f"{place}: {show(record)} is not an object; expected one JSON object a line")
            yield Record(place, record, record)


def _read_csv(source: Source, choose: Choose) -> Iterator[Record]:
    with _open(source) as lines:
        reader = csv.reader(_decoded(lines, source.path), strict=True)
        header: list[str] = []
        start = 1
        try:
            for fields in reader:
                # A quoted field may span lines; the row is named by its first line.
                place = f"{source.path}:{start}"
                start = reader.line_num + 1
                if not fields:
                    continue
                if not header:
                    header = fields
                    _check_distinct(header, choose(header), f"{place}: header {header}")
                    continue
                if len(fields) != len(header):
                    raise ValueError(f"{place}: {len(fields)} fields; expected {len(header)} as in the header {header}")
                yield Record(place, dict(zip(header, fields)), header)
        except csv.Error as error:
            raise ValueError(
                f"{source.path}: line {start} or below is not UTF-8 CSV ({error}); expected a header "
                "and comma-separated rows, fields with commas or line ends in double quotes"
            ) from error


def _decoded(lines: Iterable[bytes], path: str) -> Iterator[str]:
    """Decode lines one by one, so that a broken line can be named."""
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: is not UTF-8 CSV ({error}): {line[:80]!r}; expected UTF-8 text"
            ) from error
        yield from io.StringIO(text, newline="")  # a lone carriage return ends a line too


def _read_parquet(source: Source, choose: Choose) -> Iterator[Record]:
    # Imported here because importing pyarrow takes longer than reading most prompt files.
    import pyarrow
    import pyarrow.parquet

    number = 0
    with _open(source) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            used = choose(names)
            _check_distinct(names, used, f"{source.path}: the file")
            texts = [name for name in used.texts if name in names and _is_text(table.schema_arrow.field(name).type)]
            chosen = [name for name in names if name in used.columns or name in texts]
            for batch in table.iter_batches(columns=chosen):
                # A column name with a dot in it can select further columns.
                for values in _values(batch.select(chosen), source.path, number):
                    number += 1
                    yield Record(f"{source.path}: row {number}", values, names)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{source.path}: not a readable parquet file ({error}); expected parquet") from error


def _values(batch: Any, path: str, before: int) -> list[dict[str, Any]]:
    """Return the rows of a batch.

    Raise ValueError, with row and column, for a value that Python cannot represent. ``before`` is
    the number of rows of the file before the batch.
    """
    try:
        return batch.to_pylist()
    except Exception as error:  # many types: bad UTF-8, a date out of range, an unknown time zone
        failure = error
    for row in range(batch.num_rows):
        for name in batch.schema.names:
            try:
                batch.column(name)[row].as_py()
            except Exception as error:
                raise _unreadable(f"{path}: row {before + row + 1}: the column {name!r}", error) from error
    raise _unreadable(f"{path}: rows {before + 1} to {before + batch.num_rows}", failure) from failure


def _unreadable(what: str, error: Exception) -> ValueError:
    return ValueError(
        f"{what} cannot be read ({type(error).__name__}: {error}); expected UTF-8 text or a plain value; correct it or "
        "leave the row out"
    )


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _read_hub(source: Source, choose: Choose) -> Iterator[Record]:
    import datasets  # takes seconds to import, and only this kind needs it

    name = source.path + (f" ({source.subset})" if source.subset else "")
    try:
        data = datasets.load_dataset(source.path, source.subset or None, split=source.split)
    except Exception as error:  # many types: no network, unknown name or split, gated data set
        raise ValueError(
            f"hub data set {name}, split {source.split!r}, could not be loaded "
            f"({type(error).__name__}: {error}); check the name, the split, the network and your access, "
            "or download it and give a .jsonl, .csv or .parquet file"
        ) from error
    names = data.column_names
    used = choose(names)
    schema = data.features.arrow_schema
    texts = [column for column in used.texts if column in names and _is_text(schema.field(column).type)]
    rows = iter(data.select_columns([column for column in names if column in used.columns or column in texts]))
    for number in range(1, len(data) + 1):
        place = f"{name}[{source.split}]: row {number}"
        try:
            values = next(rows)
        except Exception as error:  # each feature type raises its own
            raise _unreadable(place, error) from error
        yield Record(place, values, names)


_READERS = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet, "hub": _read_hub}


def _check_distinct(names: Sequence[str], used: Used, what: str) -> None:
    """Raise ValueError for a duplicate used column: one of the two would be picked silently."""
    counts = collections.Counter(names)
    twice = sorted(name for name in used.columns | used.texts if counts[name] > 1)
    if twice:
        raise ValueError(f"{what} repeats a column, {twice[0]!r}; expected distinct names: leave one or rename it")


def _open(source: Source) -> IO[bytes]:
    try:
        return buckets.open_file(source.path, "rb")
    except OSError as error:
        raise ValueError(
            f"{source.path}: cannot be opened ({error.strerror}); expected a readable {source_kind(source)} file"
        ) from error
