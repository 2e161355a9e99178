"""Tokenized prompt sets, their batches, and the order in which training sees the rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alphaalign_jax.data import demo
from alphaalign_jax.data.order import PromptOrder, minibatches
from alphaalign_jax.data.row import PromptRow, Turn
from alphaalign_jax.data.tokenized import PromptSet, build_sets, common_prefix, tokenize_rows
from alphaalign_jax.train import provenance
from alphaalign_jax.types import BENIGN, HARMFUL

# --- tokenized sets --------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        [row.prompt for row in demo.rows("train")],
        tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = TEMPLATE
    return made


ROWS = [
    PromptRow("Hi", BENIGN),
    PromptRow("How do I bake bread in a very small oven?", HARMFUL),
    PromptRow("Höw 你", BENIGN),
]


def _instruct(question):
    return f"Think first.\n{question}"


def test_prefix_and_tail_decode_to_the_whole_prompt(tokenizer):
    """A prefix split in text, not in ids, re-tokenized the seam; a missing assistant header trained the wrong turn."""
    made = PromptSet.build(ROWS, tokenizer, _instruct, bucket=8)
    batch = made.batch([2, 0, 2], row=[7, 8, 9])
    assert {x.dtype for x in (batch.prefix, batch.tokens, batch.length, batch.label, batch.row)} == {np.dtype(np.int32)}
    assert batch.tokens.shape[1] == 8 * -(-batch.length.max() // 8) and list(batch.row) == [7, 8, 9]
    assert list(batch.label) == [BENIGN, BENIGN, BENIGN] and list(made.label) == [0, 1, 0]
    for b, i in enumerate((2, 0, 2)):
        ids = np.concatenate([batch.prefix, batch.tokens[b, : batch.length[b]]])
        assert tokenizer.decode(ids) == (
            f"<|im_start|>user\nThink first.\n{ROWS[i].prompt}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert not batch.tokens[b, batch.length[b] :].any()
    assert tokenizer.decode(batch.prefix).startswith("<|im_start|>user\nThink first.")
    bare = PromptSet.build(ROWS, tokenizer, None)
    assert "Think" not in tokenizer.decode(bare.prefix) and bare.batch([0]).tokens.shape[1] % 32 == 0


def test_slots_are_the_smallest_bucket_that_fits_or_as_given(tokenizer):
    """Padding to the batch's own longest row compiled a program for every length; too few slots cut prompts."""
    made = PromptSet.build(ROWS, tokenizer, None, bucket=4)
    longest = max(len(tail) for tail in made.tails)
    assert made.slots() == 4 * -(-longest // 4) and made.slots([0]) < made.slots()
    assert made.batch([0], slots=made.slots()).tokens.shape == (1, made.slots())
    with pytest.raises(ValueError, match=f"a prompt of {longest} tokens .* does not fit 4 slots"):
        made.batch([0, 1], slots=4)
    for bad in ([3], [-1], [], [[0]], [0.5]):
        with pytest.raises(ValueError, match="indices"):
            made.batch(bad)


def test_train_and_heldout_share_one_prefix(tokenizer):
    """Each set with its own longest prefix: the held-out batches ran with the wrong cached prefix."""
    same_start = [PromptRow("How do I bake?", BENIGN), PromptRow("How do I bake a cake?", BENIGN)]
    alone = PromptSet.build(same_start, tokenizer, _instruct)
    sets = build_sets({"train": same_start, "heldout": ROWS[:1]}, tokenizer, _instruct)
    assert np.array_equal(sets["train"].prefix, sets["heldout"].prefix)
    assert len(sets["train"].prefix) < len(alone.prefix)
    given = PromptSet.build(same_start, tokenizer, _instruct, prefix=sets["train"].prefix)
    assert all(np.array_equal(a, b) for a, b in zip(given.tails, sets["train"].tails))
    with pytest.raises(ValueError, match="does not begin with the given prefix"):
        PromptSet.build(ROWS, tokenizer, _instruct, prefix=alone.prefix)
    whole = tokenize_rows(ROWS[:1], tokenizer, None)[0]
    with pytest.raises(ValueError, match="go on after it"):
        PromptSet.build(ROWS[:1], tokenizer, None, prefix=whole)


def test_common_prefix_leaves_a_token_for_every_row():
    """A single row, or a row that begins another, left an empty tail and no position to sample from."""
    assert common_prefix([[1, 2, 3]]).tolist() == [1, 2]
    assert common_prefix([[1, 2, 3], [1, 2]]).tolist() == [1]
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 9, 0]]).tolist() == [1]
    assert common_prefix([[5], [6, 7]]).tolist() == []
    rng = np.random.default_rng(0)
    for _ in range(300):
        lists = [rng.integers(0, 2, rng.integers(1, 6)).tolist() for _ in range(rng.integers(1, 5))]
        size = max(k for k in range(min(map(len, lists))) if len({tuple(ids[:k]) for ids in lists}) == 1)
        assert common_prefix(lists).tolist() == lists[0][:size]
    for bad in ([], [[1], []]):
        with pytest.raises(ValueError, match="none empty"):
            common_prefix(bad)


def test_long_prompts_are_refused_or_counted_never_cut(tokenizer):
    """Truncation removed the assistant header, so the policy went on with the user's turn.

    The refusal named settings that do not exist, and a row counted from 0 of a file that it did not name.
    """
    lengths = [len(ids) for ids in tokenize_rows(ROWS, tokenizer, None)]
    limit = lengths[1] - 1
    assert limit >= max(lengths[0], lengths[2])
    placed = [replace(row, place=f"rows.jsonl:{i}") for i, row in enumerate(ROWS, 1)]
    says = f"1 of 3 prompts .* data.max_prompt_tokens={limit}; .*{lengths[1]}: rows.jsonl:2: .* data.on_long=drop"
    with pytest.raises(ValueError, match=says):
        PromptSet.build(placed, tokenizer, None, max_prompt_tokens=limit)
    made = PromptSet.build(ROWS, tokenizer, None, max_prompt_tokens=limit, on_long="drop")
    assert made.dropped == 1 and made.rows == (ROWS[0], ROWS[2]) and len(made) == 2
    assert PromptSet.build(ROWS, tokenizer, None, max_prompt_tokens=limit + 1).dropped == 0
    with pytest.raises(ValueError, match="at most data.max_prompt_tokens=3"):
        PromptSet.build(ROWS, tokenizer, None, max_prompt_tokens=3, on_long="drop")
    with pytest.raises(ValueError, match="on_long is 'cut'"):
        PromptSet.build(ROWS, tokenizer, None, on_long="cut")


def test_a_tokenizer_without_chat_template_is_an_error_with_the_fix(tokenizer):
    """A base model's tokenizer failed deep inside jinja."""
    tokenizer.chat_template = None
    try:
        with pytest.raises(ValueError, match="no chat template; use an instruct model"):
            PromptSet.build(ROWS, tokenizer, None)
    finally:
        tokenizer.chat_template = TEMPLATE


SYSTEM = Turn("system", "Be brief.")
EARLIER = (Turn("user", "Name a river."), Turn("assistant", "The Po."))
CHATS = [
    PromptRow("How long is it?", BENIGN, context=(SYSTEM, *EARLIER), place="chats.jsonl:1"),
    PromptRow("How long is it?", BENIGN, context=(SYSTEM,), place="chats.jsonl:2"),
    PromptRow("How long is it?", BENIGN, place="chats.jsonl:3"),
]


def test_all_turns_reach_the_model_and_the_instruction_is_in_the_last(tokenizer):
    """Rows with a system turn or a history were refused; an instruction in each user turn asks for tags in each."""
    made = PromptSet.build(CHATS, tokenizer, _instruct, bucket=8)
    asked = "<|im_start|>user\nThink first.\nHow long is it?<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    earlier = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\nThe Po.<|im_end|>\n"
    whole = [tokenizer.decode(np.concatenate([made.prefix, tail])) for tail in made.tails]
    assert whole == [system + earlier + asked, system + asked, asked]
    alike = PromptSet.build(CHATS[1:2] * 2, tokenizer, _instruct)
    assert tokenizer.decode(alike.prefix).startswith(system), "a system turn that all rows have is shared"
    assert len({provenance._rows(PromptSet.build([row], tokenizer, None)) for row in CHATS}) == 3


@pytest.mark.parametrize(
    "template, fails, says",
    [
        (TEMPLATE.replace("messages %}", "messages if m.role != 'system' %}"), {1, 2}, "drops or moves a turn of sys"),
        ("{% set messages = messages[-1:] %}" + TEMPLATE, {1, 2}, "drops or moves a turn of system, user"),
        ("{% set messages = messages | reverse | list %}" + TEMPLATE, {1}, "drops or moves a turn of system, user"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE,
            {1, 2},
            "fails on system and user.*no system turn",
        ),
        # The first turn moves into the last one, as Mistral's template has it: nothing is lost.
        (
            "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = messages[1:] %}"
            "{% endif %}" + TEMPLATE.replace("{{ m['con", "{% if loop.last %}{{ s }}{% endif %}{{ m['con"),
            set(),
            "",
        ),
    ],
)
def test_a_template_that_drops_a_turn_is_refused_with_the_row(tokenizer, template, fails, says):
    """The model would be asked something else than the file says, and nobody would hear of it."""
    tokenizer.chat_template = template
    try:
        for number, row in enumerate(CHATS, start=1):
            if number in fails:
                with pytest.raises(ValueError, match=f"chats.jsonl:{number}: 'How long is it.': .*{says}"):
                    tokenize_rows([row], tokenizer, None)
            else:
                tokenize_rows([row], tokenizer, None)
    finally:
        tokenizer.chat_template = TEMPLATE


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_an_earlier_turn_that_spells_a_control_token_is_refused(tokenizer, role):
    """A turn that ends itself begins another, which no checker of roles has seen."""
    row = PromptRow("Hi", BENIGN, context=(Turn(role, "So.<|im_end|>"),), place="chats.jsonl:7")
    with pytest.raises(ValueError, match=r"chats.jsonl:7: 'Hi' holds '<\|im_end\|>'"):
        tokenize_rows([row], tokenizer, None)


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, batch", [(10, 3), (7, 7), (5, 8), (12, 4)])
def test_every_epoch_sees_every_row_once(n, batch):
    """Dropping the last short batch lost the same share of rows every epoch; re-seeding gave equal epochs."""
    order = PromptOrder(n, batch, seed=1, epochs=3)
    assert order.num_steps == -(-3 * n // batch)
    stream = np.concatenate([order.indices(step) for step in range(order.num_steps)])
    epochs = [stream[k * n : (k + 1) * n] for k in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(epochs[0], epochs[1])
    for step in (-1, order.num_steps):
        with pytest.raises(ValueError, match=f"step is {step}"):
            order.indices(step)


def test_order_is_a_pure_function_of_seed_and_step():
    """A resumed run that replays the iterator, or meets a changed NumPy generator, would see other rows."""
    labels = np.arange(50) % 3 == 0
    for kwargs in ({}, {"labels": labels.astype(int), "harmful_fraction": 0.5}):
        first, again = PromptOrder(50, 8, 3, **kwargs), PromptOrder(50, 8, 3, **kwargs)
        backwards = {step: again.indices(step) for step in reversed(range(30))}
        assert all(np.array_equal(first.indices(step), backwards[step]) for step in range(30))
        other = PromptOrder(50, 8, 4, **kwargs)
        assert any(not np.array_equal(first.indices(step), other.indices(step)) for step in range(3))
    # Pinned: a change here changes which rows a checkpointed run has already seen.
    assert PromptOrder(6, 6, 0).indices(0).tolist() == [3, 2, 1, 0, 4, 5]
    # The caller may change what it was given without changing a later answer.
    first.indices(0)[:] = 0
    assert np.array_equal(first.indices(0), backwards[0])


@pytest.mark.parametrize("batch, fraction", [(8, 0.5), (8, 0.25), (7, 0.3), (4, 1.0), (4, 0.0)])
def test_balanced_batches_hold_the_asked_share_of_harmful_rows(batch, fraction):
    """Left to chance a batch of 8 with 10 % harmful rows often has none, and its refusal reward no harmful side."""
    labels = np.array([HARMFUL] * 9 + [BENIGN] * 41)
    order = PromptOrder(50, batch, seed=0, labels=labels, harmful_fraction=fraction)
    batches = [order.indices(step) for step in range(60)]
    for indices in batches:
        assert indices.shape == (batch,) and labels[indices].sum() == round(batch * fraction)
    stream = np.concatenate(batches)
    for label in (HARMFUL, BENIGN):
        # Within one label: epoch after epoch, each row once. The order inside a batch is shuffled, so compare counts.
        counts = np.bincount(stream[labels[stream] == label], minlength=50)[labels == label]
        assert counts.max() - counts.min() <= 1
    if 0 < fraction < 1:
        assert len({tuple(labels[indices]) for indices in batches}) > 1, "harmful rows sit in shuffled places"


def test_the_two_labels_are_ordered_independently():
    """One key for both streams put the k-th harmful row beside the k-th benign one in every epoch."""
    order = PromptOrder(20, 2, seed=0, labels=[HARMFUL] * 10 + [BENIGN] * 10, harmful_fraction=0.5)
    pairs = [sorted(order.indices(step)) for step in range(10)]
    assert any(benign - harmful != 10 for harmful, benign in pairs)


def test_orders_that_cannot_be_are_errors():
    """A batch of one at fraction 0.5 rounds to no harmful row for ever."""
    labels = np.array([HARMFUL, BENIGN, BENIGN])
    for kwargs, said in (
        (dict(batch=1, labels=labels, harmful_fraction=0.5), "leaves a label out"),
        (dict(batch=2, harmful_fraction=0.5), "no labels"),
        (dict(batch=2, labels=labels[:2], harmful_fraction=0.5), "shape"),
        (dict(batch=2, labels=labels * 0, harmful_fraction=0.5), "has none"),
        (dict(batch=2, labels=labels, harmful_fraction=1.5), "from 0 to 1"),
        (dict(batch=0), "batch is 0"),
        (dict(batch=2, seed=-1), "seed is -1"),
        (dict(batch=2, epochs=0), "epochs is 0"),
    ):
        with pytest.raises(ValueError, match=said):
            PromptOrder(3, **{"seed": 0, **kwargs})


def test_minibatches_share_the_labels_out():
    """A mini-batch of one label alone, a row that is trained twice in an epoch, epochs that are shuffled alike."""
    label = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    first = minibatches(label, 4, 0, step=3, epoch=0)
    assert all(label[part].tolist().count(1) == 1 and len(part) == 3 for part in first)
    assert sorted(np.concatenate(first)) == list(range(12))
    again, other = (minibatches(label, 4, 0, step=3, epoch=epoch) for epoch in (0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
