"""The cost model against counts made by hand, and a bench of a small config from end to end."""

import json
import pathlib

import pytest

from alphaalign_jax.cli import main
from alphaalign_jax.models import ModelSpec, cost
from alphaalign_jax.models.cost import Workload

ROOT = pathlib.Path(__file__).parents[1]
SPEC = ModelSpec("llama", 64, 32, 48, 3, 4, 2, 8, 1e-6, 1e4, None, 256, False, False, False, False, True)


def test_flops_are_those_of_the_weights_and_of_the_pairs():
    """A matrix left out, or attention counted as if no key were masked, would pass for speed."""
    work = Workload(prompts=2, group=3, prefix=5, prompt=4, response=7)
    weights = SPEC.num_parameters - SPEC.vocab_size * SPEC.hidden_size - (2 * SPEC.num_layers + 1) * SPEC.hidden_size
    assert sum(m * n for m, n in cost.layer_gemms(SPEC).values()) * SPEC.num_layers == weights

    # Every query with every key it may see, one by one: prefix once, each prompt once, each response.
    seen = sum(q + 1 for q in range(5)) + 2 * sum(5 + q + 1 for q in range(4)) + 6 * sum(9 + q + 1 for q in range(7))
    tokens, pair = 5 + 2 * 4 + 6 * 7, 2 * 2 * SPEC.num_heads * SPEC.head_dim * SPEC.num_layers
    logits = 2 * 6 * 7 * SPEC.hidden_size * SPEC.vocab_size
    assert cost.forward_flops(SPEC, work) == 2 * tokens * weights + seen * pair + logits
    assert cost.forward_flops(SPEC, work, head=False) == cost.forward_flops(SPEC, work) - logits


def test_decoding_reads_all_weights_a_token_and_the_shared_cache_once():
    one, many = (Workload(prompts=1, group=group, prefix=50, prompt=10, response=4) for group in (1, 9))
    weights = SPEC.num_parameters - (2 * SPEC.num_layers + 1) * SPEC.hidden_size
    entry = 2 * SPEC.num_layers * SPEC.num_kv_heads * SPEC.head_dim
    assert cost.decode_bytes(SPEC, one, 2) == 4 * 2 * (weights + 62 * entry)
    assert cost.decode_bytes(SPEC, many, 2) - cost.decode_bytes(SPEC, one, 2) == 4 * 2 * 8 * 2 * entry


def test_bench_of_a_small_config(tmp_path, monkeypatch, capsys):
    """Every phase of a PPO step is there, with shares of what the machine was measured to do."""
    from alphaalign_jax.bench import ceilings

    monkeypatch.setattr(ceilings, "_STREAMED", 2**16)
    monkeypatch.setattr(ceilings, "_MOST_FLOPS", {"cpu": 1e6})
    monkeypatch.setattr(ceilings, "PEAK_SIZE", {"cpu": 64})
    out = tmp_path / "bench.json"
    settings = {
        "mesh.devices": 1,
        "rollout.fewest_rows": 2,
        "rollout.prompts": 4,
        "rollout.group": 2,
        "rollout.max_new_tokens": 24,
    }
    settings |= {"algorithm.advantage": "gae", "critic.num_layers": 2, "algorithm.max_kl": 0}
    settings |= {"rollout.bucket": 24, "algorithm.minibatches": 1, "out": tmp_path / "run"}
    arguments = [f"--config.{key}={value}" for key, value in settings.items()]
    command = ["bench", f"--config={ROOT}/configs/tiny.py", "--repeats=1", f"--out={out}"]
    assert main(command + arguments) == 0
    found = json.loads(out.read_text())
    phases = {phase["phase"]: phase for phase in found["phases"]}
    assert list(phases) == ["prefill", "decode", "verify", "score", "update_critic", "update_actor", "step"]
    # The actor's update is the scoring pass of one of its two models (actor and reference; the critic is smaller) and
    # twice as much again; decoding is that pass less the prefill.
    forward = phases["update_actor"]["flops"] / 3
    assert phases["prefill"]["flops"] + phases["decode"]["flops"] == pytest.approx(forward)
    assert forward < phases["score"]["flops"] < 2 * forward
    assert phases["decode"]["memory_share"] > 0 and phases["update_actor"]["gemm_share"] > 0
    assert [(row["prompts"], row["group"], row["response"]) for row in found["growth"]] == [
        *[(4, 2, 12), (4, 2, 6), (2, 2, 24), (1, 2, 24), (4, 1, 24)]
    ]
    assert found["skewed"]["ratio"] > 0 and found["reward_wait"]["waited"] > found["reward_wait"]["reward_model"] > 0
    assert "update_actor" in capsys.readouterr().out
