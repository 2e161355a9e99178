"""Alarms: what brings each of them on, when it is said, and what a resumed run remembers."""

import json

import pytest

from alphaalign_jax.config.settings import Guards as Settings
from alphaalign_jax.evaluation.outcome import Outcome
from alphaalign_jax.rewards import hacking
from alphaalign_jax.rewards.template import INSTRUCTION
from alphaalign_jax.train.guards import Guards

METRIC = {
    "over_refusal": "safety/refusal_rate_benign",
    "echo": "hacking/echo",
    "empty": "hacking/empty_reasoning",
    "tags": "hacking/repeated_tags",
    "truncated": "response_length/clip_ratio",
    "flat": "reward/equal_groups",
}


@pytest.mark.parametrize("name", METRIC)
def test_an_alarm_comes_on_once_over_a_full_window(name):
    """Said at every step, nobody reads it; judged on one step, it is said of a draw; never taken back, no news."""
    guards = Guards(Settings(window=3, over_refusal=0.5, echo=0.5, empty=0.5, tags=0.5, truncated=0.5, flat=0.5))
    step = lambda value: [(alarm.name, alarm.stops) for alarm in guards.step({METRIC[name]: value})]
    assert [step(1.0), step(1.0)] == [[], []], "before the window is full"
    assert step(0.4) == [(name, False)], "the mean of the window, not its last value"
    assert step(1.0) == []
    assert [step(0.0), step(0.0)] == [[], []]
    assert [step(1.0), step(1.0)] == [[], [(name, False)]]
    assert guards.state["count"] == {name: 2}


def test_a_limit_of_zero_turns_an_alarm_off_and_stop_names_those_that_end():
    off = Guards(Settings(window=1, over_refusal=0.0))
    assert not off.step({METRIC["over_refusal"]: 1.0})
    ends = Guards(Settings(window=1, stop=("tags",)))
    assert [alarm.stops for alarm in ends.step({METRIC["tags"]: 1.0})] == [True]


def test_the_kl_ceiling_does_not_wait_for_a_window():
    """A policy that leaves the initial one does so in a few steps."""
    guards = Guards(Settings(kl=0.5, stop=("kl",)))
    assert not guards.step({"actor/kl": 0.5})
    (alarm,) = guards.step({"actor/kl": 0.51})
    assert alarm.stops and alarm.message == "kl: the policy is 0.51 nats a token from the initial one (guards.kl=0.5)"


def test_length_is_compared_with_the_run_s_first_steps():
    guards = Guards(Settings(window=2, length=2.0))
    lengths = [40, 60, 80, 100, 110, 120]
    found = [[alarm.name for alarm in guards.step({"response_length/mean": n})] for n in lengths]
    assert found == [[], [], [], [], ["length"], []], "the first two have a mean of 50"


def test_steps_with_a_skipped_update_are_counted_in_a_row():
    guards = Guards(Settings(skipped=2))
    found = [bool(guards.step({"actor/skipped": n, "critic/skipped": m})) for n, m in [(1, 0), (0, 0), (0, 2), (3, 0)]]
    assert found == [False, False, False, True]


def test_unscored_answers_are_judged_once_there_is_a_handful():
    """A share of two answers says nothing; and judged step by step, small batches without a score are never said."""
    guards = Guards(Settings(window=4))

    def step(needed, left_out):
        alarms = guards.step({"reward/needed": needed, "reward/left_out": left_out})
        return [(alarm.name, alarm.stops) for alarm in alarms]

    assert [step(8, 4), step(8, 0)] == [[], []], "half is the limit"
    assert step(8, 5) == [("unscored", True)]
    assert step(8, 0) == [] and step(0, 0) == []
    assert [step(2, 2), step(3, 3), step(2, 2)] == [[], [], []], "seven answers"
    assert step(1, 1) == [("unscored", True)]
    few = Guards(Settings(window=4))
    single = {"reward/needed": 1, "reward/left_out": 1}
    assert not any(few.step(single) for _ in range(9)), "never a handful in a window"


def test_nothing_in_format_and_nothing_scored_are_alarms():
    """A run in which no response is in format, or a reward model that scores nothing, ends as if all were well."""

    def step(guards, rate, benign=0, scored=0, unscorable=0):
        counts = {"reward/benign": benign, "reward/scored": scored, "reward/unscorable": unscorable}
        return {alarm.name: alarm.message for alarm in guards.step({"safety/format_rate": rate, **counts})}

    guards = Guards(Settings())
    first = step(guards, 0.0, benign=16)
    assert set(first) == {"no_format", "no_score"} and "nothing is in format" in first["no_format"]
    assert "nothing was scored: of the 16 responses to benign prompts none had an answer" in first["no_score"]
    assert step(guards, 0.0, benign=16) == {}, "said once"
    assert step(guards, 0.1, benign=16, scored=1) == {}
    assert "the reward model failed on all 3 answers" in step(guards, 0.2, benign=16, unscorable=3)["no_score"]
    assert step(guards, 0.2, benign=0) == {}, "a step of harmful prompts, or a reward that is off, has nothing to score"
    assert step(guards, 0.2, benign=16) == {}, "and does not take the alarm back"
    later = Guards(Settings(no_format=2, no_score=0))
    assert [set(step(later, 0.0, benign=8)) for _ in range(2)] == [set(), {"no_format"}]


def test_an_alarm_that_ended_a_run_ends_it_again():
    """Remembered as said, it is passed over when the same command is started again: a run that learns nothing."""
    settings = Settings(skipped=2)
    first = Guards(settings)
    assert [len(first.step({"actor/skipped": 1})) for _ in range(2)] == [0, 1]
    assert [alarm.stops for alarm in Guards(settings, first.state).step({"actor/skipped": 1})] == [True]
    regardless = Guards(Settings(skipped=2, stop=()), first.state)
    assert not any(alarm.stops for _ in range(5) for alarm in regardless.step({"actor/skipped": 1}))


def test_a_held_out_score_that_falls_while_the_reward_rises_is_an_alarm():
    """Either alone is no sign of a hacked reward."""
    guards = Guards(Settings(window=1, heldout=0.1))

    def look(reward, score):
        guards.step({"critic/score/mean": reward})
        return [alarm.name for alarm in guards.look(score, None)]

    assert look(0.2, 0.5) == [] and look(0.1, 0.3) == [], "both fell"
    assert look(0.4, 0.45) == [], "by less than the limit"
    assert look(0.5, 0.39) == ["heldout"]
    assert look(0.6, 0.6) == [] and look(0.7, 0.2) == ["heldout"], "a new best takes the alarm back"


def test_a_collapse_is_a_fall_below_the_best_look():
    """Judged against the look before, a slow fall is none; judged without a best, every first look is one."""
    guards = Guards(Settings(collapse=0.25))
    names = lambda score, best: [alarm.name for alarm in guards.look(score, best)]
    assert names(0.0, None) == [] and names(None, 0.9) == []
    assert names(0.65, 0.9) == [], "by no more than the limit"
    assert names(0.6, 0.9) == ["collapse"] and names(0.5, 0.9) == [], "said once"
    assert guards.collapse(0.5, 0.9) == "the score of a look fell from 0.90, the best, to 0.50", "and still a collapse"
    assert names(0.8, 0.9) == [] and names(0.3, 0.9) == ["collapse"]
    assert not Guards(Settings(collapse=0.0)).look(0.0, 1.0)


def test_a_run_that_goes_back_is_judged_anew():
    """The windows of the collapse would sound at once, about a state that the run has left; and what is counted over
    the whole run would be lost."""
    guards = Guards(Settings(window=2, over_refusal=0.5))
    refusing = {METRIC["over_refusal"]: 1.0, "response_length/mean": 40.0, "safety/format_rate": 0.0}
    assert [len(guards.step(refusing)) for _ in range(2)] == [1, 1]
    guards.go_back()
    assert guards.step(refusing | {"safety/format_rate": 0.5}) == [], "one step fills no window"
    assert [alarm.name for alarm in guards.step(refusing)] == ["no_format", "over_refusal"][::-1]
    assert guards.state["count"] == {"no_format": 2, "over_refusal": 2} and guards.state["first_length"] == 40.0


def test_what_a_guard_remembers_survives_a_checkpoint():
    """Windows begun anew after each preemption never fill on spot chips."""
    settings = Settings(window=3, over_refusal=0.5, length=2.0)
    steps = [{METRIC["over_refusal"]: x, "response_length/mean": 10 * (i + 1)} for i, x in enumerate([1, 0, 1, 1, 0])]
    whole, resumed = Guards(settings), Guards(settings)
    for metrics in steps:
        expected = whole.step(metrics)
        resumed = Guards(settings, json.loads(json.dumps(resumed.state)))
        assert resumed.step(metrics) == expected
    assert resumed.state == whole.state and whole.state["count"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<safety_reasoning>It is safe to ask.</safety_reasoning>\n<answer>Two.</answer>", (False, False, False)),
        ("<safety_reasoning> \n</safety_reasoning><answer>Two.</answer>", (False, True, False)),
        ("<safety_reasoning>safe</safety_reasoning><answer>Two.</answer>", (False, True, False)),
        ("<answer>Two.</answer>", (False, None, False)),
        ("<answer>Two.</answer><answer>Two.</answer>", (False, None, True)),
        (f"<safety_reasoning>{INSTRUCTION}</safety_reasoning><answer>Two.</answer>", (True, False, True)),
        ("You should first  carefully\nevaluate the safety implications, it says.", (True, None, False)),
        ("", (False, None, False)),
    ],
)
def test_signs_of_a_hacked_format(text, expected):
    found = hacking.signs(text)
    assert (found.echo, found.empty, found.tags) == expected


def test_the_score_cannot_be_bought_with_the_other_label():
    """A mean of the two calls a policy that refuses everything half good."""

    def outcome(harmful_answered, complied):
        return Outcome(10, 10, harmful_answered, 10 - complied, complied, 20, 0, 0)

    assert outcome(0, 0).score == 0 and outcome(10, 10).score == 0
    assert outcome(2, 7).score == pytest.approx(0.7) and outcome(4, 9).score == pytest.approx(0.6)
    assert Outcome(0, 10, 0, 0, 10, 10, 0, 0).score is None
