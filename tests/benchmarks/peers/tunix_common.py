"""What both of tunix's learners are given: the model in float32 on one device, and batches that wait for their turn."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from asked import tokenizer
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params
from tunix.rl import rl_cluster
from tunix.rl.rollout.base_rollout import RolloutConfig
from worker import Turns

NEVER = 1  # a token that ends a response and is hardly ever drawn


def config(work: argparse.Namespace, **changed: Any) -> llama.ModelConfig:
    with open(f"{work.folder}/hf/config.json") as file:
        c = json.load(file)
    rope = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
    sizes = dict(
        num_layers=c["num_hidden_layers"],
        vocab_size=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"],
        rope_theta=int(rope),
        norm_eps=c["rms_norm_eps"],
        weight_tying=c["tie_word_embeddings"],
    )
    return llama.ModelConfig(**(sizes | changed))


def mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


def policy(work: argparse.Namespace) -> nnx.Module:
    return params.create_model_from_safe_tensors(f"{work.folder}/hf", config(work), mesh(), getattr(jnp, work.dtype))


def turns_of(work: argparse.Namespace) -> list[str]:
    """The prompts as chats."""
    chat = tokenizer(work)
    write = lambda text: chat.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return [write(text) for text in work.texts]


def cluster(work: argparse.Namespace, **models: nnx.Module) -> rl_cluster.RLCluster:
    chat = tokenizer(work)
    longest = max(len(chat.encode(text)) for text in turns_of(work))
    roles = ("ACTOR", "ROLLOUT", "REFERENCE", "CRITIC", "REWARD")
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-6),
        critic_optimizer=optax.adamw(1e-6),
        eval_every_n_steps=10**9,
        max_steps=10**9,
        mini_batch_size=work.prompts,
        train_micro_batch_size=max(1, work.peer_rows // work.samples) if work.peer_rows else work.prompts,
        rollout_micro_batch_size=work.prompts,
        compute_logps_micro_batch_size=work.prompts,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=work.tokens,
        max_prompt_length=longest,
        kv_cache_size=longest + work.tokens + 1,
        temperature=1.0,
        eos_tokens=[NEVER],
    )
    settings = rl_cluster.ClusterConfig(
        role_to_mesh={getattr(rl_cluster.Role, role): mesh() for role in roles},
        training_config=training,
        rollout_config=rollout,
    )
    return rl_cluster.RLCluster(actor=policy(work), tokenizer=chat, cluster_config=settings, **models)


def batches(work: argparse.Namespace, learner: Any) -> Iterator[dict[str, Any]]:
    """The prompts of one step, whenever it is this program's turn."""
    texts, turns = turns_of(work), Turns()
    while turns.begin():
        yield {"prompts": np.array(texts[: work.prompts])}
        jax.block_until_ready(nnx.state(learner.rl_cluster.actor_trainer.model))
        turns.end()


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Never the same for a whole group."""
    return [float(len(text) % 7) for text in completions]
