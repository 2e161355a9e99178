"""Tokenized prompts: the chat template applied, the shared prefix split off, padding to few shapes.

A row keeps its earlier turns: the chat template gets all turns, and ``render`` makes only the text
of the last user turn. The shared prefix, which ends where rows begin to differ, is then shorter or
empty.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.hf import chat
from alphaalign_jax.hf.chat import DEFAULT, ChatSettings, control_texts
from alphaalign_jax.shapes import fitting_slots
from alphaalign_jax.types import Prompts

Render = Callable[[str], str]


@dataclass(frozen=True)
class PromptSet:
    """Tokenized prompts that share a prefix. Row b's text is ``prefix`` followed by ``tails[b]``.

    Attributes:
      rows: the prompts, in order; ``batch`` indexes into them.
      prefix: int32 [P], the ids that all prompts begin with: the head of the chat template, and the
        instruction if it comes before the question. May be empty.
      tails: int32 [length of row b] each. Never empty, because the model needs a token to run on.
      label: int32 [len(rows)].
      bucket: the smallest padded width. Larger widths are doublings of it, so that a run compiles
        few shapes.
      dropped: number of prompts dropped because they exceed ``max_prompt_tokens``.
    """

    rows: tuple[PromptRow, ...]
    prefix: np.ndarray
    tails: tuple[np.ndarray, ...]
    label: np.ndarray
    bucket: int
    dropped: int = 0

    @classmethod
    def build(
        cls,
        rows: Sequence[PromptRow],
        tokenizer: Any,
        render: Render | None,
        *,
        bucket: int = 32,
        max_prompt_tokens: int | None = None,
        on_long: str = "error",
        prefix: Sequence[int] | np.ndarray | None = None,
        settings: ChatSettings = DEFAULT,
    ) -> PromptSet:
        """Tokenize one set of prompts. For sets that must share a prefix, use ``build_sets``.

        Args:
          rows: at least one.
          tokenizer: a transformers tokenizer with a chat template.
          render: question -> text of the last user turn (``rewards.template.render``); None uses
            the bare question.
          bucket: > 0.
          max_prompt_tokens: limit for a whole prompt, prefix included; None for no limit.
          on_long: for a longer prompt, 'error' raises ValueError, 'drop' drops and counts it.
            Prompts are never truncated: that would cut off the end of the question and the
            assistant's header.
          prefix: the prefix to use. Every prompt must begin with it and be longer. None takes the
            longest common prefix.
          settings: date and arguments for the chat template.
        """
        sets = build_sets(
            {"prompts": rows},
            tokenizer,
            render,
            bucket=bucket,
            max_prompt_tokens=max_prompt_tokens,
            on_long=on_long,
            prefix=prefix,
            settings=settings,
        )
        return sets["prompts"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, prefix included."""
        return len(self.prefix) + self._longest_tail

    @functools.cached_property
    def _longest_tail(self) -> int:
        """Tokens of the longest tail. Cached, because every batch's width depends on it."""
        return max(map(len, self.tails))

    @property
    def longest_row(self) -> PromptRow:
        """The row with the longest prompt."""
        return self.rows[max(range(len(self.rows)), key=lambda i: len(self.tails[i]))]

    def slots(self, indices: Sequence[int] | np.ndarray | None = None) -> int:
        """Return the width S of a batch of the given rows (default: all).

        It is ``bucket``, doubled until the rows fit, but at most the multiple of ``bucket`` that
        fits all rows of the set.
        """
        longest = self._longest_tail
        chosen = longest if indices is None else max(len(self.tails[i]) for i in np.asarray(indices).tolist())
        return fitting_slots(chosen, self.bucket, longest)

    def subset(self, count: int, seed: int) -> PromptSet:
        """Return at most ``count`` rows, drawn by the seed."""
        return self.take(np.random.default_rng(seed).permutation(len(self.rows))[:count])

    def take(self, indices: Sequence[int] | np.ndarray) -> PromptSet:
        """Return the rows at ``indices``, in that order."""
        pick = lambda values: tuple(values[i] for i in indices)
        return replace(self, rows=pick(self.rows), tails=pick(self.tails), label=self.label[np.asarray(indices)])

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        slots: int | None = None,
        row: Sequence[int] | np.ndarray | None = None,
    ) -> Prompts:
        """Return the prompts at ``indices``, right-padded with 0. ``length`` marks the real tokens.

        Args:
          indices: int [B], each in [0, len(self)); repeats are allowed.
          slots: S; None takes ``set.slots(indices)``, one of few sizes. ``set.slots()`` fits every
            batch, so that only one shape is compiled.
          row: int [B], the rows' numbers in the run, which are folded into their sampling keys;
            None takes ``indices``.

        Returns:
          Prompts of numpy arrays: prefix int32 [P], tokens int32 [B, S], length, label and row int32 [B].
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"indices have shape {indices.shape} and dtype {indices.dtype}; expected int [B], B > 0")
        if indices.min() < 0 or indices.max() >= len(self.rows):
            raise ValueError(f"indices range over {indices.min()}..{indices.max()}; expected 0..{len(self.rows) - 1}")
        numbers = indices if row is None else np.asarray(row)
        if numbers.shape != indices.shape:
            raise ValueError(f"row has shape {numbers.shape}; expected {indices.shape}, one number a prompt")
        length = np.array([len(self.tails[i]) for i in indices], np.int32)
        slots = self.slots(indices) if slots is None else slots
        if length.max() > slots:
            raise ValueError(
                f"a prompt of {length.max()} tokens after the prefix does not fit {slots} slots; "
                f"give at least {self.slots(indices)}"
            )
        tokens = np.zeros((len(indices), slots), np.int32)
        for b, i in enumerate(indices):
            tokens[b, : length[b]] = self.tails[i]
        return Prompts(
            prefix=self.prefix, tokens=tokens, length=length, label=self.label[indices], row=numbers.astype(np.int32)
        )


def build_sets(
    sets: Mapping[str, Sequence[PromptRow]],
    tokenizer: Any,
    render: Render | None,
    *,
    bucket: int = 32,
    max_prompt_tokens: int | Mapping[str, int] | None = None,
    on_long: str = "error",
    prefix: Sequence[int] | np.ndarray | None = None,
    settings: ChatSettings = DEFAULT,
) -> dict[str, PromptSet]:
    """Tokenize several sets with one shared prefix, whose key/value cache is computed only once.

    If ``max_prompt_tokens`` is a mapping, it limits only the named sets: a held-out set that
    silently shrank would measure something else. Other arguments are as in ``PromptSet.build``.

    Raise ValueError for a tokenizer without a chat template, a prompt that is too long, an empty
    set, or a prompt that does not begin with a given prefix.
    """
    if bucket < 1:
        raise ValueError(f"bucket is {bucket}; expected at least 1")
    if on_long not in ("error", "drop"):
        raise ValueError(f"on_long is {on_long!r}; expected 'error' or 'drop'")
    limits = max_prompt_tokens
    if not isinstance(limits, Mapping):
        limits = dict.fromkeys(sets, limits)
    kept = {
        name: _fitting(name, rows, tokenize_rows(rows, tokenizer, render, settings), limits.get(name), on_long)
        for name, rows in sets.items()
    }
    everything = [ids for pairs in kept.values() for _, ids in pairs]
    if prefix is None:
        head = common_prefix(everything)
    else:
        head = np.asarray(prefix, np.int32)
        for name, pairs in kept.items():
            _check_prefix(name, pairs, head)
    return {
        name: PromptSet(
            rows=tuple(row for row, _ in pairs),
            prefix=head,
            tails=tuple(np.asarray(ids[len(head) :], np.int32) for _, ids in pairs),
            label=np.array([row.label for row, _ in pairs], np.int32),
            bucket=bucket,
            dropped=len(sets[name]) - len(pairs),
        )
        for name, pairs in kept.items()
    }


def tokenize_rows(
    rows: Sequence[PromptRow], tokenizer: Any, render: Render | None, settings: ChatSettings = DEFAULT
) -> list[list[int]]:
    """Return the token ids of each row's whole prompt: its turns, then the assistant's header.

    Raise ValueError, with the row, if the chat template does not produce that, or if a prompt
    contains a control token: the model would read the rest of it as another speaker's turn.
    """
    chat.check(tokenizer, settings)
    chat.check_generation_prompt(tokenizer, settings)
    control = control_texts(tokenizer)
    checked = set()  # sequences of roles that the template was checked with
    id_lists = []
    for row in rows:
        for turn in row.messages():
            check_no_control(turn["content"], control, row.named)
        messages = row.messages(render or str)
        roles = tuple(turn["role"] for turn in messages)
        try:
            if row.context and roles not in checked:
                _check_turns(tokenizer, roles, settings)
                checked.add(roles)
            id_lists.append(chat.ids(tokenizer, messages, settings, generation_prompt=True))
        except ValueError as error:
            raise ValueError(f"{row.named}: {error}") from error
    return id_lists


def check_no_control(
    text: str, control: Sequence[str], what: str, fix: str = "take it out, or leave the row out"
) -> None:
    """Raise ValueError if a text contains one of ``control``, a tokenizer's ``control_texts``."""
    spelt = next((token for token in control if token in text), None)
    if spelt is not None:
        raise ValueError(f"{what} holds {spelt!r}, a control token of this tokenizer; {fix}")


def _check_turns(tokenizer: Any, roles: Sequence[str], settings: ChatSettings) -> None:
    """Raise ValueError if the chat template fails on turns of these roles, drops or moves one."""
    marks = [f"0123TURN{i}3210" for i in range(len(roles))]
    turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks)]
    text = chat.text(tokenizer, turns, settings, generation_prompt=True)
    # A system turn may move, because some templates write it into the last user turn.
    places = [text.find(mark) for role, mark in zip(roles, marks) if role != "system"]
    if not all(mark in text for mark in marks) or places != sorted(places):
        raise ValueError(
            f"the chat template drops or moves a turn of {', '.join(roles)}: it made {text!r:.300}; leave out what it "
            "does not take, or use a model whose template takes it"
        )


def common_prefix(id_lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the longest common prefix that leaves each list at least one more token: int32 [P]."""
    if not id_lists or not all(len(ids) for ids in id_lists):
        raise ValueError(
            f"{len(id_lists)} id lists, lengths {[len(ids) for ids in id_lists][:8]}; expected at least one, none empty"
        )
    # It is enough to compare the smallest and the largest list in lexicographic order, because
    # every other list is between them.
    low, high = min(id_lists, key=tuple), max(id_lists, key=tuple)
    cap = min(len(ids) for ids in id_lists) - 1
    size = next((i for i in range(cap) if low[i] != high[i]), cap)
    return np.asarray(low[:size], np.int32)


def _fitting(
    name: str, rows: Sequence[PromptRow], id_lists: list[list[int]], limit: int | None, on_long: str
) -> list[tuple[PromptRow, list[int]]]:
    """Return the rows of at most ``limit`` tokens, with their ids.

    Raise ValueError for longer rows unless ``on_long`` is 'drop', and if no row is left. The
    messages name the settings that these arguments come from.
    """
    pairs = list(zip(rows, id_lists))
    kept = pairs if limit is None else [(row, ids) for row, ids in pairs if len(ids) <= limit]
    if len(kept) < len(pairs) and on_long == "error":
        row, ids = next((row, ids) for row, ids in pairs if len(ids) > limit)
        raise ValueError(
            f"{name}: {len(pairs) - len(kept)} of {len(pairs)} prompts have more tokens than "
            f"data.max_prompt_tokens={limit}; the first has {len(ids)}: {row.named}; raise data.max_prompt_tokens, or "
            "set data.on_long=drop to leave such prompts out"
        )
    if not kept:
        raise ValueError(
            f"{name}: no prompts"
            + (f" of at most data.max_prompt_tokens={limit} tokens; raise it" if pairs else "; expected at least one")
        )
    return kept


def _check_prefix(name: str, pairs: list[tuple[PromptRow, list[int]]], head: np.ndarray) -> None:
    for row, ids in pairs:
        if len(ids) <= len(head) or not np.array_equal(ids[: len(head)], head):
            raise ValueError(
                f"{name}: the prompt of {row.named} ({len(ids)} tokens) does not begin with the "
                f"given prefix of {len(head)} tokens and go on after it; build the sets together "
                "(build_sets) or give a prefix that all share (common_prefix)"
            )
