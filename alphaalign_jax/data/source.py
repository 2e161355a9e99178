"""Sources of prompts: a path, and how to read its rows."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alphaalign_jax.data import labels

KINDS = ("demo", "jsonl", "csv", "parquet", "hub")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Source:
    """A source of prompts, and how to read its rows.

    Attributes:
      path: ``demo/train``, ``demo/heldout``, a .jsonl, .csv or .parquet file (also ``gs://...``),
        or a hub data set ``org/name``.
      kind: one of ``KINDS``; '' infers it from the path.
      split: hub data sets only: the split to read.
      prompt_key, label_key, answer_key: column names. A missing label column is an error unless
        ``label`` is set. A missing answer column means no answers. The prompt's column may hold
        text or a list of turns ``{"role", "content"}``. If there is no column ``prompt``,
        ``messages`` is read.
      label: 'harmful' or 'benign' for all rows, for files of one kind; '' reads ``label_key``.
      where: pairs (column, value), or a dict. Only rows whose columns equal the values are kept.
        Values are compared as text; null counts as ''.
      ratio: this source's share of a mix (``recipes.mix``).
      label_map: spellings of the labels: a name from ``labels.PRESETS``, or a dict (or pairs) from
        values to 'harmful' or 'benign', e.g. {'safe': 'benign', 'unsafe': 'harmful'}. Values are
        compared as text, ignoring case. 'harmful' and 'benign' are always known.
      category: category of rows that have none of their own.
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
    label_map: str | tuple[tuple[str, str], ...] = ()
    answer_key: str = "answer"
    category: str = ""
    subset: str = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            holds, expected = _FIELDS[field.name]
            value = getattr(self, field.name)
            if not holds(value):
                raise ValueError(f"data source {self.path!r}: {field.name}={value!r}: expected {expected}")
            if isinstance(value, Mapping):  # stored as pairs, which can be hashed and saved
                object.__setattr__(self, field.name, tuple(value.items()))
        if not _can_be_opened(self.path):
            raise ValueError(f"data source {self.path!r}: path contains a NUL or a lone surrogate; remove it")
        try:
            labels.label_codes(self.label_map)
        except ValueError as error:
            raise ValueError(f"data source {self.path!r}: {error}") from error


def as_source(entry: Any) -> Source:
    """Return the source of a config's entry: a path, or a dict of ``Source`` fields."""
    if isinstance(entry, str):
        return Source(path=entry)
    known = {field.name for field in dataclasses.fields(Source)}
    if not isinstance(entry, Mapping) or "path" not in entry:
        raise ValueError(f"data source {entry!r}: expected a path, or a dict with one, such as {{'path': 'mine.csv'}}")
    unknown = sorted(set(entry) - known, key=str)
    if unknown:
        raise ValueError(
            f"data source {dict(entry)}: no field {unknown[0]!r}; the fields are {', '.join(sorted(known))}"
        )
    return Source(**entry)


def source_kind(source: Source) -> str:
    """Return the kind of a source: its ``kind``, else inferred from its path."""
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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _are_pairs(value: Any) -> bool:
    """Return whether ``value`` is a dict, or pairs, of strings and numbers (compared as text)."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    rows = value if isinstance(value, (tuple, list)) else [None]
    return all(
        isinstance(row, (tuple, list)) and len(row) == 2 and all(isinstance(x, (str, int, float)) for x in row)
        for row in rows
    )


def _is_label_map(value: Any) -> bool:
    return isinstance(value, str) or _are_pairs(value)


# For each field: a check of its value, and a description of valid values with an example.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "path": (_is_text, "a text, such as 'mine.jsonl'"),
    "kind": (_is_text, f"one of {', '.join(KINDS)}, or '' to read it off the path"),
    "split": (_is_text, "a text, such as 'train'"),
    "prompt_key": (_is_text, "the name of a column, such as 'question'"),
    "label_key": (_is_text, "the name of a column, such as 'is_safe'"),
    "label": (_is_text, "'harmful' or 'benign', or '' to read the label column"),
    "where": (_are_pairs, "columns and their values, such as {'split': 'train'} or (('split', 'train'),)"),
    "ratio": (_is_share, "a share: 0, or positive and at most 1, such as 0.5"),
    "label_map": (_is_label_map, labels.EXPECTED_MAP),
    "answer_key": (_is_text, "the name of a column, such as 'response'"),
    "category": (_is_text, "a text, such as 'benign/dolly'"),
    "subset": (_is_text, "a text: the data set's configuration, such as 'main'"),
}


def _can_be_opened(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
