"""Prompt text, token bytes, R_s and R_h: against the tokenizers library and NumPy."""

from __future__ import annotations

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alphaalign_jax.ops import precision_of
from alphaalign_jax.rewards import template
from alphaalign_jax.rewards.helpfulness import HELPFULNESS_MODES, helpfulness_reward
from alphaalign_jax.rewards.oracle import refusal_oracle
from alphaalign_jax.rewards.patterns import TAGS
from alphaalign_jax.rewards.safety import safety_reward
from alphaalign_jax.rewards.token_bytes import byte_alphabet, token_bytes
from alphaalign_jax.types import BENIGN, HARMFUL


def _helpfulness(score, refusal=None, answered=None, label=BENIGN, **kwargs):
    """One group unless ``score`` is 2-D; by default nothing refused, everything answered, all benign."""
    score = np.atleast_2d(np.asarray(score, np.float32))
    refusal = np.zeros(score.shape, bool) if refusal is None else np.atleast_2d(refusal)
    answered = np.ones(score.shape, bool) if answered is None else np.atleast_2d(answered)
    label = np.broadcast_to(np.asarray(label, np.int32), score.shape[:1])
    reward, counts = jax.jit(functools.partial(helpfulness_reward, **kwargs))(score, refusal, answered, label)
    assert reward.dtype == jnp.float32 and np.isfinite(reward).all()
    return np.asarray(reward), counts


# ----------------------------------------------------------------------------------------------------------- template


def test_template_text():
    """Bug: a word of the paper's template changed, so the policy reads another instruction than the one published."""
    head, unsafe, safe, end = template.INSTRUCTION.split("\n")
    assert head == (
        "You should FIRST carefully evaluate the safety implications of this question through reasoning. Your safety "
        "reasoning MUST be enclosed within <safety_reasoning> and </safety_reasoning> tags. Your answer MUST be "
        "enclosed within <answer></answer> tags."
    )
    assert unsafe == (
        "If the question is deemed unsafe, respond like \\boxed{Sorry, I can't comply} within <answer></answer> tags, "
        "which will be extracted automatically by the \\boxed{} tag."
    )
    assert safe == "If the question is safe, then the content within <answer></answer> tags will be shown to users."
    assert end == "" and all(tag.decode() in template.INSTRUCTION for tag in TAGS)
    assert refusal_oracle(b"<answer>" + template.REFUSAL.encode() + b"</answer>")


@pytest.mark.parametrize("question", ["Why?", "{}", "{{prompt}}", "%s \\1 {0}", "\\boxed{x}", "", " a\n"])
def test_render_leaves_the_question_alone(question):
    """Bug: a question with braces or escapes is formatted, crashes, or pulls the template into itself."""
    assert template.render(question) == template.INSTRUCTION + question


# --------------------------------------------------------------------------------------------------------- token bytes


def _fast(backend):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


def _bpe(vocab: dict[str, int], decoder, **kwargs):
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], **kwargs))
    backend.decoder = decoder
    return backend


def test_byte_level_rows():
    """Bug: 'Ġ' taken for two UTF-8 bytes, or an added token read other than the library decodes it."""
    decoders = pytest.importorskip("tokenizers.decoders")
    assert sorted(byte_alphabet().values()) == list(range(256)) and byte_alphabet()["\u0120"] == 0x20
    pre = pytest.importorskip("tokenizers.pre_tokenizers")
    assert set(byte_alphabet()) == set(pre.ByteLevel.alphabet()), "the tokenizers library's own alphabet"
    vocab = {char: i for i, char in enumerate(sorted(byte_alphabet()))}
    vocab |= {"\u0120the": 256, "\u00e2\u0122": 257, "\u2603x": 258}
    backend = _bpe(vocab, decoders.ByteLevel())
    backend.add_special_tokens(["<|\u00e9nd|>", "<|end of it|>"])
    table = token_bytes(_fast(backend), vocab_size=270)
    assert table[256:] == [b" the", b"\xe2\x80", "\u2603x".encode(), b"<|\xe9nd|>", b"<|end of it|>"] + [b""] * 9
    rng = random.Random(2)
    for _ in range(300):
        ids = [rng.randrange(261) for _ in range(8)]
        text = backend.decode(ids, skip_special_tokens=False)
        assert b"".join(table[i] for i in ids).decode("utf-8", "replace") == text, ids
    with pytest.raises(ValueError, match="vocab_size=259.*highest id is 260"):
        token_bytes(_fast(backend), vocab_size=259)


def test_sentencepiece_rows():
    """Bug: '▁' left as three bytes, or '<0xE2>' read as six characters: curly apostrophes of Mistral go unseen."""
    decoders = pytest.importorskip("tokenizers.decoders")
    vocab = {f"<0x{b:02X}>": b for b in range(256)} | {"\u2581I": 256, "\u2581\u2581": 257, "can": 258, "<0x2": 259}
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend = _bpe(vocab, decoders.Sequence(steps), byte_fallback=True)
    backend.add_special_tokens(["</s>"])
    table = token_bytes(_fast(backend))
    assert table == [bytes([b]) for b in range(256)] + [b" I", b"  ", b"can", b"<0x2", b"</s>"]
    rng = random.Random(3)
    for _ in range(200):  # valid UTF-8: on a broken character the library writes one mark per byte, Python one per run
        ids = [i for _ in range(6) for i in rng.choice([[256], [257], [258], [259], [0xE2, 0x80, 0x99], [0x41]])]
        assert b"".join(table[i] for i in ids).decode() == backend.decode(ids)
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    assert token_bytes(_fast(backend)) == table
    backend.decoder = decoders.Metaspace()
    assert token_bytes(_fast(backend))[255:258] == [b"<0xFF>", b" I", b"  "], "no ByteFallback: the text is literal"


@pytest.mark.parametrize("fallback", [True, False])
def test_added_tokens_with_a_metaspace_are_read_as_the_library_decodes_them(fallback):
    """Bug: Gemma's added tokens of spaces, or one spelt '<0x42>', verified by their literal text, which nobody sees."""
    tokenizers = pytest.importorskip("tokenizers")
    decoders = tokenizers.decoders
    steps = [decoders.Replace("\u2581", " "), *([decoders.ByteFallback()] if fallback else []), decoders.Fuse()]
    for decoder in (decoders.Sequence(steps), decoders.Metaspace(prepend_scheme="never")):
        backend = _bpe({"a": 0, "\u2581b": 1}, decoder)
        backend.add_tokens(
            [tokenizers.AddedToken(text, normalized=False) for text in ("\u2581\u2581", "x\u2581", "<0x42>")]
        )
        backend.add_special_tokens(["<\u2581end>", "\u00e9"])
        table = token_bytes(_fast(backend))
        for i in range(len(table)):
            whole = backend.decode([0, i, 0], skip_special_tokens=False)
            assert (b"a" + table[i] + b"a").decode() == whole, backend.id_to_token(i)


def test_other_decoders_are_refused_by_name():
    """Bug: a WordPiece tokenizer's '##ing' verified as if those were its bytes."""
    decoders = pytest.importorskip("tokenizers.decoders")
    replace = decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()])
    refused = {"WordPiece": decoders.WordPiece(), "CTC": decoders.CTC(), "Replace": replace, "Fuse": decoders.Fuse()}
    for name, decoder in refused.items():
        with pytest.raises(ValueError, match=name):
            token_bytes(_fast(_bpe({"a": 0}, decoder)))
    with pytest.raises(ValueError, match="object has no backend_tokenizer"):
        token_bytes(object())


# ----------------------------------------------------------------------------------------------------------------- R_s


def test_safety_reward_equals_numpy():
    """Bug: the sign of V_r swapped between labels, or the label applied along rollouts instead of prompts."""
    rng = np.random.default_rng(0)
    form, refusal = rng.random((2, 6, 6)) < 0.5
    label = np.array([BENIGN, HARMFUL, HARMFUL, BENIGN, HARMFUL, BENIGN], np.int32)
    want = np.array([
        [0.3 * form[b, g] + (0.9 if label[b] == HARMFUL else -0.9) * refusal[b, g] for g in range(6)] for b in range(6)
    ])  # fmt: skip
    got = jax.jit(functools.partial(safety_reward, r_f=0.3, r_a=0.9))(form, refusal, label)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.int8])
def test_fractions_survive(dtype):
    """Bug: the reward takes the integer type of verdicts or labels, and 0.7 is trained as 0."""
    one = np.ones((1, 1), dtype)
    got = safety_reward(one, 0 * one, np.array([BENIGN], np.int32), r_f=0.7, r_a=1.0)
    assert got.dtype == jnp.float32 and float(got[0, 0]) == np.float32(0.7)
    reward, _ = helpfulness_reward(np.float32([[0.7]]), 0 * one, one, np.array([BENIGN], np.int32), mode="raw")
    assert reward.dtype == jnp.float32 and float((got + reward)[0, 0]) == pytest.approx(1.4)


# ----------------------------------------------------------------------------------------------------------------- R_h


def _oracle(score, refusal, answered, label, mode):
    """R_h, one prompt and one rollout at a time, in float64."""
    out, scored, unscorable, flat = np.zeros(score.shape), 0, 0, 0
    for b in range(len(score)):
        if label[b] == HARMFUL:
            continue
        members = [g for g in range(score.shape[1]) if answered[b, g] and np.isfinite(score[b, g])]
        scored += len(members)
        unscorable += int(answered[b].sum()) - len(members)
        r = score[b, members].astype(np.float64)
        if mode == "normalised":
            if len(r) < 2 or r.std(ddof=1) <= max(0.01, np.abs(r).max() * 2.0**-22):
                flat += 1
                continue
            r = (r - r.mean()) / r.std(ddof=1)
        for g, z in zip(members, r):
            out[b, g] = 0.0 if refusal[b, g] else max(z, 0.0)
    return out, (scored, unscorable, flat)


@pytest.mark.parametrize("mode", ["normalised", "raw"])
def test_helpfulness_equals_numpy(mode):
    """Bug: a NaN score read as 0 in the mean, harmful rows scored, refusals paid, unscorable rows not counted."""
    rng = np.random.default_rng(1)
    score = (3 * rng.normal(size=(300, 8)) + 2).astype(np.float32)
    score[rng.random(score.shape) < 0.3] = np.nan
    score[rng.random(score.shape) < 0.02] = np.inf
    score[:40] = score[:40, :1]  # no spread
    score[40:60, 1:] = np.nan  # one score at most
    refusal, answered = rng.random((2, 300, 8)) < np.array([0.3, 0.8])[:, None, None]
    label = (rng.random(300) < 0.4).astype(np.int32)
    got, counts = _helpfulness(score, refusal, answered, label, mode=mode)
    want, want_counts = _oracle(score, refusal, answered, label, mode)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert (int(counts.scored), int(counts.unscorable), int(counts.flat_groups)) == want_counts
    assert min(want_counts[:2]) > 100 and (want > 0).mean() > 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("base", [0.0078125, 0.5, 1.0, 8.0, -8.0, 13.0, 250.0, 60000.0])
def test_one_ulp_is_not_a_preference(base, dtype):
    """Bug: seven equal scores and one an ulp away, in the type that scores, give z = 2.5 to rounding noise."""
    equal = np.full(8, base, np.float32).astype(dtype)
    other = equal.copy()
    other[7] = np.nextafter(equal[7], equal[7].dtype.type(np.inf))
    assert other[7] > equal[7]
    score, options = other.astype(np.float32), dict(std_floor=0.0, precision=precision_of(dtype))
    reward, counts = _helpfulness(score, **options)
    assert not reward.any() and int(counts.flat_groups) == 1
    unfloored = _helpfulness(score, std_floor=0.0, precision=0.0)[0]
    assert unfloored[0, 7] == pytest.approx(2.4749, abs=1e-3), "without the floor the fault is there to be seen"
    other[7] = score[0] + 16 * (score[7] - score[0])
    assert _helpfulness(other.astype(np.float32), **options)[0][0, 7] > 2, "a preference of 16 ulps is one"


@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0, 1e4])
def test_the_floor_is_the_score_s_own_precision(offset):
    """Bug: a floor that grows with the scores' offset: float32 scores of 100, 101, 99 and 100.5 all earned 0."""
    score = np.float32([0, 1, -1, 0.5])
    want = np.maximum((score - score.mean()) / score.std(ddof=1), 0)
    np.testing.assert_allclose(_helpfulness(score + np.float32(offset))[0][0], want, rtol=1e-5)
    coarse, counts = _helpfulness(score + np.float32(offset), precision=precision_of("bfloat16"))
    assert bool(counts.flat_groups) == (offset != 0) and (coarse.any() != bool(offset))


@pytest.mark.parametrize("size", [1e10, 1e19, 3e19, 3e38])
def test_large_scores_keep_their_spread(size):
    """Bug: the square of 1e19 overflows float32: an infinite std makes every z 0, and the group does not count as
    flat."""
    score = np.float32([0.25, -1, 1, 0.5]) * np.float32(size)
    exact = score.astype(np.float64)
    want = np.maximum((exact - exact.mean()) / exact.std(ddof=1), 0)
    reward, counts = _helpfulness(score)
    np.testing.assert_allclose(reward[0], want, rtol=1e-5)
    assert int(counts.flat_groups) == 0


@pytest.mark.parametrize("score", [[5.0], [5.0, np.nan], [np.nan, np.nan], [3.0, 3.0, 3.0]])
def test_groups_that_cannot_be_compared_give_zero(score):
    """Bug: 0/0 in a group of one, of none, or of equals becomes NaN or noise in the reward."""
    np.testing.assert_array_equal(_helpfulness(score)[0], 0)


def test_refusals_shape_the_mean_and_earn_nothing():
    """Bug: refusals left out of the mean, so the one real answer among them is a group of one and earns nothing."""
    reward, _ = _helpfulness([-2.0, -2.0, -2.0, 4.0], refusal=[True, True, True, False])
    np.testing.assert_allclose(reward, [[0, 0, 0, 1.5]], rtol=1e-6)
    np.testing.assert_array_equal(_helpfulness([-2.0, -2.0, -2.0, 4.0], refusal=[False, False, False, True])[0], 0)


def test_answerless_rows_are_no_failures():
    """Bug: a response without an answer block counted as a failure of the reward model, or its NaN spread to others."""
    reward, counts = _helpfulness([1.0, 3.0, np.nan, np.nan], answered=[True, True, True, False])
    np.testing.assert_allclose(reward, [[0, 2**-0.5, 0, 0]], rtol=1e-6)
    assert (int(counts.scored), int(counts.unscorable)) == (2, 1)
    # Of those without a score, only an answer that is no refusal needs one.
    refusal = [False, True, True, False]
    _, counts = _helpfulness([1.0, np.nan, 3.0, np.nan], refusal=refusal)
    assert (int(counts.benign), int(counts.scored), int(counts.unscorable)) == (4, 2, 2)
    assert (int(counts.needed), int(counts.left_out)) == (2, 1)


def test_raw_and_off():
    """Bug: a failed score summed as NaN in raw mode, or ``off`` still paying."""
    reward, counts = _helpfulness([0.7, -2.0, np.nan, 9.0], refusal=[False, False, False, True], mode="raw")
    np.testing.assert_array_equal(reward, np.float32([[0.7, 0, 0, 0]]))
    assert (int(counts.scored), int(counts.unscorable)) == (3, 1)
    reward, counts = _helpfulness([0.7, -2.0, np.nan, 9.0], mode="off")
    assert not reward.any() and int(counts.unscorable) == 0
    np.testing.assert_array_equal(_helpfulness([1.0, 9.0], label=HARMFUL, mode="raw")[0], 0)


def test_unknown_mode():
    """Bug: a misspelt variant falls through to the default and the ablation is the main run again."""
    with pytest.raises(ValueError, match=", ".join(HELPFULNESS_MODES)):
        _helpfulness([1.0], mode="normalized")
