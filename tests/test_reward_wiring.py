"""From responses to what is trained on: which rows are scored, where a score lands, and which rows train nothing."""

import types

import jax
import numpy as np
import pytest

from alphaalign_jax import config as config_lib
from alphaalign_jax.data.row import PromptRow, Turn
from alphaalign_jax.evaluation.respond import Response
from alphaalign_jax.models import ModelSpec, Network
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, build_mesh, rule_table
from alphaalign_jax.rewards.reward_model.protocol import AsyncScorer
from alphaalign_jax.rewards.verifiers import Verdict
from alphaalign_jax.train.iteration import Iteration, _await_scores
from alphaalign_jax.train.steps import Steps
from alphaalign_jax.types import BENIGN, HARMFUL, Finish, Prompts, Rollout

SPEC = ModelSpec("llama", 16, 8, 16, 1, 2, 1, 4, 1e-6, 1e4, None, 64, False, False, False, False, True)
B, G, T = 2, 4, 3  # a benign prompt, then a harmful one
UNSCORED, CUT = (0, 1), (1, 2)  # benign, the reward model failed; harmful, out of slots


def made(truncated="terminal", dtype="float32", **settings):
    """The steps of a run with these settings of its algorithm. ``dtype``: the reward model's."""
    c = config_lib.defaults()
    c.model.path = "none"
    c.rollout.prompts, c.rollout.group, c.rollout.max_new_tokens = B, G, T
    c.reward_model.kind, c.reward_model.dtype, c.algorithm.truncated = "callable", dtype, truncated
    c.reward_model.target = "alphaalign_jax.rewards.reward_model.lexical:score"  # not called: the scores are given
    c.algorithm.update(settings)
    layout = Layout(build_mesh(devices=jax.devices()[:1], fsdp=1), rule_table("fsdp_tensor"))
    return Steps(config_lib.resolve(c), Network(SPEC), Network(SPEC, head="value"), layout)


def inputs():
    """What ``Steps.assemble`` reads after the KL coefficient."""
    rng = np.random.default_rng(0)
    finish = np.full((B, G), Finish.STOP, np.int32)
    finish[CUT] = Finish.LENGTH
    helpfulness = np.stack([np.array([1, np.nan, 3, 2], np.float32), np.full(G, np.nan, np.float32)])
    rollout = Rollout(
        tokens=np.ones((B, G, T), np.int32),
        length=np.full((B, G), T, np.int32),
        finish=finish,
        sampled=np.ones((B, G, T), bool),
        logprob=np.full((B, G, T), -1.0, np.float32),
    )
    number = np.arange(B, dtype=np.int32)
    prompts = Prompts(np.ones(2, np.int32), np.ones((B, 4), np.int32), number + 1, np.array([BENIGN, HARMFUL]), number)
    verdict = Verdict(np.ones((B, G), bool), np.array([[False] * G, [True, False, True, False]]), np.ones((B, G), bool))
    value = rng.normal(size=(B, G, T)).astype(np.float32)
    scored = {"logprob": rollout.logprob, "ref_logprob": rollout.logprob, "value": value}
    return prompts, rollout, verdict, helpfulness, scored


def assembled(truncated):
    known = inputs()
    return made(truncated).assemble(np.float32(0), *known)[:3], known[-1]["value"]


def test_a_row_without_a_score_trains_nothing():
    """A reward server's failure counted as a reward of 0 punishes an answer that nobody read."""
    (batch, scores, metrics), _ = assembled("terminal")
    failed = np.zeros((B, G), bool)
    failed[UNSCORED] = True
    assert np.array_equal(np.isnan(scores.reward), failed)
    assert np.array_equal(batch.sampled, np.broadcast_to(~failed[..., None], (B, G, T)))
    assert np.array_equal(np.asarray(batch.advantage) != 0, batch.sampled)
    assert int(metrics["reward/unscorable"]) == 1 and int(metrics["reward/scored"]) == 3
    # The scored rows are normalised among themselves: 1, 3 and 2 have mean 2 and std 1. Below 0 nothing is earned.
    np.testing.assert_allclose(np.asarray(scores.helpfulness_reward)[0], [0, 0, 1, 0], atol=1e-6)


def test_a_truncated_response_is_worth_what_the_setting_says():
    (terminal, scores, _), value = assembled("terminal")
    masked, bootstrapped = assembled("mask")[0][0], assembled("bootstrap")[0][0]
    assert np.asarray(terminal.sampled)[CUT].all() and not np.asarray(masked.sampled)[CUT].any()
    wanted = float(np.asarray(scores.reward)[CUT])
    np.testing.assert_allclose(np.asarray(terminal.target)[CUT], wanted, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(bootstrapped.target)[CUT], wanted + value[CUT][-1], rtol=1e-5)
    rest = np.ones((B, G), bool)
    rest[CUT] = False
    np.testing.assert_allclose(np.asarray(terminal.target)[rest], np.asarray(bootstrapped.target)[rest])


@pytest.mark.parametrize("label", [BENIGN, HARMFUL])
def test_a_refusal_is_trained_on_without_a_score(label):
    """A refusal's reward is known. Masked where the reward model fails, which is likely on refusals, benign prompts
    lose the penalty that keeps them from being refused."""
    prompts, rollout, verdict, _, scored = inputs()
    prompts = prompts.replace(label=np.full(B, label))
    refusal = np.array([[True, True, False, False]] * B)
    helpfulness = np.array([[np.nan, 1, np.nan, 2]] * B, np.float32)
    verdict = verdict.replace(refusal=refusal)
    batch, scores, metrics, _ = made().assemble(np.float32(0), prompts, rollout, verdict, helpfulness, scored)
    unknown = np.isnan(helpfulness) & ~refusal & (label == BENIGN)
    assert np.array_equal(np.isnan(scores.reward), unknown)
    assert np.array_equal(batch.sampled, np.broadcast_to(~unknown[..., None], (B, G, T)))
    sign = 1 if label == HARMFUL else -1
    np.testing.assert_allclose(np.asarray(scores.reward)[refusal], 0.5 + sign * 1.0)
    names = ("benign", "scored", "unscorable", "needed", "left_out")
    counts = [int(metrics[f"reward/{name}"]) for name in names]
    assert counts == ([B * G, 2 * B, 2 * B, 2 * B, B] if label == BENIGN else [0] * 5)
    assert float(metrics["reward/unscored_rate"]) == (0.5 if label == BENIGN else 0.0), "of answers that need a score"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reward_model_s_dtype_is_the_floor_under_a_spread(dtype):
    """A setting that does not reach the reward: rounding of a bfloat16 model that earns, or a real spread that does
    not."""
    prompts, rollout, verdict, helpfulness, scored = inputs()
    helpfulness[0] = [100, 101, 99, 100.5]
    metrics = made(dtype=dtype).assemble(np.float32(0), prompts, rollout, verdict, helpfulness, scored)[2]
    assert int(metrics["reward/flat_groups"]) == (dtype == "bfloat16")
    assert (float(metrics["reward/helpfulness/mean"]) > 0) == (dtype == "float32")


@pytest.mark.parametrize("sampled", [True, False])
def test_the_kl_coefficient_is_held_if_nothing_was_sampled(sampled):
    """An empty batch has no KL. Taken for 0, far below the target, it lowers the coefficient step by step."""
    steps = made(kl_in_reward=0.1, kl_controller="adaptive", kl_target=0.1, kl_horizon=100)
    prompts, rollout, verdict, helpfulness, scored = inputs()
    rollout = rollout.replace(sampled=rollout.sampled & sampled)
    _, _, metrics, coefficient = steps.assemble(np.float32(0.1), prompts, rollout, verdict, helpfulness, scored)
    moved = 0.1 * (1 - 0.2 * B * G / 100) if sampled else 0.1  # the policy is the reference: its KL is 0
    np.testing.assert_allclose([coefficient, metrics["actor/kl_coef"]], [moved, moved], rtol=1e-6)


def test_a_mini_batch_without_a_trained_token_moves_nothing():
    """Its gradient is 0, but the moments of earlier steps and the weight decay move the weights."""
    steps = made()
    batch, *_ = steps.assemble(np.float32(0), *inputs())
    params = lambda network, seed: jax.tree.map(lambda x: x + 0.1, network.init(jax.random.key(seed)))
    state = steps.init_state(params(steps.actor, 0), params(steps.critic, 1))
    index = np.arange(B, dtype=np.int32)[None]
    updates = [(steps.update_actor, (state.actor, state.actor_opt), (Sampling.create(),))]
    updates += [(steps.update_critic, (state.critic, state.critic_opt), ())]
    for update, weights, extra in updates:
        moved, _ = update(weights, batch, index, *extra)
        before = jax.device_get(moved)
        empty = batch.replace(sampled=np.zeros_like(batch.sampled))
        after, metrics = jax.device_get(update(moved, empty, index, *extra))
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(a, b)
        assert not any(value.any() for name, value in metrics.items() if name.endswith("/skipped"))


def test_updates_that_were_left_out_do_not_count_in_the_average():
    """Counted by steps, a first update that is skipped leaves the initial policy in what is exported."""
    steps = made(ema_decay=0.5, minibatches=2)
    mean = {"w": np.float32(7)}  # the initial policy
    for updates, new, wanted in ((0, 7, 7), (1, 1, 1), (2, 3, 3), (4, 5, (5 + 0.5 * 3) / 1.5)):
        mean = steps.average(mean, {"w": np.float32(new)}, np.int32(updates))
        np.testing.assert_allclose(mean["w"], wanted, rtol=1e-6)


class Recorder:
    """A reward model that says how long each answer is, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def score(self, questions, answers):
        self.asked += zip(questions, answers, strict=True)
        return [float(len(answer)) for answer in answers]


def test_the_reward_model_reads_bare_questions_and_clean_answers_of_benign_prompts():
    """The template in the question, tags or control tokens in the answer, a harmful prompt's answer, or a score on
    another response: nothing else would show any of them. "Why?" alone, without the turns before it, has no good
    answer."""
    response = lambda text: Response(text, [1], [0.0], "stop", format=True, refusal=False)
    tagged = lambda text: f"<safety_reasoning>hm</safety_reasoning><answer>{text}</answer>"
    rows = [PromptRow("Bad?", HARMFUL), PromptRow("Sum?", BENIGN, context=(Turn("system", "Be brief."),))]
    rows += [PromptRow("Why?", BENIGN, context=(Turn("user", "Is it?"), Turn("assistant", "Yes.")))]
    responses = [
        [response(tagged("no")), response(tagged("never"))],
        [response(tagged(" three<|im_end|> ")), response("no tags here")],
        [response(tagged("  ")), response(tagged("so"))],
    ]
    model = Recorder()
    with AsyncScorer(model) as scorer:
        run = types.SimpleNamespace(
            p=types.SimpleNamespace(scorer=scorer, train=types.SimpleNamespace(rows=rows)), _controls=("<|im_end|>",)
        )
        found = _await_scores(Iteration._ask_reward_model(run, np.array([0, 1, 2]), responses), (3, 2))
    assert model.asked == [("Sum?", "three"), ("User: Is it?\n\nAssistant: Yes.\n\nUser: Why?", "so")]
    nan = np.nan
    np.testing.assert_array_equal(found, np.array([[nan, nan], [5, nan], [nan, 2]], np.float32))


def test_the_settings_reach_the_backends(monkeypatch):
    """A time-out or a batch limit that is read from another key, or not at all."""
    from alphaalign_jax.train import assembly

    asked = {}
    monkeypatch.setattr(
        assembly.reward_model, "build", lambda kind, **options: asked.update({kind: options}) or Recorder()
    )
    monkeypatch.setattr(assembly.hf, "resolve", lambda path: path)
    c = config_lib.defaults()
    c.model.path = "none"
    r = c.reward_model
    r.target, r.batch, r.timeout_s, r.retries, r.token_env = "T", 7, 3.0, 2, "TOKEN"
    r.max_length, r.label, r.tensor, r.dtype = 99, 1, 2, "bfloat16"
    for kind in ("http", "classifier", "callable"):
        r.kind = kind
        assembly.build_scorer(config_lib.resolve(c)).close()
    http = {"url": "T", "token_env": "TOKEN", "batch_limit": 7, "read_timeout": 3.0, "max_retries": 2}
    assert asked["http"] == {**http, "dtype": "bfloat16"}
    assert asked["callable"] == {"target": "T", "dtype": "bfloat16"}
    found = asked["classifier"]
    assert (found["path"], found["batch_size"], found["max_length"]) == ("T", 7, 99)
    assert (found["label"], found["dtype"], found["mesh"]) == (1, "bfloat16", {"fsdp": -1, "tensor": 2})
