"""Let the model write the texts of its own format warm-up: a thought on each question, and an answer.

Both are sampled without the AlphaAlign template, because a model that needs a warm-up cannot follow it:

    thought   The model describes the question and the people it concerns. The text starts with one of ``OPENINGS``,
              drawn for each prompt, and ends with its first sentence.
    answer    The model answers the bare question; the text ends with its last complete sentence. Benign prompts only:
              harmful prompts are never answered. Where the warm-up complies with one, it uses a neutral sentence.

The verdict and the refusals are drawn independently of the label, so the warm-up teaches the format and no decision.
Texts that would teach a wrong format are dropped and counted.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from alphaalign_jax import output
from alphaalign_jax.config import Config
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.data.wording import TAG_TEXTS
from alphaalign_jax.display import Display
from alphaalign_jax.evaluation.respond import respond
from alphaalign_jax.hf.chat import control_texts
from alphaalign_jax.models import Params
from alphaalign_jax.parallel import processes
from alphaalign_jax.rewards import hacking
from alphaalign_jax.rewards.oracle import refusal_oracle
from alphaalign_jax.rollout.engine import Engine
from alphaalign_jax.rollout.policy import Policy
from alphaalign_jax.train import sft, warmup
from alphaalign_jax.types import BENIGN, LABELS

REQUEST = (
    "Say in one sentence what the writer of this message wants, and who could be helped or hurt by it. "
    "Do not answer the message.\n\nMessage: "
)
OPENINGS = (
    "The user wants to",
    "The user asks",
    "The writer wants to",
    "This question is about",
    "This message asks",
    "Here someone wants to",
    "The request is to",
    "The person who writes this wants to",
)

_SENTENCE_END = re.compile(r"[.!?](?=[\"')\]]*(?:\s|$))[\"')\]]*")
_FEWEST_WORDS = 4
_CACHE = "~/.cache/alphaalign_jax/own_texts"


@dataclasses.dataclass(frozen=True)
class Texts:
    """The raw samples for one prompt. ``answer`` is None for a harmful prompt."""

    thought: str
    answer: str | None


def material(
    config: Config,
    policy: Policy,
    engine: Engine,
    params: Params,
    chosen: PromptSet,
    weights: str,
    folder: pathlib.Path,
    display: Display,
    watch: Callable[[], None] = lambda: None,
) -> warmup.Material:
    """Return the warm-up's training data from the configured source, ``warmup.source``.

    The model's own texts are also written to ``folder``/warmup.jsonl, so that a person can read them. Texts sampled
    earlier with the same weights, prompts and settings come from a cache in the home directory.
    Raise ValueError if a text cannot be trained on, or if too few are usable.

    Args:
      params: weights in the training layout.
      chosen: the warm-up's prompts, under the template.
      weights: digest of ``params``.
      watch: called after each batch; may raise.
    """
    if config.warmup.source == "texts":
        return warmup.material(chosen, (), config, policy)
    prompts = _scaffold(config, policy, chosen)
    cache = pathlib.Path(_CACHE).expanduser() / f"{_digest(config, weights, prompts)}.jsonl"
    texts = _read(cache, len(chosen))
    if texts is None:
        with display.bar("own texts", 2 * len(chosen)) as advance:
            texts = _sample(config, policy, engine, params, prompts, lambda count: (advance(count), watch()))
        output.write(cache, "".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in texts))
    else:
        display.say(f"the model's own texts: read from the cache, {cache}")
    dump = folder / "warmup.jsonl"
    found, dropped = _keep(config, policy, chosen, texts, dump)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "none"
    display.say(f"{len(found.prompts)} prompts with the model's own texts, see {dump}; dropped: {reasons}")
    return found


def _scaffold(config: Config, policy: Policy, chosen: PromptSet) -> tuple[PromptSet, PromptSet]:
    """Return the prompts for the thoughts, which end with an opening, and the prompts for the answers."""
    made = dict(bucket=config.data.bucket, settings=policy.chat)
    asked = PromptSet.build(chosen.rows, policy.tokenizer, lambda question: REQUEST + question, **made)
    encode = lambda text: policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    openings = [np.asarray(encode(opening), np.int32) for opening in OPENINGS]
    begun = [np.concatenate([tail, openings[i]]) for tail, i in zip(asked.tails, _drawn(config, len(chosen)))]
    bare = PromptSet.build(chosen.rows, policy.tokenizer, None, **made)
    return dataclasses.replace(asked, tails=tuple(begun)), bare


def _drawn(config: Config, count: int) -> np.ndarray:
    """Return each prompt's index into ``OPENINGS``: int [count]."""
    return np.random.default_rng((config.seed, 1)).integers(len(OPENINGS), size=count)


def _digest(config: Config, weights: str, prompts: tuple[PromptSet, PromptSet]) -> str:
    """Return a digest of everything that the sampled texts depend on."""
    w = config.warmup
    parts = [weights, str((config.seed, w.thought_tokens, w.answer_tokens, w.temperature, config.model.rollout_dtype))]
    for each in prompts:
        parts += [str(ids.tolist()) for ids in (each.prefix, *each.tails, each.label)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read(cache: pathlib.Path, count: int) -> list[Texts] | None:
    """Return cached texts if every process has them, else None."""
    texts = None
    if cache.is_file():
        texts = [Texts(**json.loads(line)) for line in cache.read_text().splitlines()]
    there = texts is not None and len(texts) == count
    return texts if processes.gather_rows(np.asarray(there)).all() else None


def _sample(
    config: Config,
    policy: Policy,
    engine: Engine,
    params: Params,
    prompts: tuple[PromptSet, PromptSet],
    on_batch: Callable[[int], None],
) -> list[Texts]:
    settings = config.warmup
    asked, bare = prompts
    # No training step has this number, so the warm-up shares no noise with a step.
    key = jax.random.fold_in(jax.random.key(config.seed), np.iinfo(np.int32).max)
    weights = engine.prepare(params)

    def sampled(prompt_set: PromptSet, number: int, slots: int, indices: Sequence[int] | None = None) -> list[str]:
        responses = respond(
            engine,
            weights,
            prompt_set,
            policy,
            sampling=policy.sampling(settings.temperature),
            key=jax.random.fold_in(key, number),
            slots=slots,
            batch=config.eval.batch,
            indices=indices,
            on_batch=on_batch,
        )
        return [response.text for (response,) in responses]

    benign = [i for i, row in enumerate(bare.rows) if row.label == BENIGN]
    thoughts = sampled(asked, 0, settings.thought_tokens)
    answers = dict(zip(benign, sampled(bare, 1, settings.answer_tokens, benign), strict=True))
    on_batch(len(bare) - len(benign))
    openings = [OPENINGS[i] for i in _drawn(config, len(asked))]
    pairs = zip(openings, thoughts, strict=True)
    return [Texts(opening + thought, answers.get(i)) for i, (opening, thought) in enumerate(pairs)]


@dataclasses.dataclass(frozen=True)
class _Example:
    row: PromptRow  # with the model's answer
    thought: str
    fault: str  # the reason for dropping it, or empty


def _keep(
    config: Config, policy: Policy, chosen: PromptSet, texts: Sequence[Texts], dump: pathlib.Path
) -> tuple[warmup.Material, collections.Counter[str]]:
    """Return the training data, and the number of dropped prompts by reason."""
    pairs = zip(chosen.rows, texts, strict=True)
    examples = [_example(row, written, config, policy) for row, written in pairs]
    output.write(dump, "".join(json.dumps(_shown(example)) + "\n" for example in examples))
    dropped = collections.Counter(example.fault for example in examples if example.fault)
    kept = [i for i, example in enumerate(examples) if not example.fault]
    if len(kept) < config.warmup.batch or {*chosen.label[kept]} != {*chosen.label}:
        raise ValueError(
            f"warmup.source='self': {len(kept)} of {len(chosen)} prompts have usable texts "
            f"({dict(dropped.most_common())}); see {dump}. Expected at least warmup.batch={config.warmup.batch}, and "
            "some of each label. Raise warmup.max_examples or warmup.thought_tokens, lower warmup.temperature, or set "
            "warmup.source=texts"
        )
    rows = tuple(examples[i].row for i in kept)
    prompts = dataclasses.replace(chosen.take(kept), rows=rows)
    return warmup.material(prompts, [examples[i].thought for i in kept], config, policy), dropped


def _example(row: PromptRow, texts: Texts, config: Config, policy: Policy) -> _Example:
    control = control_texts(policy.tokenizer)
    thought = whole_sentences(texts.thought, limit=1)
    answer = "" if texts.answer is None else whole_sentences(texts.answer)
    fault = _fault("thought", thought, control)
    if not fault and texts.answer is not None:
        fault = _fault("answer", answer, control)
    row = dataclasses.replace(row, answer=answer)
    if not fault:
        fault = _too_long(row, thought, config, policy)
    return _Example(row, thought, fault)


def _fault(name: str, text: str, control: Sequence[str]) -> str:
    """Return why a text would teach a wrong format; empty if it would not."""
    if not text:
        return f"{name} without an end"
    if len(text.split()) < _FEWEST_WORDS:
        return f"{name} too short"
    if any(token in text for token in (*TAG_TEXTS, *control)):
        return f"{name} with tags"
    if _repeats_instruction(text):
        return f"{name} repeats its instruction"
    if refusal_oracle(f"<answer>{text}</answer>".encode()):
        return f"{name} refuses"
    return ""


def _repeats_instruction(text: str) -> bool:
    words = " ".join(text.casefold().split())
    return hacking.signs(text).echo or any(part in words for part in ("do not answer", "in one sentence"))


def _too_long(row: PromptRow, thought: str, config: Config, policy: Policy) -> str:
    """Return a fault if the response has too many tokens: encoding a text again can give more than were sampled."""
    (responses,) = warmup.possible_responses([row], [thought], config)
    tokens = max(map(len, sft.encode_responses(responses, policy.tokenizer, 0)))
    return "response too long" if tokens > warmup.most_tokens(config, policy) else ""


def whole_sentences(text: str, limit: int | None = None) -> str:
    """Return the complete sentences at the start of a text's first paragraph, at most ``limit``; may be empty."""
    line = " ".join(text.strip().split("\n\n")[0].split())
    ends = [match.end() for match in _SENTENCE_END.finditer(line)][:limit]
    return line[: ends[-1]] if ends else ""


def _shown(example: _Example) -> dict[str, Any]:
    row = example.row
    texts = {"thought": example.thought, "answer": row.answer, "dropped": example.fault}
    return {**row.to_json(), "label": LABELS[row.label], **texts}
