"""Labelled prompts and where they come from: the built-in demo set, JSONL, CSV and parquet files, hub data sets.

A row that cannot be used is an error that names its place, never a row quietly dropped: a safety data set with a
hundred unreadable labels would otherwise train on whatever was left.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alphaalign_jax import buckets
from alphaalign_jax.data import demo
from alphaalign_jax.data.row import PromptRow, show
from alphaalign_jax.text import json_of
from alphaalign_jax.types import LABELS

KINDS = ("demo", "jsonl", "csv", "parquet", "hub")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where rows come from and how to read them.

    Attributes:
      path: ``demo/train``, ``demo/heldout``, a .jsonl, .csv or .parquet file (also ``gs://...``), or a hub data set
        ``org/name``.
      kind: one of ``KINDS``; '' reads it off the path.
      split: hub data sets only: the split to read.
      prompt_key, label_key, answer_key: column names. A missing label column is an error unless ``label`` is set; a
        missing answer column means no answers.
      label: 'harmful' or 'benign' for every row, for files that hold only one kind; '' reads ``label_key``.
      where: pairs (column, value); only rows whose column equals the value (as text; null counts as '') are kept.
      ratio: this source's share of a mix (``recipes.mix``).
      label_map: pairs (value in the file, 'harmful' or 'benign'), e.g. (('safe', 'benign'), ('unsafe', 'harmful')).
        Values are compared as text and without case. Empty: only 'harmful' and 'benign' are accepted.
      category: category of every row that carries none of its own.
      subset: hub data sets only: the configuration name.
    """

    path: str
    kind: str = ""
    split: str = "train"
    prompt_key: str = "prompt"
    label_key: str = "label"
    label: str = ""
    where: tuple[tuple[str, str], ...] = ()
    ratio: float = 0.0
    label_map: tuple[tuple[str, str], ...] = ()
    answer_key: str = "answer"
    category: str = ""
    subset: str = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            holds, expected = _TYPES[field.type]
            if not holds(value := getattr(self, field.name)):
                raise ValueError(f"data source {self.path!r}: {field.name}={value!r}: expected {expected}")
        if not _can_be_opened(self.path):
            raise ValueError(f"data source {self.path!r}: a NUL or half a character is in no file's name; leave it out")


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _are_pairs(value: Any) -> bool:
    """Of what is compared as text."""
    rows = value if isinstance(value, (tuple, list)) else [None]
    return all(
        isinstance(row, (tuple, list)) and len(row) == 2 and all(isinstance(x, (str, int, float)) for x in row)
        for row in rows
    )


# What a config may put into a field, by its annotation: a check that it is that, and its name.
_TYPES = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "float": (_is_share, "a share: 0, or positive and at most 1"),
    "tuple[tuple[str, str], ...]": (_are_pairs, "pairs of texts, such as (('split', 'train'),)"),
}


def _can_be_opened(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def read(source: Source) -> list[PromptRow]:
    """All rows of a source, in file order.

    Raises:
      ValueError: a bad row (message: file, line or row number counted from 1, the value, what was expected), an
        unknown kind or label, a file that cannot be decoded, or nothing left to read.
    """
    kind = source_kind(source)
    fixed = _parse_label(source.label, f"{source.path}: Source.label") if source.label else None
    mapping = {
        _fold(value): _parse_label(label, f"{source.path}: Source.label_map") for value, label in source.label_map
    }
    if kind == "demo":
        rows = [row for row in _read_demo(source.path) if _matches(source, vars(row), source.path)]
    else:
        records = _RECORDS[kind](source)
        rows = [
            _row(source, record, place, fixed, mapping) for place, record in records if _matches(source, record, place)
        ]
    if not rows:
        raise ValueError(f"{source.path}: no rows" + (f" match where={source.where}" if source.where else ""))
    return rows


def source_kind(source: Source) -> str:
    """The kind of a source: its ``kind``, else read off its path."""
    if source.kind:
        if source.kind not in KINDS:
            raise ValueError(f"{source.path}: kind is {source.kind!r}; expected one of {', '.join(KINDS)}")
        return source.kind
    if source.path.startswith("demo/"):
        return "demo"
    suffix = Path(source.path).suffix.lower().lstrip(".")
    if suffix in ("jsonl", "csv", "parquet"):
        return suffix
    if _HUB_NAME.fullmatch(source.path) and not Path(source.path).is_file():
        return "hub"
    raise ValueError(
        f"{source.path!r} is not a prompt source; expected demo/train, demo/heldout, a .jsonl, .csv or "
        f".parquet file, or a hub data set 'org/name' (or set kind to one of {', '.join(KINDS)})"
    )


def _read_demo(path: str) -> list[PromptRow]:
    split = path.removeprefix("demo/")
    if split not in demo.SPLITS:
        raise ValueError(f"{path!r} is not a demo split; expected {' or '.join('demo/' + s for s in demo.SPLITS)}")
    return demo.rows(split)


Record = tuple[str, Mapping[str, Any]]  # (place for messages, columns)


def _read_jsonl(source: Source) -> Iterator[Record]:
    # Binary lines: str.splitlines would also break at U+2028, which JSON strings may hold.
    with _open(source, "rb") as lines:
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
            yield place, record


def _read_csv(source: Source) -> Iterator[Record]:
    with _open(source, "r", encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        start = 1
        try:
            header = reader.fieldnames or []
            if len(set(header)) != len(header):
                raise ValueError(f"{source.path}:1: header {header} repeats a column; expected distinct names")
            start = reader.line_num + 1
            for record in reader:
                # A quoted field may span lines: the row is named by its first one.
                place, start = f"{source.path}:{start}", reader.line_num + 1
                if None in record or None in record.values():
                    given = sum(value is not None for key, value in record.items() if key is not None)
                    given += len(record.get(None) or ())
                    raise ValueError(f"{place}: {given} fields; expected {len(header)} as in the header {header}")
                yield place, record
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{source.path}: line {start} or below is not UTF-8 CSV ({error}); expected a header "
                "and comma-separated rows, fields with commas or line ends in double quotes"
            ) from error


def _read_parquet(source: Source) -> Iterator[Record]:
    # Imported when needed: pyarrow takes longer to import than most prompt files take to read.
    import pyarrow
    import pyarrow.parquet

    with _open(source, "rb") as file:
        try:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches()
            number = 0
            for batch in batches:
                for record in batch.to_pylist():
                    number += 1
                    yield f"{source.path}: row {number}", record
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{source.path}: not a readable parquet file ({error}); expected parquet") from error


def _read_hub(source: Source) -> Iterator[Record]:
    import datasets  # seconds to import, and only this kind needs it

    name = source.path + (f" ({source.subset})" if source.subset else "")
    try:
        data = datasets.load_dataset(source.path, source.subset or None, split=source.split)
    except Exception as error:  # the library raises many kinds: no network, no such name, gated, no such split
        raise ValueError(
            f"hub data set {name}, split {source.split!r}, could not be loaded "
            f"({type(error).__name__}: {error}); check the name, the split, the network and your access, "
            "or download it and give a .jsonl, .csv or .parquet file"
        ) from error
    for number, record in enumerate(data, start=1):
        yield f"{name}[{source.split}]: row {number}", record


_RECORDS = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet, "hub": _read_hub}


def _open(source: Source, mode: str, **kwargs: Any):
    try:
        return buckets.open_file(source.path, mode, **kwargs)
    except OSError as error:
        raise ValueError(
            f"{source.path}: cannot be opened ({error.strerror}); expected a readable {source_kind(source)} file"
        ) from error


def _matches(source: Source, record: Mapping[str, Any], place: str) -> bool:
    for key, value in source.where:
        if key not in record:
            raise ValueError(
                f"{place}: no column {key!r}, which where={source.where} asks for; "
                f"the row has {sorted(map(str, record))}"
            )
        if ("" if record[key] is None else str(record[key])) != str(value):
            return False
    return True


def _row(
    source: Source, record: Mapping[str, Any], place: str, fixed: int | None, mapping: dict[str, int]
) -> PromptRow:
    if source.prompt_key not in record:
        raise ValueError(
            f"{place}: no prompt; expected a column {source.prompt_key!r}, the row has {sorted(map(str, record))}"
        )
    if fixed is not None:
        label = fixed
    elif source.label_key not in record:
        raise ValueError(
            f"{place}: no label; expected a column {source.label_key!r} with 'harmful' or 'benign', the "
            f"row has {sorted(map(str, record))} (for a file of one kind set Source.label)"
        )
    elif mapping:
        label = mapping.get(_fold(record[source.label_key]))
        if label is None:
            raise ValueError(
                f"{place}: label {show(record[source.label_key])} is not in label_map; "
                f"expected one of {', '.join(mapping)}"
            )
    else:
        label = _parse_label(record[source.label_key], place)
    answer = record.get(source.answer_key)
    origin, category = record.get("source"), record.get("category")
    try:
        # source and category of other types are the file's own business; only what training reads is checked.
        return PromptRow(
            record[source.prompt_key],
            label,
            origin if isinstance(origin, str) else source.path,
            category if isinstance(category, str) else source.category,
            "" if answer is None else answer,
        )
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _parse_label(value: Any, place: str) -> int:
    folded = value.casefold() if isinstance(value, str) else None
    if folded not in LABELS:
        raise ValueError(f"{place}: label is {show(value)}; expected 'harmful' or 'benign'")
    return LABELS.index(folded)


def _fold(value: Any) -> str:
    return str(value).casefold()
