"""V_f and V_r on device: exact on token ids.

Both are finite machines over the response's bytes (arXiv 2507.14987, section on verifiable rewards), lifted to the
vocabulary in ``automaton``. They read completion tokens only, below ``length``; a stop id gives no bytes where it ended
the response, and its literal text anywhere else. ``oracle`` holds the same rules as Python regular expressions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax.rewards.automaton import ByteMachine, TokenAutomaton
from alphaalign_jax.rewards.oracle import FORMAT_MODES
from alphaalign_jax.rewards.patterns import ANSWER_CLOSE, ANSWER_OPEN, PAPER_PATTERNS, TAGS, spellings
from alphaalign_jax.types import Array, Finish

NO_ANSWER, ANSWER, REFUSAL = 0, 1, 2  # what the answer machine says
_SPACE = b" \t\n\r\x0b\x0c"
_DEAD = "dead"


@flax.struct.dataclass
class Verdict:
    """What the verifiers say of each response; all bool [...]."""

    format: Array  # V_f
    refusal: Array  # V_r
    answered: Array  # there is an answer block with more than white space in it: something a reward model can read


@flax.struct.dataclass
class Verifiers:
    """The two automata and what they need to read a response. A pytree: pass it to jitted functions as an argument."""

    format_automaton: TokenAutomaton
    answer_automaton: TokenAutomaton
    stop_ids: Array  # int32 [E]
    needs_stop: bool = flax.struct.field(pytree_node=False)  # strict: a truncated response never passes

    @classmethod
    def build(
        cls,
        token_bytes: Sequence[bytes],
        stop_ids: Collection[int],
        format_mode: str = "strict",
        patterns: Sequence[str] = PAPER_PATTERNS,
    ) -> Verifiers:
        """Builds the tables on the host (seconds for a vocabulary of 150k).

        Args:
            token_bytes: id -> bytes, one per row of the model's vocabulary.
            stop_ids: the ids that end a response, the sampler's own set.
            format_mode: ``strict`` or ``paper``.
            patterns: refusal phrases; an apostrophe stands for the straight and the curly one.

        Raises ValueError for an unknown mode, an empty or out-of-range stop set, or a blank pattern.
        """
        if format_mode not in FORMAT_MODES:
            raise ValueError(f"format_mode={format_mode!r}; valid: {', '.join(FORMAT_MODES)}")
        stops = sorted({int(stop) for stop in stop_ids})
        if not stops or stops[0] < 0 or stops[-1] >= len(token_bytes):
            raise ValueError(
                f"stop_ids={stops}: give at least one id below the vocabulary size {len(token_bytes)}, the same set "
                f"that the sampler stops on"
            )
        return cls(
            format_automaton=TokenAutomaton.build(format_machine(format_mode), token_bytes),
            answer_automaton=TokenAutomaton.build(answer_machine(spellings(patterns)), token_bytes),
            stop_ids=np.array(stops, np.int32),
            needs_stop=format_mode == "strict",
        )

    def judge(self, tokens: Array, length: Array, finish: Array) -> Verdict:
        """All verdicts, each automaton run once. tokens int32 [..., T]; length, finish int32 [...]."""
        live = self._live(tokens, length, finish)
        form = self.format_automaton.run(tokens, live) == 1
        answer = self.answer_automaton.run(tokens, live)
        return Verdict(
            format=form & (finish == Finish.STOP) if self.needs_stop else form,
            refusal=answer == REFUSAL,
            answered=answer != NO_ANSWER,
        )

    def format(self, tokens: Array, length: Array, finish: Array) -> jax.Array:
        """V_f, bool [...]. Shapes as in ``judge``, which gives all three for one reading."""
        return self.judge(tokens, length, finish).format

    def refusal(self, tokens: Array, length: Array, finish: Array) -> jax.Array:
        """V_r, bool [...]. False without a closed answer block."""
        return self.judge(tokens, length, finish).refusal

    def answered(self, tokens: Array, length: Array, finish: Array) -> jax.Array:
        """Is there an answer to score? bool [...]."""
        return self.judge(tokens, length, finish).answered

    def _live(self, tokens: Array, length: Array, finish: Array) -> jax.Array:
        """bool [..., T]: the slots whose bytes count."""
        # An empty row reads slot 0 here; the answer does not matter, it has no live slot either way.
        last = jnp.take_along_axis(jnp.asarray(tokens), jnp.maximum(length - 1, 0)[..., None], axis=-1)
        ended = (finish == Finish.STOP) & jnp.any(last == self.stop_ids, axis=-1)
        return jnp.arange(tokens.shape[-1]) < (length - ended)[..., None]


def format_machine(mode: str) -> ByteMachine:
    """The byte machine of V_f; output 1 where the text passes. Whether it stopped is not the machine's to know."""
    return _strict_machine() if mode == "strict" else _paper_machine()


def _paper_machine() -> ByteMachine:
    """The four tags found one after the other: what the searched regex with ``.*`` between them asks for.

    State: (tags found, bytes of the next one matched so far).
    """

    beginnings = [_beginnings([tag]) for tag in TAGS]

    def step(state: tuple[int, bytes], byte: int) -> tuple[int, bytes]:
        found, held = state
        if found == len(TAGS):
            return state
        held = _longest_end(held + bytes([byte]), beginnings[found])
        return (found + 1, b"") if held == TAGS[found] else (found, held)

    return ByteMachine((0, b""), step, lambda state: int(state[0] == len(TAGS)))


def _strict_machine() -> ByteMachine:
    """White space, reasoning block, white space, answer block, white space, and nothing else.

    State: (stage, held, ink). Stages 0, 2, 4 are gaps, 1 and 3 the insides of blocks; TAGS[stage] ends a stage.
    ``held`` is what may turn out to be a tag. ``ink``: this block holds a byte that is not white space and not a tag's.
    """

    beginnings = _beginnings(TAGS)

    def gap(stage: int, held: bytes, byte: bytes) -> object:
        held += byte
        if stage < len(TAGS) and TAGS[stage].startswith(held):
            return (stage + 1, b"", False) if held == TAGS[stage] else (stage, held, False)
        return (stage, b"", False) if held in _SPACE and len(held) == 1 else _DEAD

    def inside(stage: int, held: bytes, ink: bool, byte: bytes) -> object:
        held += byte
        if held in TAGS:
            return (stage + 1, b"", False) if held == TAGS[stage] and ink else _DEAD
        kept = _longest_end(held, beginnings)
        spilled = held[: len(held) - len(kept)]
        return stage, kept, ink or bool(spilled.strip(_SPACE))

    def step(state: object, byte: int) -> object:
        if state == _DEAD:
            return _DEAD
        stage, held, ink = state
        return inside(stage, held, ink, bytes([byte])) if stage % 2 else gap(stage, held, bytes([byte]))

    return ByteMachine((0, b"", False), step, lambda state: int(state != _DEAD and state[0] == len(TAGS)))


def answer_machine(phrases: Sequence[bytes]) -> ByteMachine:
    """The byte machine of V_r: a search for any of ``phrases`` within the answer block.

    Output: ``NO_ANSWER`` (no block, unclosed, or only white space in it), ``ANSWER`` or ``REFUSAL``.

    States: ("before", held) while the opening tag is looked for; ("inside", said, close, held, pending);
    ("done", said). ``held`` is the longest end of the block that begins a phrase (Aho and Corasick 1975), ``close`` the
    bytes of the closing tag matched so far. A phrase that ends within those bytes is only ``pending``: if they do
    become the tag, they were never part of the block. For the same reason they count as text only once they turn out
    not to be the tag.
    """
    phrases = tuple(phrases)
    of_phrases, of_open, of_close = _beginnings(phrases), _beginnings([ANSWER_OPEN]), _beginnings([ANSWER_CLOSE])

    def inside(said: int, close: bytes, held: bytes, pending: bool, byte: bytes) -> tuple:
        grown = _longest_end(close + byte, of_close)
        if grown == ANSWER_CLOSE:
            return "done", said
        if len(grown) != len(close) + 1:  # what was held of a tag, and this byte unless it opens one, is text
            text = (close + byte)[: len(close) + 1 - len(grown)]
            said = REFUSAL if pending else max(said, ANSWER if text.strip(_SPACE) else NO_ANSWER)
            pending = False
        if said == REFUSAL:
            return "inside", REFUSAL, grown, b"", False
        held = _longest_end(held + byte, of_phrases)
        if held.endswith(phrases):
            said, pending = (said, True) if grown else (REFUSAL, False)
        return "inside", said, grown, held if said != REFUSAL else b"", pending

    def step(state: tuple, byte: int) -> tuple:
        if state[0] == "before":
            held = _longest_end(state[1] + bytes([byte]), of_open)
            return ("inside", NO_ANSWER, b"", b"", False) if held == ANSWER_OPEN else ("before", held)
        return inside(*state[1:], bytes([byte])) if state[0] == "inside" else state

    return ByteMachine(("before", b""), step, lambda state: state[1] if state[0] == "done" else NO_ANSWER)


def _beginnings(words: Sequence[bytes]) -> frozenset[bytes]:
    """Every string that begins one of ``words``, the empty one and the words themselves included."""
    return frozenset({b""}.union(word[:end] for word in words for end in range(1, len(word) + 1)))


def _longest_end(text: bytes, beginnings: frozenset[bytes]) -> bytes:
    """The longest end of ``text`` that is one of ``beginnings``."""
    while text not in beginnings:
        text = text[1:]
    return text
