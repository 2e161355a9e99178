"""Texts for the format warm-up that the model writes itself: a thought on each question, and its answer to it.

Both are sampled without the AlphaAlign template, which a model that needs a warm-up cannot follow:

    thought   the model is asked what a message is about and whom that concerns; its answer begins with one of
              ``OPENINGS``, drawn for each prompt, and ends with its first sentence.
    answer    the model's answer to the bare question, up to the last sentence that is whole. Benign prompts only:
              no answer to a harmful one is made, and where the warm-up does not refuse it, a sentence stands that
              commits to nothing.

Neither depends on the label beyond that, and the verdict comes from the draw of refusals: the form is taught, in the
model's own words, and no decision. Texts that would teach another form are left out, and counted.
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
    """What the model wrote to one prompt, as it was sampled; the answer is None for a harmful prompt."""

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
    """Return what the warm-up learns from, by ``warmup.source``.

    The model's own texts are written to ``folder``/warmup.jsonl for a person to read. Those that the same weights made
    before, of the same prompts with the same settings, are taken from a cache in the user's home.
    Raise ValueError for texts that cannot be trained on, or too few of use.

    Args:
      params: in the training layout.
      chosen: the warm-up's prompts, under the template.
      weights: the digest of ``params``.
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
        display.say(f"texts of the model's own: made before, taken from {cache}")
    dump = folder / "warmup.jsonl"
    found, left_out = _keep(config, policy, chosen, texts, dump)
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "none"
    display.say(f"{len(found.prompts)} prompts with texts of the model's own, see {dump}; left out: {reasons}")
    return found


def _scaffold(config: Config, policy: Policy, chosen: PromptSet) -> tuple[PromptSet, PromptSet]:
    """The prompts that thoughts are written to, openings included, and those of the answers."""
    made = dict(bucket=config.data.bucket, settings=policy.chat)
    asked = PromptSet.build(chosen.rows, policy.tokenizer, lambda question: REQUEST + question, **made)
    encode = lambda text: policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    openings = [np.asarray(encode(opening), np.int32) for opening in OPENINGS]
    begun = [np.concatenate([tail, openings[i]]) for tail, i in zip(asked.tails, _drawn(config, len(chosen)))]
    bare = PromptSet.build(chosen.rows, policy.tokenizer, None, **made)
    return dataclasses.replace(asked, tails=tuple(begun)), bare


def _drawn(config: Config, count: int) -> np.ndarray:
    """Each prompt's opening: int [count]."""
    return np.random.default_rng((config.seed, 1)).integers(len(OPENINGS), size=count)


def _digest(config: Config, weights: str, prompts: tuple[PromptSet, PromptSet]) -> str:
    """Of all that the sampled texts depend on."""
    w = config.warmup
    parts = [weights, str((config.seed, w.thought_tokens, w.answer_tokens, w.temperature, config.model.rollout_dtype))]
    for each in prompts:
        parts += [str(ids.tolist()) for ids in (each.prefix, *each.tails, each.label)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _read(cache: pathlib.Path, count: int) -> list[Texts] | None:
    """Texts that were made before, if every process has them."""
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
    w, (asked, bare) = config.warmup, prompts
    key = jax.random.fold_in(jax.random.key(config.seed), np.iinfo(np.int32).max)  # no step has this number
    how = dict(sampling=policy.sampling(w.temperature), batch=config.eval.batch, on_batch=on_batch)
    prepared = engine.prepare(params)
    benign = [i for i, row in enumerate(bare.rows) if row.label == BENIGN]
    thoughts = respond(engine, prepared, asked, policy, key=jax.random.fold_in(key, 0), slots=w.thought_tokens, **how)
    answers = respond(
        engine,
        prepared,
        bare,
        policy,
        key=jax.random.fold_in(key, 1),
        slots=w.answer_tokens,
        indices=benign,
        **how,
    )
    on_batch(len(bare) - len(benign))
    answered = {i: response.text for i, (response,) in zip(benign, answers, strict=True)}
    openings = [OPENINGS[i] for i in _drawn(config, len(asked))]
    return [
        Texts(opening + response.text, answered.get(i))
        for i, (opening, (response,)) in enumerate(zip(openings, thoughts, strict=True))
    ]


def _keep(
    config: Config, policy: Policy, chosen: PromptSet, texts: Sequence[Texts], dump: pathlib.Path
) -> tuple[warmup.Material, collections.Counter[str]]:
    """Return the material, and the number of prompts left out for each reason."""
    control, most = control_texts(policy.tokenizer), warmup.most_tokens(config, policy)
    kept, rows, thoughts, lines = [], [], [], []
    left_out: collections.Counter[str] = collections.Counter()
    for i, (row, written) in enumerate(zip(chosen.rows, texts, strict=True)):
        thought = whole_sentences(written.thought, most=1)
        answer = "" if written.answer is None else whole_sentences(written.answer)
        own = dataclasses.replace(row, answer=answer)
        why = _fault("thought", thought, control)
        why = why or ("" if written.answer is None else _fault("answer", answer, control))
        why = why or _too_long(own, thought, config, policy, most)
        lines.append({**_shown(row), "thought": thought or written.thought, "answer": answer, "left_out": why})
        if why:
            left_out[why] += 1
            continue
        kept.append(i)
        rows.append(own)
        thoughts.append(thought)
    output.write(dump, "".join(json.dumps(line) + "\n" for line in lines))
    labels = {chosen.rows[i].label for i in kept}
    if len(kept) < config.warmup.batch or len(labels) < len({row.label for row in chosen.rows}):
        raise ValueError(
            f"warmup.source='self': of {len(chosen)} prompts, {len(kept)} have texts of use "
            f"({dict(left_out.most_common())}); {dump} has them all. Expected at least warmup.batch="
            f"{config.warmup.batch}, of each label; raise warmup.max_examples or thought_tokens, lower "
            "warmup.temperature, or set warmup.source=texts"
        )
    picked = dataclasses.replace(
        chosen, rows=tuple(rows), tails=tuple(chosen.tails[i] for i in kept), label=chosen.label[np.array(kept)]
    )
    return warmup.material(picked, thoughts, config, policy), left_out


def _fault(what: str, text: str, control: Sequence[str]) -> str:
    """Why a text would teach something else than it is for; empty if it would not."""
    if not text:
        return f"{what} has no end"
    if len(text.split()) < _FEWEST_WORDS:
        return f"{what} too short"
    if any(token in text for token in (*TAG_TEXTS, *control)):
        return f"{what} has tags"
    if _copies(text):
        return f"{what} repeats its instruction"
    if refusal_oracle(f"<answer>{text}</answer>".encode()):
        return f"{what} refuses"
    return ""


def _copies(text: str) -> bool:
    """Whether it repeats the template's instruction or the request for it."""
    words = " ".join(text.casefold().split())
    return hacking.signs(text).echo or any(part in words for part in ("do not answer", "in one sentence"))


def _too_long(row: PromptRow, thought: str, config: Config, policy: Policy, most: int) -> str:
    """Its texts may have more tokens when they are read than they had when they were sampled."""
    (responses,) = warmup.possible_responses([row], [thought], config)
    return "response too long" if max(map(len, sft.encode_responses(responses, policy.tokenizer, 0))) > most else ""


def whole_sentences(text: str, most: int | None = None) -> str:
    """Return the first paragraph of a sampled text up to its last whole sentence, of at most ``most``; may be empty."""
    paragraph = text.strip().split("\n\n")[0]
    line = " ".join(paragraph.split())
    ends = [match.end() for match in _SENTENCE_END.finditer(line)][:most]
    return line[: ends[-1]] if ends else ""


def _shown(row: PromptRow) -> dict[str, Any]:
    return {**row.to_json(), "label": LABELS[row.label]}
