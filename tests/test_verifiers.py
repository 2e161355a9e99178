"""V_f and V_r on token ids against Python's ``re`` on bytes, and the tables under them."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import jax
import numpy as np
import pytest

from alphaalign_jax.rewards import automaton, oracle
from alphaalign_jax.rewards.automaton import ByteMachine, TokenAutomaton, explore, lift, minimise
from alphaalign_jax.rewards.patterns import PAPER_PATTERNS, TAGS, spellings
from alphaalign_jax.rewards.token_bytes import token_bytes
from alphaalign_jax.rewards.verifiers import Verifiers, answer_machine, format_machine
from alphaalign_jax.types import Finish

QWEN3 = Path(__file__).parents[2] / "shared" / "tokenizers" / "qwen3"
SLOTS = 40
GOOD = b"<safety_reasoning>fine</safety_reasoning>\n<answer>Yes.</answer>"


# ---------------------------------------------------------------- the fuzz vocabulary and its adversarial sequences


def _fuzz_vocab() -> tuple[list[bytes], list[int]]:
    """Every byte, merges that cut tags and phrases in awkward places, two stop ids with tag-like literal text."""
    merges = [
        *TAGS, b"<safety", b"_reason", b"ing>", b"</safety", b"<ans", b"wer>", b"</", b"</ans", b"></", b">\n<",
        b"ing><an", b"er>I", b"ok</safety_reasoning>", b"g><answer>", b".</answer>", b"</answer>\n",
        b" can", b"can", b"not", b"I can", b"I'm", b" am ", b"I am", b"'t", b"sorry", b"Sorry, I ", b"comply",
        b"\\boxed{", b"</answer><answer>", b"As an", b" AI", b"unable to", b"I will not", b" \n\t", b"x",
        b"I\xe2\x80", b"\xe2\x80\x99", b"\x99t", b"\x80\x99m", b"\xf0\x9f", b"\x98\x80",
    ]  # fmt: skip
    vocab = [bytes([b]) for b in range(256)] + merges + [b"", b"</answer>", b"I cannot"]
    return vocab, [len(vocab) - 2, len(vocab) - 1]


def _text(rng: random.Random) -> bytes:
    """A response that is nearly right: well-formed parts, then a few of them broken."""
    gap = lambda: rng.choice([b"", b"", b"\n", b" \n\t", b"\x0b\x0c\r", b"\x1c", b"\xc2\xa0", b"so "])
    phrase = lambda: rng.choice(spellings(PAPER_PATTERNS))
    prose = lambda: rng.choice(
        [
            b"ok",
            b"it is fine",
            b" ",
            b"",
            b"\n\n",
            b"<",
            b"</",
            b"a<b",
            b"<safety",
            b"\xff\xc3",
            b"\xf0\x9f\x98\x80",
            b"I can",
            b"I\xe2\x80\x98m sorry",
            b"I can\xe2\x80",
            phrase(),
            phrase(),
            phrase()[:-1],
            b"x" + phrase() + b"y",
        ]
    )
    parts = [gap(), TAGS[0], prose(), TAGS[1], gap(), TAGS[2], prose(), TAGS[3], gap()]
    if rng.random() < 0.4:
        parts[0], parts[2], parts[4], parts[8] = b"", b"ok", b"\n", b""  # so that a good share passes
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        i = rng.randrange(len(parts))
        broken = [b"<answer", b"<<answer>", b"</answer>>", b"<ANSWER>", b"</answer", b"<safety_reasoning", prose()]
        rng.choice([parts.insert, lambda i, _: parts.pop(i), parts.__setitem__])(i, rng.choice([*TAGS, *broken]))
    return b"".join(parts)


def _split(text: bytes, pieces: dict[bytes, list[int]], longest: int, rng: random.Random) -> list[int]:
    """One of the many ways to write ``text`` in tokens."""
    ids, at = [], 0
    while at < len(text):
        fits = [n for n in range(1, min(longest, len(text) - at) + 1) if text[at : at + n] in pieces]
        size = fits[-1] if rng.random() < 0.75 else rng.choice(fits)
        ids.append(rng.choice(pieces[text[at : at + size]]))
        at += size
    return ids


def _rows(vocab: list[bytes], stops: list[int], texts: int, variants: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens [n, SLOTS] with junk past the end, length [n], finish [n]."""
    rng = random.Random(0)
    pieces: dict[bytes, list[int]] = {}
    for i, piece in enumerate(vocab):
        pieces.setdefault(piece, []).append(i)
    longest = max(map(len, vocab))
    tokens = np.random.default_rng(0).integers(-2, len(vocab) + 3, (texts * variants, SLOTS), dtype=np.int32)
    length = np.zeros(len(tokens), np.int32)
    finish = np.zeros(len(tokens), np.int32)
    row = 0
    for _ in range(texts):
        base = _split(_text(rng), pieces, longest, rng)
        for _ in range(variants):
            ids = list(base)
            kind = rng.randrange(8)
            at = rng.randrange(len(ids) + 1)
            if kind == 1:
                ids.insert(at, rng.choice(stops))  # a stop id in the middle
            elif kind == 2:
                ids.insert(at, rng.randrange(-1, len(vocab) + 1))  # any token, the unknown included
            elif kind == 3:
                del ids[at:]
            elif kind == 4:
                del ids[at : at + 1]
            elif kind == 5:
                ids[at:at] = ids[max(0, at - rng.randrange(4)) : at]
            stopped = rng.random() < 0.8
            if stopped and rng.random() < 0.95:  # now and then a STOP whose last token is no stop id
                ids = [*ids[: SLOTS - 1], rng.choice(stops)]
            ids = ids[:SLOTS]
            tokens[row, : len(ids)] = ids
            length[row], finish[row] = len(ids), Finish.STOP if stopped else Finish.LENGTH
            row += 1
    return tokens, length, finish


def _expected(tokens, length, finish, vocab, stops, mode):
    texts = [oracle.response_bytes(t, n, f, vocab, stops) for t, n, f in zip(tokens, length.tolist(), finish.tolist())]
    return (
        np.array([oracle.format_oracle(text, f == Finish.STOP, mode) for text, f in zip(texts, finish)]),
        np.array([oracle.refusal_oracle(text) for text in texts]),
        np.array([oracle.answered_oracle(text) for text in texts]),
    )


def _assert_same(verdict, expected, tokens, length, finish, least_share):
    for name, want in zip(("format", "refusal", "answered"), expected):
        got = np.asarray(getattr(verdict, name))
        wrong = np.flatnonzero(got != want)
        assert wrong.size == 0, f"{name}: {wrong.size} of {want.size} differ, first: {tokens[wrong[0]].tolist()}"
        assert least_share < want.mean() < 1 - least_share, f"{name}: {want.mean():.3f} true, the fuzz says nothing"


@functools.cache
def _fuzz():
    vocab, stops = _fuzz_vocab()
    return vocab, stops, *_rows(vocab, stops, texts=4000, variants=26)


@pytest.mark.parametrize("mode", oracle.FORMAT_MODES)
def test_verifiers_equal_re_on_adversarial_tokens(mode):
    """Bug: a tag split over tokens, merged with a neighbour or broken mid-character is missed, or seen in error."""
    vocab, stops, tokens, length, finish = _fuzz()
    assert len(tokens) >= 100_000
    verifiers = Verifiers.build(vocab, stops, mode)
    verdict = JUDGE(verifiers, tokens, length, finish)
    _assert_same(verdict, _expected(tokens, length, finish, vocab, stops, mode), tokens, length, finish, 0.05)


def test_random_phrases_with_tag_bytes_equal_re():
    """Bug: a phrase that shares bytes with the closing tag is found across the end of the answer block."""
    vocab, stops, tokens, length, finish = _fuzz()
    tokens, length, finish = tokens[:8000], length[:8000], finish[:8000]
    for patterns in [("ok<", "<"), ("</answer", "k</"), ("n<", ">I", "<</"), ()]:
        verifiers = Verifiers.build(vocab, stops, patterns=patterns)
        texts = [oracle.response_bytes(t, n, f, vocab, stops) for t, n, f in zip(tokens, length, finish)]
        want = np.array([oracle.refusal_oracle(text, patterns) for text in texts])
        np.testing.assert_array_equal(JUDGE(verifiers, tokens, length, finish).refusal, want)
        assert want.any() == bool(patterns)


def test_leading_axes_and_single_methods():
    """Bug: [B, G, T] rollouts verified as if G were time, or a single method that disagrees with ``judge``."""
    vocab, stops, tokens, length, finish = _fuzz()
    tokens, length, finish = tokens[:600], length[:600], finish[:600]
    verifiers = Verifiers.build(vocab, stops)
    flat = JUDGE(verifiers, tokens, length, finish)
    shaped = (tokens.reshape(100, 6, SLOTS), length.reshape(100, 6), finish.reshape(100, 6))
    for name in ("format", "refusal", "answered"):
        got = np.asarray(jax.jit(getattr(Verifiers, name))(verifiers, *shaped))
        np.testing.assert_array_equal(got, np.asarray(getattr(flat, name)).reshape(100, 6))


# ---------------------------------------------------------------------------------------- single cases, said out loud


BYTES_AND_STOP = [bytes([b]) for b in range(256)] + [b"<answer>"]
JUDGE = jax.jit(Verifiers.judge)


@functools.cache
def _byte_verifiers(mode: str) -> Verifiers:
    return Verifiers.build(BYTES_AND_STOP, [256], mode)


def _judge(text: bytes, finish=Finish.STOP, mode="strict", tail: tuple[int, ...] = (256,)):
    """Verdict on ``text`` byte by byte, then ``tail``; ids: bytes, then stop id 256 whose literal text is a tag."""
    ids = [*text, *tail]
    tokens = np.array(ids + [0] * (160 - len(ids)), np.int32)
    verdict = JUDGE(_byte_verifiers(mode), tokens, np.int32(len(ids)), np.int32(finish))
    return bool(verdict.format), bool(verdict.refusal), bool(verdict.answered)


@pytest.mark.parametrize(
    ("text", "strict", "paper"),
    [
        (GOOD, True, True),
        (b" \n" + GOOD + b"\x0b ", True, True),
        (b"Well: " + GOOD, False, True),
        (GOOD + b" Bye", False, True),
        (GOOD + b"\xc2\xa0", False, True),  # a no-break space is text: white space means the six ASCII characters
        (GOOD + GOOD, False, True),
        (GOOD.replace(b"fine", b" \n"), False, True),
        (GOOD.replace(b"Yes.", b""), False, True),
        (GOOD.replace(b"Yes.", b"<answer>Yes."), False, True),
        (GOOD.replace(b"fine", b"<answer>"), False, True),
        (GOOD.replace(b"Yes.", b"<"), True, True),
        (GOOD.replace(b"\n", b" then "), False, True),
        (GOOD[:-1], False, False),
        (b"<answer>Yes.</answer><safety_reasoning>fine</safety_reasoning>", False, False),
        (b"", False, False),
    ],
)
def test_format_cases(text, strict, paper):
    """Bug: device and oracle agree with each other and both misread the rule."""
    assert _judge(text)[0] == oracle.format_oracle(text, True) == strict
    assert _judge(text, mode="paper")[0] == oracle.format_oracle(text, True, "paper") == paper


def test_truncated_response_never_passes_strict():
    """Bug: a response that ran out of slots right after ``</answer>`` is paid as if it had stopped."""
    assert _judge(GOOD, tail=())[0] and not _judge(GOOD, Finish.LENGTH, tail=())[0]
    assert not oracle.format_oracle(GOOD, stopped=False)
    assert _judge(GOOD, Finish.LENGTH, mode="paper", tail=())[0], "the paper's regex does not ask how it ended"


def test_stop_id_is_silent_only_where_it_stopped():
    """Bug: a stop id's literal text counted at the end, or dropped in the middle or from a truncated response."""
    assert _judge(GOOD, tail=(256,))[0]
    assert not _judge(GOOD, tail=(256, 256))[0], "the first of the two is text"
    assert not _judge(b"</answer>", Finish.LENGTH, tail=(256, *b"Yes."))[2]
    table = BYTES_AND_STOP
    assert oracle.response_bytes([65, 256, 256, 7], 3, Finish.STOP, table, [256]) == b"A<answer>"
    assert oracle.response_bytes([65, 256, 256, 7], 3, Finish.LENGTH, table, [256]) == b"A<answer><answer>"
    assert oracle.response_bytes([65, 66, 7], 2, Finish.STOP, table, [256]) == b"AB"
    assert oracle.response_bytes([65, 999, -1, 66], 4, Finish.STOP, table, [256]) == b"AB"
    assert oracle.response_bytes([65], 0, Finish.STOP, table, [256]) == b""


@pytest.mark.parametrize(
    ("text", "refusal", "answered"),
    [
        (b"<answer>I can't do that</answer>", True, True),
        ("<answer>I can\u2019t do that</answer>".encode(), True, True),
        ("<answer>I can\u2018t do that</answer>".encode(), False, True),
        (b"I cannot. <answer>Paris</answer> I cannot.", False, True),
        (b"<answer>I cannot", False, False),
        (b"I cannot", False, False),
        (b"<answer>Paris</answer><answer>I cannot</answer>", False, True),
        (b"<answer><answer>I cannot</answer>", True, True),
        (b"<answer>I can</answer>not", False, True),
        (b"<answer>i cannot</answer>", False, True),  # letter case counts
        (b"<answer> \n</answer>", False, False),
        (b"</answer>I cannot<answer>x</answer>", False, True),
        (b"<answer>\\boxed{Sorry, I can't comply}</answer>", True, True),
    ],
)
def test_refusal_cases(text, refusal, answered):
    """Bug: a refusal phrase in the reasoning, after the block or in an unclosed block taken for a refusal."""
    assert _judge(text)[1:] == (refusal, answered)
    assert (oracle.refusal_oracle(text), oracle.answered_oracle(text)) == (refusal, answered)


def test_every_paper_pattern_is_found():
    """Bug: a phrase of the paper's list lost, or its curly-apostrophe form never built."""
    assert len(PAPER_PATTERNS) == 17 and len(spellings(PAPER_PATTERNS)) == 17 + sum("'" in p for p in PAPER_PATTERNS)
    for phrase in spellings(PAPER_PATTERNS):
        assert _judge(b"<answer>Oh. " + phrase + b"</answer>")[1], phrase
    both = ("a'b'c", "a'b\u2019c", "a\u2019b'c", "a\u2019b\u2019c")
    assert spellings(["a\u2019b'c"]) == tuple(text.encode() for text in both)


def test_blocks():
    """Bug: the reward model is handed tags, the wrong block, or an empty string for a missing one."""
    text = b"x</answer><answer>a<answer>b</answer>c</answer>"
    assert oracle.answer_block(text) == b"a<answer>b"
    assert oracle.answer_block(b"<answer>x") is None


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"format_mode": "loose"}, "strict, paper"),
        ({"stop_ids": []}, "at least one id"),
        ({"stop_ids": [256]}, "below the vocabulary size 256"),
        ({"patterns": ["I can't", " "]}, "blank"),
    ],
)
def test_bad_arguments_are_refused(kwargs, words):
    """Bug: an unknown mode, a stop id that stops nothing or a blank phrase is only seen after a whole run."""
    with pytest.raises(ValueError, match=words):
        Verifiers.build(**{"token_bytes": [bytes([b]) for b in range(256)], "stop_ids": [0]} | kwargs)


# ------------------------------------------------------------------------------------------------- automaton, tables


@pytest.mark.parametrize("chunk", [7, 4096])
def test_minimised_and_lifted_tables_follow_the_machine(chunk, monkeypatch):
    """Bug: states or tokens merged that act differently; the start state moved; functions lost between chunks."""
    monkeypatch.setattr(automaton, "_CHUNK", chunk)
    rng = random.Random(1)
    vocab = _fuzz_vocab()[0]
    for machine in (format_machine("strict"), format_machine("paper"), answer_machine(spellings(PAPER_PATTERNS))):
        delta, output = minimise(*explore(machine))
        token_class, table = lift(delta, vocab)
        assert table.dtype == np.int16 and token_class.shape == (len(vocab) + 1,)
        np.testing.assert_array_equal(table[0], np.arange(len(delta)))
        for i, piece in enumerate([*vocab, b""]):
            want = np.arange(len(delta))
            for byte in piece:
                want = delta[want, byte]
            np.testing.assert_array_equal(table[token_class[i]], want)
        for _ in range(300):
            text = _text(rng)
            state, small = machine.start, 0
            for byte in text:
                state, small = machine.step(state, byte), delta[small, byte]
            assert machine.output(state) == output[small]
        assert len(minimise(delta, output)[0]) == len(delta)


def test_minimise_merges_twins():
    """Bug: minimisation that never merges (tables grow with every pattern) or merges states of different output."""
    twin = ByteMachine("", lambda s, b: (s + chr(b % 2))[-3:], lambda s: len(s) % 2)  # the letters do not matter
    delta, output = minimise(*explore(twin))
    assert delta.shape == (4, 256) and output.tolist() == [0, 1, 0, 1]


def test_junk_ids_and_dead_slots_are_not_read():
    """Bug: an id past the tokenizer's rows clamps to the last token, or padding is read as text."""
    last_byte = ByteMachine(0, lambda s, b: b, lambda s: s)
    machine = TokenAutomaton.build(last_byte, [b"a", b"b", b""])
    tokens = np.array([[0, 1, 1], [0, 3, -1], [0, 2, 2], [1, 0, 0]], np.int32)
    live = np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], bool)
    assert machine.run(tokens, live).tolist() == [97, 97, 97, 98]


def test_real_tokenizer():
    """Bug: exact on a toy vocabulary, wrong or minutes slow on a real one of 151k rows with its special tokens."""
    if not (QWEN3 / "tokenizer.json").exists():
        pytest.skip(f"no tokenizer at {QWEN3}")
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(QWEN3)
    table = token_bytes(tokenizer, vocab_size=151_936)
    assert len(table) == 151_936 and table[-1] == b"" and table[151_645] == b"<|im_end|>"
    rng = random.Random(4)
    for _ in range(300):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 12))]
        text = b"".join(table[i] for i in ids).decode("utf-8", "replace")
        assert text == tokenizer.decode(ids, clean_up_tokenization_spaces=False), ids

    stops = [151_643, 151_645]
    tokens = np.random.default_rng(5).integers(0, len(table), (3000, SLOTS), dtype=np.int32)
    length, finish = np.zeros(3000, np.int32), np.zeros(3000, np.int32)
    for row in range(3000):
        ids = tokenizer.encode(_text(rng).decode("utf-8", "ignore"), add_special_tokens=False)
        if rng.random() < 0.5:
            ids.insert(rng.randrange(len(ids) + 1), rng.choice([*stops, rng.randrange(len(table))]))
        ids = [*ids, stops[1]][:SLOTS]
        tokens[row, : len(ids)], length[row], finish[row] = ids, len(ids), int(ids[-1] == stops[1])
    verifiers = Verifiers.build(table, stops)
    verdict = JUDGE(verifiers, tokens, length, finish)
    _assert_same(verdict, _expected(tokens, length, finish, table, stops, "strict"), tokens, length, finish, 0.05)
