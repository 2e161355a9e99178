"""The compiled steps of a run.

Each step is one jitted function of arrays; the loop calls them in order. Settings, networks and
layouts are fixed when ``Steps`` is created. Sampling settings and random keys are traced.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alphaalign_jax.algorithms.advantages import (
    Advantage,
    balanced_labels,
    bootstrap_value,
    estimate_advantages,
    get_estimator,
    token_rewards,
    trained_slots,
)
from alphaalign_jax.algorithms.kl import kl_penalty, update_kl_coef
from alphaalign_jax.algorithms.losses import Denominator, sampler_weight
from alphaalign_jax.config import Config
from alphaalign_jax.models import Network, Params
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.ops import masked_mean, precision_of, safe_divide
from alphaalign_jax.parallel import Layout, compiled, host_memory
from alphaalign_jax.rewards.helpfulness import depends_on_score, helpfulness_reward
from alphaalign_jax.rewards.safety import decision_rewards, safety_reward
from alphaalign_jax.rewards.verifiers import Verdict
from alphaalign_jax.train import objectives, optimizer
from alphaalign_jax.train.batch_metrics import batch_metrics
from alphaalign_jax.train.objectives import Metrics
from alphaalign_jax.types import (
    HARMFUL,
    LABELS,
    Array,
    Examples,
    Finish,
    Prompts,
    Rollout,
    Scores,
    TrainBatch,
    TrainState,
)


class Steps:
    """All computations of a training step on the mesh, apart from sampling."""

    def __init__(self, config: Config, actor: Network, critic: Network | None, layout: Layout):
        if get_estimator(config.algorithm.advantage).critic != (critic is not None):
            raise ValueError(
                f"algorithm.advantage={config.algorithm.advantage!r} and a critic of {critic} do not go together"
            )
        self.config, self.actor, self.critic, self.layout = config, actor, critic, layout
        # The step of the actor's first update; before it, a critic may warm up.
        self.actor_from = config.algorithm.critic_warmup if critic is not None else 0
        # Optimizer steps in a training step, and in the whole run.
        self.updates_a_step = config.algorithm.epochs * config.algorithm.minibatches
        self.updates = {
            "actor": max(1, config.steps - self.actor_from) * self.updates_a_step,
            "critic": config.steps * self.updates_a_step,
        }
        self.actor_tx = optimizer.build(config.optimizer, self.updates["actor"])
        self.critic_tx = optimizer.build(config.critic.optimizer, self.updates["critic"])
        self._check()
        self.forward = compiled(self._forward, layout, name="score", static_argnames="policy")
        self.assemble = compiled(self._assemble, layout, name="assemble")
        self.update_actor = compiled(self._update_actor, layout, name="update actor", donate_argnums=0)
        self.update_critic = compiled(self._update_critic, layout, name="update critic", donate_argnums=0)
        self.average = compiled(self._average, layout, name="average", donate_argnums=0)

    def _check(self) -> None:
        """Raise ValueError, with the numbers, unless weights and batches divide over the mesh."""
        settings = self.config
        for name, network in (("actor", self.actor), ("critic", self.critic)):
            if network is not None:
                self.layout.tree_shardings(network.axes, network.shapes(), f"training layout, {name}")
        sizes = (settings.rollout.prompts, settings.rollout.group)
        self.layout.check("rollout.prompts, group", sizes, ("batch", "rollout"))
        minibatch = settings.rollout.prompts // settings.algorithm.minibatches
        self.layout.check("prompts of a mini-batch", (minibatch,), ("batch",))

    def init_state(self, actor: Params, critic: Params | None) -> TrainState:
        """Return the state before the first step. It owns ``actor`` and ``critic`` from then on."""
        copy = lambda wanted: jax.tree.map(jnp.copy, actor) if wanted else None
        state = TrainState(
            step=self.scalar(0, jnp.int32),
            actor=actor,
            average=copy(self.config.algorithm.ema_decay),
            actor_opt=optimizer.init(self.actor_tx, self.actor, actor, self.layout),
            critic=critic,
            critic_opt=None if critic is None else optimizer.init(self.critic_tx, self.critic, critic, self.layout),
            reference=copy(self.config.algorithm.reference),
            ahead=None,
            kl_coef=self.scalar(self.config.algorithm.kl_in_reward, jnp.float32),
        )
        return self.settled(state)

    def settled(self, state: TrainState) -> TrainState:
        """Return the state with the reference in host memory if ``algorithm.reference_on_host``."""
        if not self.config.algorithm.reference_on_host:
            return state
        return state.replace(reference=jax.device_put(state.reference, host_memory(self._reference_shardings)))

    def scalar(self, value: float, dtype: Any) -> Array:
        """Return a scalar that is replicated over the mesh, like one from a checkpoint."""
        # From NumPy: with one device per process, JAX 0.10 turns a JAX array into one that Orbax
        # cannot save.
        return jax.device_put(np.asarray(value, dtype), self.layout.replicated)

    def abstract_state(self, step: int) -> TrainState:
        """Return shapes, dtypes and shardings of the state after ``step`` steps, for a restore."""
        struct = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        def network_and_optimizer(network: Network | None, tx):
            if network is None:
                return None, None
            shapes, shardings = network.shapes(), self.layout.tree_shardings(network.axes)
            moments = optimizer.state_shardings(tx, network, self.layout)
            return jax.tree.map(struct, shapes, shardings), jax.tree.map(
                struct, jax.eval_shape(tx.init, shapes), moments
            )

        actor, actor_opt = network_and_optimizer(self.actor, self.actor_tx)
        critic, critic_opt = network_and_optimizer(self.critic, self.critic_tx)
        scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=self.layout.replicated)
        return TrainState(
            step=scalar(jnp.int32),
            actor=actor,
            average=actor if self.config.algorithm.ema_decay else None,
            actor_opt=actor_opt,
            critic=critic,
            critic_opt=critic_opt,
            reference=actor if self.config.algorithm.reference else None,
            ahead=self._abstract_rollout() if self.config.rollout.ahead and step else None,
            kl_coef=scalar(jnp.float32),
        )

    def _abstract_rollout(self) -> Rollout:
        r = self.config.rollout
        shape = (r.prompts, r.group, r.max_new_tokens)
        rows = lambda dtype: jax.ShapeDtypeStruct(shape[:2], dtype, sharding=self.layout.sharding("batch", "rollout"))
        place = self.layout.sharding("batch", "rollout", "length")
        slots = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        return Rollout(slots(jnp.int32), rows(jnp.int32), rows(jnp.int32), slots(jnp.bool_), slots(jnp.float32))

    def _micro_batch(self, rows: Examples | TrainBatch) -> int:
        """Return the number of prompts in a gradient slice of ``rows``; 0: all at once."""
        size, *response = rows.tokens.shape
        slots = rows.prompts.tokens.shape[1] + math.prod(response)
        return objectives.micro_batch(self.config.algorithm, size, slots, self.layout.size("batch"))

    @property
    def _reference_shardings(self) -> Any:
        return self.layout.tree_shardings(self.actor.axes)

    # Scoring ----------------------------------------------------------------------------------------------------------

    def score(
        self, state: TrainState, prompts: Prompts, tokens: Array, sampled: Array, sampling: Sampling, *, policy: bool
    ) -> dict[str, Array]:
        """Run ``_forward`` with the reference's weights on the devices."""
        if self.config.algorithm.reference_on_host:
            state = state.replace(reference=jax.device_put(state.reference, self._reference_shardings))
        return self.forward(state, prompts, tokens, sampled, sampling, policy=policy)

    def _forward(
        self, state: TrainState, prompts: Prompts, tokens: Array, sampled: Array, sampling: Sampling, *, policy: bool
    ) -> dict[str, Array]:
        """Return everything that is fixed before the update, float32 [B, G, T] each.

        These are the policy's log-probs if ``policy`` is set, the reference's log-probs if there is
        a reference, and the values if there is a critic.
        """
        settings = self.config.algorithm

        def score(part: Examples) -> dict[str, Array]:
            def logprobs(params):
                chunk = settings.logprob_chunk
                found = objectives.policy_logprobs(self.actor, params, part.prompts, part.tokens, sampling, chunk=chunk)
                return jnp.where(part.sampled, found[0], 0.0)

            scored = {"logprob": logprobs(state.actor)} if policy else {}
            if state.reference is not None:
                scored["ref_logprob"] = logprobs(state.reference)
            if self.critic is not None:
                value = objectives.state_values(self.critic, state.critic, part.prompts, part.tokens)
                scored["value"] = jnp.where(part.sampled, value, 0.0)
            return scored

        rows = Examples(prompts, tokens, sampled)
        # At most one mini-batch at a time: all rows' logits would need more memory than any update.
        minibatch = tokens.shape[0] // settings.minibatches
        return objectives.map_rows(score, rows, self._micro_batch(rows) or minibatch)

    def _assemble(
        self,
        kl_coef: Array,
        prompts: Prompts,
        rollout: Rollout,
        verdict: Verdict,
        helpfulness: Array,
        scored: dict[str, Array],
    ) -> tuple[TrainBatch, Scores, Metrics, Array]:
        """Compute rewards, advantages, targets, metrics and the KL controller's next coefficient.

        ``helpfulness``: reward-model scores, float32 [B, G].
        """
        settings = self.config.algorithm
        scores, counts = self.rewards(prompts.label, verdict, helpfulness)
        truncated = rollout.finish == Finish.LENGTH
        absent = jnp.zeros_like(rollout.logprob)
        ref_logprob, value = scored.get("ref_logprob", absent), scored.get("value", absent)
        old_logprob = rollout.logprob if settings.old_logprob == "sampler" else scored["logprob"]
        slots = trained_slots(rollout.sampled, reward=scores.reward, truncated=truncated, truncation=settings.truncated)
        kl = kl_penalty(old_logprob, ref_logprob, kind="k1") if settings.kl_in_reward else None
        # Rows with a NaN reward have no trained slots, so 0 has no effect.
        reward = jnp.where(jnp.isnan(scores.reward), 0.0, scores.reward)
        rewards, unrewarded = token_rewards(reward, slots, kl=kl, kl_coef=kl_coef)
        weight, tis = jnp.ones_like(old_logprob), {}
        if settings.sampler_cap:
            weight, tis = sampler_weight(old_logprob, rollout.logprob, slots, cap=settings.sampler_cap)
        estimate, balance = self._advantages(prompts.label, verdict.refusal, rewards, slots, value, truncated)
        batch = TrainBatch(
            prompts=prompts,
            tokens=rollout.tokens,
            sampled=slots,
            old_logprob=old_logprob,
            ref_logprob=ref_logprob,
            old_value=value,
            weight=weight,
            advantage=estimate.advantage,
            target=estimate.target,
        )
        metrics = counts | balance | batch_metrics(batch, rollout, scores, truncated)
        metrics |= {f"rollout/{name}": found for name, found in tis.items()}
        if "logprob" in scored:
            gap = jnp.abs(scored["logprob"] - rollout.logprob)
            metrics["rollout/logprob_gap/mean"] = masked_mean(gap, rollout.sampled)
            metrics["rollout/logprob_gap/max"] = jnp.max(jnp.where(rollout.sampled, gap, 0.0))
        metrics["reward/unrewarded"] = jnp.sum(unrewarded)
        if settings.kl_in_reward:
            adaptive = dict(target=settings.kl_target, horizon=settings.kl_horizon, n_steps=reward.size)
            measured = jnp.where(jnp.any(slots), masked_mean(kl, slots), jnp.nan)
            kl_coef = update_kl_coef(kl_coef, measured, controller=settings.kl_controller, **adaptive)
            metrics["actor/kl_coef"] = kl_coef
        return batch, scores, metrics, kl_coef

    def _advantages(
        self, label: Array, refusal: Array, rewards: Array, slots: Array, value: Array, truncated: Array
    ) -> tuple[Advantage, Metrics]:
        """Return the configured advantage estimate, and metrics of its balancing by label.

        ``rewards`` float32 [B, G, T]. ``slots`` bool [B, G, T]: the trained slots.
        """
        settings, reward = self.config.algorithm, self.config.reward
        given = {"gamma": settings.gamma, "lam": settings.lam, "std_floor": settings.std_floor}
        given |= {"anchors": decision_rewards(label, r_f=reward.r_f, r_a=reward.r_a), "anchor": settings.anchor}
        if self.critic is not None:
            given["values"] = value
            if settings.truncated == "bootstrap":
                given["bootstrap"] = bootstrap_value(value, slots, truncated)
        if reward.helpfulness == "raw":  # the reward then has the precision of the raw scores
            given["precision"] = precision_of(self.config.reward_model.dtype)
        estimate = estimate_advantages(settings.advantage, rewards=rewards, sampled=slots, **given)
        if not settings.balance_labels:
            return estimate, {}
        per_row = masked_mean(estimate.advantage, slots, axis=-1)
        factors = balanced_labels(per_row, refusal, jnp.any(slots, axis=-1), label == HARMFUL)
        metrics = {f"actor/balance_{name}": masked_mean(factors, label == i) for i, name in enumerate(LABELS)}
        return estimate._replace(advantage=estimate.advantage * factors[:, None, None]), metrics

    def rewards(self, label: Array, verdict: Verdict, helpfulness: Array) -> tuple[Scores, Metrics]:
        """Return R_s, R_h and their sum, and the counts of the helpfulness reward.

        The sum is NaN if it depends on a score that the reward model could not give.
        """
        settings = self.config.reward
        safety = safety_reward(verdict.format, verdict.refusal, label, r_f=settings.r_f, r_a=settings.r_a)
        helpful, counts = helpfulness_reward(
            helpfulness,
            verdict.refusal,
            verdict.answered,
            label,
            mode=settings.helpfulness,
            std_floor=settings.std_floor,
            precision=precision_of(self.config.reward_model.dtype),
        )
        unknown = jnp.zeros_like(verdict.answered)
        if settings.helpfulness != "off":
            unknown = depends_on_score(verdict.refusal, verdict.answered, label) & ~jnp.isfinite(helpfulness)
        scores = Scores(
            format=verdict.format,
            refusal=verdict.refusal,
            answered=verdict.answered,
            helpfulness=helpfulness,
            safety_reward=safety,
            helpfulness_reward=helpful,
            reward=jnp.where(unknown, jnp.nan, safety + helpful),
        )
        return scores, {
            "reward/benign": counts.benign,
            "reward/scored": counts.scored,
            "reward/unscorable": counts.unscorable,
            "reward/needed": counts.needed,
            "reward/left_out": counts.left_out,
            "reward/unscored_rate": safe_divide(counts.left_out, counts.needed),
            "reward/flat_groups": counts.flat_groups,
        }

    # Updates ----------------------------------------------------------------------------------------------------------

    def _update_actor(
        self, actor: tuple[Params, Any], batch: TrainBatch, index: Array, sampling: Sampling
    ) -> tuple[tuple, Metrics]:
        """Make M optimizer steps on (weights, optimizer state): step m uses rows ``index[m]``.

        ``index`` int32 [M, rows]: rows of the batch. Each metric is [M], one value for each step.
        """
        settings = self.config.algorithm
        horizon = self.config.rollout.max_new_tokens

        def objective(params, part, total):
            return objectives.actor_objective(self.actor, params, part, total, sampling, settings, horizon)

        def log_prob(params, part):
            chunk = settings.logprob_chunk
            return objectives.policy_logprobs(self.actor, params, part.prompts, part.tokens, sampling, chunk=chunk)[0]

        update = ("actor", self.config.optimizer, self.actor_tx)
        return self._update(*update, actor, objective, batch, index, limit=settings.max_kl, log_prob=log_prob)

    def _update_critic(self, critic: tuple[Params, Any], batch: TrainBatch, index: Array) -> tuple[tuple, Metrics]:
        def objective(params, part, total):
            return objectives.critic_objective(self.critic, params, part, total, self.config.critic)

        update = ("critic", self.config.critic.optimizer, self.critic_tx)
        return self._update(*update, critic, objective, batch, index)

    def _update(
        self, name: str, settings, tx, weights_and_state, objective, batch, index, *, limit: float = 0.0, log_prob=None
    ):
        """Make all optimizer steps in one program.

        If dispatched separately, each step would hold its temporaries from its dispatch on: on CPU,
        three mini-batches took three times the memory of one. ``limit`` and ``log_prob``: as for
        ``objectives.limit_step``; 0 does not limit the steps.
        """

        def one(weights_and_state, index):
            params, opt_state = weights_and_state
            rate = optimizer.learning_rate(settings, self.updates[name], opt_state)
            rows = objectives.take(batch, index)
            total = Denominator.of(rows.sampled)
            micro = self._micro_batch(rows)
            share = functools.partial(objective, total=total)
            (loss, (metrics, logp)), gradient = objectives.accumulate(share, params, rows, micro)
            moved, opt_state, found = objectives.apply_gradient(tx, params, opt_state, gradient, loss, total)
            if limit:
                moved, kept = objectives.limit_step(limit, params, moved, rows, logp, log_prob, micro)
                found |= kept
            found = {f"{name}/{key}": value for key, value in found.items()}
            return (moved, opt_state), metrics | found | {f"{name}/lr": rate}

        return jax.lax.scan(one, weights_and_state, index)

    def _average(self, average: Params, actor: Params, updates: Array) -> Params:
        """Return the moving average of the weights, updated with the policy's new weights.

        A step has weight decay^age, normalised to sum to 1 (Kingma and Ba 2015, section 3). Steps
        count from the actor's first update. So the initial policy has no part in the average,
        however long a critic warmed up or updates were skipped.

        ``updates`` int32 []: the actor's optimizer steps so far, from its optimizer state.
        """
        decay = jnp.float32(self.config.algorithm.ema_decay)
        steps = jnp.maximum(1, -(-updates // self.updates_a_step))
        share = (1 - decay) / (1 - decay**steps)
        return jax.tree.map(lambda mean, new: mean + share * (new - mean), average, actor)
