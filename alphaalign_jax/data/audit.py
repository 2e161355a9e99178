"""Audit of a set of prompts: counts, duplicates, contradicting labels, leaks into evaluation."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.text import inline
from alphaalign_jax.types import BENIGN, HARMFUL, LABELS

Group = tuple[int, ...]  # indices of rows that share a prompt, ascending
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_EDGE = " \t\n.,;:!?\"'\u2026"
_SHOWN = 5  # groups of each kind that the readable report lists


@dataclass(frozen=True)
class Audit:
    """Findings about ``rows``; ``str(audit)`` is a readable report.

    Attributes:
      rows: the audited rows.
      exact_duplicates: groups of rows whose prompt and earlier turns are equal in every character.
      duplicates: groups of rows with the same normalised question (``normalise``). Includes exact
        duplicates and rows that differ only in their system turn.
      contradictions: the groups of ``duplicates`` that contain both labels.
      by_label: label name -> number of rows.
      by_source: source -> label name -> number of rows.
      overlap: pairs (i, j): ``rows[i]`` and held-out row j have the same normalised question.
      heldout: findings about the held-out rows themselves; None if there are none.
    """

    rows: tuple[PromptRow, ...]
    exact_duplicates: tuple[Group, ...]
    duplicates: tuple[Group, ...]
    contradictions: tuple[Group, ...]
    by_label: dict[str, int]
    by_source: dict[str, dict[str, int]]
    overlap: tuple[tuple[int, int], ...] = ()
    heldout: Audit | None = None

    @property
    def clean(self) -> bool:
        """Whether there are no duplicates, no contradictions and no overlap."""
        found = self.duplicates or self.contradictions or self.overlap
        return not found and (self.heldout is None or self.heldout.clean)

    def to_json(self) -> dict[str, Any]:
        """Return the counts for a run's summary."""
        return {
            "by_source": self.by_source,
            "duplicates": len(self.duplicates),
            "contradictions": len(self.contradictions),
            "also_held_out": len({i for i, _ in self.overlap}),
            "heldout": None if self.heldout is None else self.heldout.to_json(),
        }

    def __str__(self) -> str:
        by_source = [(inline(name, 60), counts) for name, counts in sorted(self.by_source.items())]
        width = max([len("source"), *(len(name) for name, _ in by_source)])
        lines = [f"{'source':<{width}}  {'harmful':>7}  {'benign':>7}  {'all':>7}"]
        for name, counts in [*by_source, ("all", self.by_label)]:
            lines.append(f"{name:<{width}}  {counts['harmful']:>7}  {counts['benign']:>7}  {sum(counts.values()):>7}")
        lines += self._groups("exact duplicates", self.exact_duplicates)
        lines += self._groups("duplicates but for case, spacing, quotes", self.duplicates)
        lines += self._groups("contradicting labels", self.contradictions)
        if self.heldout is not None:
            count = len(self.heldout.rows)
            lines.append(f"rows also in the {count} held-out ones: {len({i for i, _ in self.overlap})}")
            for i, j in self.overlap[:_SHOWN]:
                other = name_row(self.heldout.rows, j)
                lines.append(f"  {name_row(self.rows, i)} = held-out {other}: {_short(self.rows[i].prompt)}")
            if not self.heldout.clean:
                lines.append(f"held out:\n{self.heldout}")
        return "\n".join(lines)

    def _groups(self, title: str, groups: tuple[Group, ...]) -> list[str]:
        lines = [f"{title}: {len(groups)} prompts, {sum(map(len, groups))} rows"]
        for group in groups[:_SHOWN]:
            rows = ", ".join(f"{name_row(self.rows, i)} ({LABELS[self.rows[i].label]})" for i in group[:_SHOWN])
            lines.append(f"  {rows}: {_short(self.rows[group[0]].prompt)}")
        if len(groups) > _SHOWN:
            lines.append(f"  ... and {len(groups) - _SHOWN} more")
        return lines


def audit(rows: Sequence[PromptRow], heldout: Sequence[PromptRow] = ()) -> Audit:
    """Find counts, duplicates and contradictions in ``rows``, and the overlap with ``heldout``."""
    keys = [normalise(row.question) for row in rows]
    duplicates = _repeated(keys)
    by_source: dict[str, dict[str, int]] = {}
    for row in rows:
        by_source.setdefault(row.source, dict.fromkeys(reversed(LABELS), 0))[LABELS[row.label]] += 1
    labels = Counter(row.label for row in rows)
    return Audit(
        rows=tuple(rows),
        exact_duplicates=_repeated([(row.context, row.prompt) for row in rows]),
        duplicates=duplicates,
        contradictions=tuple(group for group in duplicates if len({rows[i].label for i in group}) > 1),
        by_label={"harmful": labels[HARMFUL], "benign": labels[BENIGN]},
        by_source=by_source,
        overlap=overlap(rows, heldout),
        heldout=audit(heldout) if heldout else None,
    )


def overlap(train: Sequence[PromptRow], heldout: Sequence[PromptRow]) -> tuple[tuple[int, int], ...]:
    """Return all pairs (i, j), ascending, such that ``train[i]`` and ``heldout[j]`` ask the same.

    Questions are compared after normalisation (``normalise``).
    """
    places = defaultdict(list)
    for j, row in enumerate(heldout):
        places[normalise(row.question)].append(j)
    return tuple((i, j) for i, row in enumerate(train) for j in places.get(normalise(row.question), ()))


def normalise(prompt: str) -> str:
    """Remove differences in case, width, quote style, spacing, and punctuation at the ends.

    Punctuation inside stays, so that "sort in C" and "sort in C++" are two prompts.
    """
    text = unicodedata.normalize("NFKC", prompt).casefold().translate(_QUOTES)
    text = re.sub(r"\s+", " ", text).strip()
    return text.strip(_EDGE) or text  # a prompt of only punctuation stays as it is


def name_row(rows: Sequence[PromptRow], i: int) -> str:
    """Return the name of row i for reports: its place in its file, else its number from 1."""
    place = rows[i].place
    return inline(place, len(place)) or f"row {i + 1}"


def _repeated(keys: Sequence[Hashable]) -> tuple[Group, ...]:
    places = defaultdict(list)
    for i, key in enumerate(keys):
        places[key].append(i)
    return tuple(tuple(group) for group in places.values() if len(group) > 1)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 70 else repr(text[:67] + "...")
