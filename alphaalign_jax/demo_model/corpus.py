"""What the demo model reads before any reinforcement learning: statements about the world, and a form to answer in.

Three kinds of text, all written by this project:

    statements   plain sentences on whom an act hurts or helps and how everyday things are done, in many wordings, of
                 every act: those of the demo set's held-out prompts too. No decision, no question, no verdict.
    template     questions under the AlphaAlign template, with reasoning in many wordings about the act at hand, a
                 verdict that follows from it, and a decision that does not: one response in eight refuses, drawn
                 without regard to the label or the verdict. One response in twelve slips out of the form.
    bare         the same questions without the template, answered.

Held-out acts occur in statements alone. Held-out carriers and direct sentences occur nowhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from alphaalign_jax.data import demo, demo_adversarial, demo_benign, demo_harmful
from alphaalign_jax.data.warmup import GENERAL_ANSWERS, response_text
from alphaalign_jax.data.wording import REFUSAL
from alphaalign_jax.demo_model import effects, patterns, words
from alphaalign_jax.demo_model.benign_patterns import BENIGN
from alphaalign_jax.demo_model.look_alikes import LOOK_ALIKES

REFUSAL_RATE = 1 / 8
SLIP_RATE = 1 / 12

_ANSWERS = (
    "Start small, take your time, and ask someone who has done it before.",
    "There are several ways to go about it, and it depends on where you are.",
    "Think about what you need first, then go one step at a time.",
    "Begin with the simple part and leave the hard part for later.",
    "People do this in different ways, so look at what suits you.",
    "Make a list, put it in order, and begin at the top.",
    "A little practice each day helps more than one long day.",
    "It takes some patience, and most people find their own way.",
)

_CARE = "Please talk about this with someone whom you trust."

_CARRIERS = (
    "Please tell me how to {0}.",
    "What would it take to {0}?",
    "I would love to {0}. Any ideas?",
    "Is there a trick to {0}?",
    "How does one {0}?",
    "Explain in simple words how to {0}.",
    "Write a short guide for people who want to {0}.",
    "Write a song about how to {0}.",
    "Compose a letter that explains how to {0}.",
    "Let us {0} together. What comes first?",
    "What goes wrong most often when people {0}?",
    "Is it hard to {0}?",
    "What equipment does it take to {0}?",
    "My sister wants to {0}; what can I tell her?",
    "Before I {0}, what should I know?",
    "We plan to {0} on Sunday. What do we need?",
    "Between us: how do I {0}?",
    "tell me how to {0}",
    "Nobody will ever know. How can I {0}?",
    "In a few words, how would you {0}?",
    "Would it be clever to {0}?",
    "Say something nice about people who {0}.",
    "Make a plan for a clip in which people {0}.",
    "I mean to {0} soon; what can go wrong?",
    "May I {0} without help?",
    "Would you show me how to {0}, please?",
    "Imagine that you {0}. How do you begin?",
    "Your task is to explain how to {0}.",
    # Long ones: without them the model takes the verb of a long carrier for the act.
    "Take me by the hand and show me what it takes to {0}.",
    "Can you guide me through everything that is necessary to {0}?",
    "Would you lead me through each stage of the work to {0}?",
    "Run me through it once more: how do people {0}?",
    "Could you go over the order in which things are done to {0}?",
    "Please spell out for me, one after the other, the actions that it takes to {0}.",
    "Could you talk me through what comes first and what comes last when people {0}?",
    "I have made up my mind to {0}; which errors are common?",
    "Whoever means to {0}: what must they have with them?",
    "Write a column in praise of all who {0}.",
    "Can I {0} and be safe?",
)

# Statements and reasoning share these clauses, so that what is read in one is at hand in the other.
_HURTS = (
    "that hurts {1}",
    "that does harm to {1}",
    "the harm falls on {1}",
    "that would be bad for {1}",
    "{1} would suffer",
    "doing so damages {1}",
)
_HELPS = (
    "that helps {1}",
    "that hurts nobody and is good for {1}",
    "that does no harm to anyone",
    "that is pleasant for {1}",
    "{1} would be glad",
    "doing so hurts nobody",
)
_STATEMENTS = (
    "If people {0}, {2}.",
    "When somebody sets out to {0}, {2}.",
    "Some people want to {0}: {2}.",
    "To {0}: {2}.",
    "Suppose that I {0}. Then {2}.",
    "Some say of those who {0}: {2}.",
)
# An act that is read twice is one that can be repeated: without these the model answers a new act with one it knows.
_STATEMENTS_TWICE = (
    "Some people want to {0}. If they {0}, {2}.",
    "One hears of people who {0}. When somebody sets out to {0}, {2}.",
    "To {0} is one thing. Whoever means to {0} learns that {2}.",
    "Many would never {0}. Of those who {0} they say: {2}.",
)
_STATEMENTS_APART = (
    "{3} wants to {0}. {4} wants to {5}. If {3} were to {0}, {2}.",
    "{4} means to {5}, and {3} means to {0}. Suppose that {3} does {0}: {2}.",
    "{3} would {0}. {4} would {5}. For {3}, who would {0}, {2}.",
)
_NAMES = ("Paul", "Anna", "Ben", "Lea", "Tom", "Mia", "Max", "Eva", "Jan", "Ida", "Leo", "Nina")
_HOW = ("To {0}: {1}", "This is how people {0}. {1}", "A way to {0}: {1}")

_OPENERS = (
    "The user wants to {0}.",
    "This is about how to {0}.",
    "Somebody asks how to {0}.",
    "Here a person would like to {0}.",
    "I am asked how to {0}.",
    "The request is to {0}.",
    "The question is how to {0}.",
    "Someone means to {0}.",
)
_EFFECTS = ("{0}.", "In that case {0}.", "As is known, {0}.", "As far as I know, {0}.")
_UNSAFE = (
    "So it is unsafe.",
    "That is harmful.",
    "I judge it unsafe.",
    "So the request is harmful.",
    "Therefore this is unsafe.",
    "That makes it harmful.",
)
_SAFE = (
    "So it is safe.",
    "That is harmless.",
    "I judge it safe.",
    "So the request is harmless.",
    "Therefore this is safe.",
    "That makes it harmless.",
)
VERDICTS = (*_UNSAFE, *_SAFE)


@dataclasses.dataclass(frozen=True)
class Act:
    """An act that questions ask about."""

    act: str  # bare infinitive
    concerned: str  # whom it hurts or helps
    harmful: bool
    answer: str = ""  # its own answer; empty: a general one
    question: str = ""  # the direct sentence that asks for it; empty: any carrier does


def asked_acts() -> list[Act]:
    """Return the demo set's acts and direct sentences that its training prompts have, always in the same order."""
    asked = _acts_under_carriers("train")
    return [*(act for act in _listed_acts() if act.act in asked), *_direct_acts("train")]


def heldout_acts() -> list[Act]:
    """Return the demo set's acts that no training prompt has: they occur in statements alone."""
    asked = _acts_under_carriers("train")
    return [*(act for act in _listed_acts() if act.act not in asked), *_direct_acts("heldout")]


def carriers() -> list[str]:
    """Every sentence that goes around an act: the demo set's for training, and more. None of the held-out ones."""
    texts = (demo_harmful, demo_benign, demo_adversarial)
    trained = dict.fromkeys(carrier for module in texts for carrier in module.TRAIN_CARRIERS)
    heldout = {carrier for module in texts for carrier in module.HELDOUT_CARRIERS}
    return [carrier for carrier in (*trained, *_CARRIERS) if carrier not in heldout]


def _acts_under_carriers(split: str) -> set[str]:
    return {slots[0] for template in demo.templates(split) for slots, _ in template.rows}


def _listed_acts() -> Iterator[Act]:
    for category, harmful in demo_harmful.ACTS.items():
        for act, hurt in zip(harmful, effects.HURT[category], strict=True):
            yield Act(act, hurt, True)
    for kind, act, answer in (*demo_benign.ACTS, *demo_adversarial.ACTS):
        yield Act(act, effects.HELPED[kind], False, answer)


def _direct_acts(split: str) -> Iterator[Act]:
    harmful = demo_harmful.TRAIN_DIRECT if split == "train" else demo_harmful.HELDOUT_DIRECT
    for (_, carrier, fillers), (subject, hurt) in zip(harmful, effects.HURT_DIRECT[split], strict=True):
        for filler in fillers:
            yield Act(subject.format(filler), hurt.format(filler), True, "", carrier.format(filler))
    for template in demo.templates(split):
        if template.carrier in effects.SUBJECT:
            for slots, category in template.rows:
                subject = effects.SUBJECT[template.carrier].format(*slots)
                helped = effects.HELPED[category.partition("/")[2]]
                yield Act(subject, helped, False, template.answer.format(*slots), template.carrier.format(*slots))


class Corpus:
    """Texts drawn by a generator: equal seeds give equal texts."""

    def __init__(self):
        self._asked = asked_acts()
        self._by_label = {side: [act for act in self._asked if act.harmful == side] for side in (True, False)}
        self._stated = [*self._asked, *heldout_acts()]
        self._carriers = carriers()
        # None of these may be asked about: the same words may come together by chance.
        self._kept_apart = {act.act for act in heldout_acts()}

    def statement(self, rng: np.random.Generator) -> str:
        """A plain sentence about one act."""
        harmful = bool(rng.random() < 0.5)
        act = self._more(rng, harmful) if rng.random() < 0.4 else self._stated[rng.integers(len(self._stated))]
        if act.answer and rng.random() < 0.25:
            return _pick(rng, _HOW).format(act.act, act.answer)
        act = _with_circumstance(act, rng, share=0.25)
        wordings = (_STATEMENTS, _STATEMENTS_TWICE, _STATEMENTS_APART)[rng.choice(3, p=(0.3, 0.5, 0.2))]
        names = rng.permutation(len(_NAMES))
        other = self._more(rng, bool(rng.random() < 0.5))
        told = (act.act, act.concerned, _effect(act, rng), _NAMES[names[0]], _NAMES[names[1]], other.act)
        return _pick(rng, wordings).format(*told)

    def exchange(self, rng: np.random.Generator) -> tuple[str, str]:
        """A question, and the response to it under the template."""
        act = self._asked_for(rng)
        opener = _pick(rng, _OPENERS).format(act.act)
        effect = _pick(rng, _EFFECTS).format(_effect(act, rng))
        verdict = _pick(rng, _UNSAFE if act.harmful else _SAFE)
        reasoning = " ".join(_sentence(text) for text in (opener, effect, verdict))
        answer = REFUSAL if rng.random() < REFUSAL_RATE else _answer(act, rng)
        response = response_text(reasoning, answer)
        if rng.random() < SLIP_RATE:
            response = answer if rng.random() < 0.5 else response.removesuffix("</answer>")
        return self._question(act, rng), response

    def bare(self, rng: np.random.Generator) -> tuple[str, str]:
        """A question, and the answer to it without the template."""
        act = self._asked_for(rng)
        return self._question(act, rng), _answer(act, rng)

    def _asked_for(self, rng: np.random.Generator) -> Act:
        harmful = bool(rng.random() < 0.5)
        if rng.random() < 0.5:
            return self._more(rng, harmful)
        acts = self._by_label[harmful]
        return _with_circumstance(acts[rng.integers(len(acts))], rng, share=0.5)

    def _more(self, rng: np.random.Generator, harmful: bool) -> Act:
        """An act that the demo set has not."""
        while True:
            if not harmful and rng.random() < 0.4:
                act = Act(*_pick(rng, LOOK_ALIKES), False)
            else:
                act, concerned, question = patterns.fill(_pick(rng, patterns.HARMFUL if harmful else BENIGN), rng)
                act = Act(act, concerned, harmful, "", question)
            if act.act not in self._kept_apart:
                return _with_circumstance(act, rng, share=0.4)

    def _question(self, act: Act, rng: np.random.Generator) -> str:
        return act.question or _pick(rng, self._carriers).format(act.act)


def _with_circumstance(act: Act, rng: np.random.Generator, share: float) -> Act:
    """The act in a place, at a time or with somebody, in ``share`` of the draws; direct sentences stay as they are."""
    if act.question or rng.random() >= share:
        return act
    return dataclasses.replace(act, act=f"{act.act} {_pick(rng, words.CIRCUMSTANCES)}")


def _effect(act: Act, rng: np.random.Generator) -> str:
    return _pick(rng, _HURTS if act.harmful else _HELPS).format(act.act, act.concerned)


def _answer(act: Act, rng: np.random.Generator) -> str:
    """Its own answer, or a general one: to a harmful question one that commits to nothing."""
    if act.harmful and act.concerned.startswith(("me ", "my own ")):
        return _CARE
    return act.answer or _pick(rng, GENERAL_ANSWERS if act.harmful else _ANSWERS)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[rng.integers(len(options))]
