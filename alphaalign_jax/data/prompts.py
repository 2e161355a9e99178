"""Labelled prompts from all sources: the demo set, JSONL, CSV and parquet files, hub data sets.

An unusable row is an error that names its place. It is never dropped silently: a run on a safety
data set with a hundred unreadable labels would otherwise train on the remaining rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from alphaalign_jax.data import demo, turns
from alphaalign_jax.data.files import Record, Used, read_records
from alphaalign_jax.data.labels import label_codes, read_label
from alphaalign_jax.data.row import PromptRow, check_text, show
from alphaalign_jax.data.source import KINDS, Source, source_kind
from alphaalign_jax.data.turns import Conversation
from alphaalign_jax.types import BENIGN, LABELS

__all__ = ["KINDS", "Source", "read", "source_kind"]


def read(source: Source, *, answers: bool = True) -> list[PromptRow]:
    """Return all rows of a source, in file order.

    Args:
      answers: whether to read reference answers. If False, the answer column may hold anything.

    Raises:
      ValueError: a bad row (the message has the file, the line or row number counted from 1, the
        value and the expectation), an unknown kind or label, an undecodable file, or no rows left.
    """
    if source_kind(source) == "demo":
        rows = _read_demo(source)
    else:
        plan = _Plan.of(source, answers)
        records = read_records(source, plan.used)
        rows = [plan.row(record) for record in records if _matches(source, record)]
    if not rows:
        raise ValueError(f"{source.path}: no rows" + (f" match where={source.where}" if source.where else ""))
    return rows


def _read_demo(source: Source) -> list[PromptRow]:
    split = source.path.removeprefix("demo/")
    if split not in demo.SPLITS:
        raise ValueError(
            f"{source.path!r} is not a demo split; expected {' or '.join('demo/' + s for s in demo.SPLITS)}"
        )
    rows = []
    for number, row in enumerate(demo.rows(split), start=1):
        place = f"{source.path}: row {number}"
        if _matches(source, Record(place, vars(row), vars(row))):
            rows.append(dataclasses.replace(row, place=place))
    return rows


def _matches(source: Source, record: Record) -> bool:
    for key, value in source.where:
        if key not in record.values:
            raise ValueError(
                f"{record.place}: no column {key!r}, which where={source.where} asks for; "
                f"the row has {_listed(record.columns)}"
            )
        held = record.values[key]
        if ("" if held is None else str(held)) != str(value):
            return False
    return True


class _Plan(NamedTuple):
    """How to make rows from a source's records."""

    source: Source
    answers: bool
    fixed: int | None  # label of all rows; None: read each row's label
    codes: Mapping[str, int]

    @classmethod
    def of(cls, source: Source, answers: bool) -> _Plan:
        fixed = None
        if source.label:
            if source.label.casefold() not in LABELS:
                raise ValueError(
                    f"{source.path}: Source.label: label is {show(source.label)}; expected 'harmful' or 'benign'"
                )
            fixed = LABELS.index(source.label.casefold())
        return cls(source, answers, fixed, label_codes(source.label_map))

    def used(self, names: Collection[str]) -> Used:
        """Return the columns that rows are made from, in a file with columns ``names``."""
        s = self.source
        columns = {_prompt_column(s, names), *(key for key, _ in s.where)}
        if self.fixed is None:
            columns.add(s.label_key)
        if self.answers:
            columns.add(s.answer_key)
        return Used(frozenset(columns), frozenset({"source", "category"} - columns))

    def row(self, record: Record) -> PromptRow:
        place, values = record.place, record.values
        try:
            label = self._label(record)
            asked = self._asked(record)
            # Only training inputs are checked: source and category of other types are ignored.
            origin, category = values.get("source"), values.get("category")
            return PromptRow(
                asked.prompt,
                label,
                origin if isinstance(origin, str) else self.source.path,
                category if isinstance(category, str) else self.source.category,
                self._answer(values, asked, label),
                asked.context,
                place,
            )
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    def _label(self, record: Record) -> int:
        if self.fixed is not None:
            return self.fixed
        key = self.source.label_key
        if key not in record.values:
            raise ValueError(
                f"no label; expected a column {key!r} with 'harmful' or 'benign', the row has "
                f"{_listed(record.columns)} (set the source's label_key, or its label for a file of one kind)"
            )
        return read_label(key, record.values[key], self.codes, self.source.path, bool(self.source.label_map))

    def _asked(self, record: Record) -> Conversation:
        key = _prompt_column(self.source, record.values)
        if key not in record.values:
            other = f" or {turns.COLUMN!r}" if key == "prompt" else ""
            raise ValueError(
                f"no prompt; expected a column {key!r}{other}, the row has {_listed(record.columns)} (set the source's "
                "prompt_key)"
            )
        value = record.values[key]
        if key != turns.COLUMN and isinstance(value, str):
            check_text(key, value)
            return Conversation((), value, "")
        if not isinstance(value, (str, list)):
            raise ValueError(f"{key} is {show(value)}; expected text, or a list of turns such as {turns.EXAMPLE}")
        try:
            return turns.read_conversation(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    def _answer(self, values: Mapping[str, Any], asked: Conversation, label: int) -> str:
        """Return the row's reference answer: its answer column, else the assistant's turn.

        The turn is used only after a benign question, because conversations in red-teaming sets end
        in harmful content.
        """
        if not self.answers:
            return ""
        key = self.source.answer_key
        answer = values.get(key)
        if answer is None:
            return asked.answer if label == BENIGN else ""
        if isinstance(answer, list):
            return _single_answer(key, answer)
        check_text(key, answer)
        return answer


def _prompt_column(source: Source, names: Collection[str]) -> str:
    """Return the column that holds the prompt."""
    key = source.prompt_key
    return turns.COLUMN if key == "prompt" and key not in names and turns.COLUMN in names else key


def _single_answer(key: str, value: list[Any]) -> str:
    """Return the text of an answer given as a list of one assistant turn."""
    try:
        answer = turns.read_turns(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    if len(answer) != 1 or answer[0].role != "assistant":
        raise ValueError(f"{key} is {show(value)}; expected text, or one turn of the assistant")
    return answer[0].content


def _listed(columns: Collection[str]) -> list[str]:
    return sorted(map(str, columns))
