"""``alphaalign sft``: fine-tune a config's model on given responses or on the warm-up's data."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time

from etils import epath

from alphaalign_jax import buckets, hf
from alphaalign_jax.config import Config
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.tokenized import PromptSet
from alphaalign_jax.display import Display
from alphaalign_jax.errors import explaining_memory
from alphaalign_jax.models import Network, Params
from alphaalign_jax.parallel.programs import keep_programs
from alphaalign_jax.rewards.template import render
from alphaalign_jax.rollout.engine import Engine, InFlight
from alphaalign_jax.rollout.policy import Policy
from alphaalign_jax.train import assembly, following, memory, own_texts, provenance, warmup
from alphaalign_jax.train.records import Records, check_unused
from alphaalign_jax.train.sft import Supervised, check_responses


def run(config: Config, *, data: str | None = None, display: Display | None = None) -> pathlib.Path:
    """Train for ``warmup.epochs`` and export the model. Return the export directory.

    ``data``: a file for ``read_pairs``. All of its rows are used: ``warmup.max_examples`` and
    ``data.max_prompt_tokens`` apply to the warm-up alone. None: run the format warm-up on
    ``data.train``.
    """
    if not config.warmup.epochs:
        raise ValueError("warmup.epochs=0: nothing to train; set --config.warmup.epochs")
    keep_programs()
    # A separate default folder, so that a training run of this config keeps its metrics and export.
    with buckets.mirrored(config.out or f"runs/{config.name}-sft") as mirror:
        return _run(config, data, display or Display(), mirror)


def _run(config: Config, data: str | None, display: Display, mirror: buckets.Mirror) -> pathlib.Path:
    run_dir = mirror.folder
    if (epath.Path(mirror.url) / "checkpoints").exists():
        raise ValueError(f"{mirror.url} holds a training run; choose another --config.out")
    layout, _ = assembly.layouts(config)
    if data is None:
        read_for_run = assembly.read_rows(config)
        rows, texts = read_for_run.train, None
        if not read_for_run.audit.clean:
            display.say(str(read_for_run.audit))
    else:
        rows, texts = read_pairs(data)
    check_unused(run_dir)
    policy = assembly.open_policy(config, assembly.model_path(config))
    # Pairs keep all rows: dropping a prompt here would shift every later response.
    limit = {} if data else {"max_prompt_tokens": config.data.max_prompt_tokens, "on_long": config.data.on_long}
    prompts = PromptSet.build(rows, policy.tokenizer, render, bucket=config.data.bucket, settings=policy.chat, **limit)
    if data is None:
        longest = warmup.longest(prompts, config, policy)
        prompts = warmup.prompts(prompts, config)
    else:
        longest = check_responses(prompts, [[text] for text in texts], policy.tokenizer, policy.spec.max_positions)
    display.say(f"{len(prompts)} examples ({prompts.dropped} prompts dropped for length)")
    network = Network(policy.spec, dtype=config.model.dtype, remat=config.model.remat)
    sizes = memory.Sizes.of(config, prompts, warmup_response=longest)
    made = lambda changed: memory.supervised(
        changed, dataclasses.replace(network, remat=changed.model.remat), layout, sizes
    )
    expected = memory.check(config, made, display.say)
    _, params = hf.load(policy.path, network=network, layout=layout)
    responses = lambda index, _: [texts[i] for i in index]
    if data is None:
        material = _material(config, policy, params, prompts, mirror, display)
        prompts, responses, longest = material.prompts, material.responses(config), material.longest
    trainer = Supervised(config, network, layout, len(prompts))
    began = time.perf_counter()
    with (
        explaining_memory(memory.advice(config, expected)),
        contextlib.closing(Records(run_dir)) as records,
        display.bar("sft", trainer.steps) as advance,
    ):
        records.begin()
        followed = following.supervised("sft", config.guards, records, display, advance)
        about = (params, prompts, responses, policy.tokenizer, policy.end_id)
        params = trainer.train(*about, longest=longest, on_step=followed)
    target = run_dir / "export"
    policy.export(params, network, target)
    display.say(f"{trainer.steps} steps, {time.perf_counter() - began:.0f} s; exported to {mirror.url}/export")
    return target


def _material(
    config: Config, policy: Policy, params: Params, chosen: PromptSet, mirror: buckets.Mirror, display: Display
) -> warmup.Material:
    """Return the training data of the format warm-up."""
    sampled = assembly.rollout_network(config, policy.spec)
    _, layout = assembly.layouts(config)
    engine = Engine(sampled, layout, policy.verifiers, policy.stop_ids, in_flight=InFlight.of(config.rollout))
    about = (provenance.weights_id(params), mirror.folder, display)
    return own_texts.material(config, policy, engine, params, chosen, *about)


def read_pairs(path: str) -> tuple[list[PromptRow], list[str]]:
    """Return the prompts and the responses of a file.

    Rows are ``{prompt, response}`` or conversations that end with the response. A file is JSONL
    unless its name ends in .csv or .parquet. Raise ValueError, with file and line, if a row is not
    a pair of texts.
    """
    kind = "" if pathlib.PurePath(path).suffix.lower() in (".csv", ".parquet") else "jsonl"
    rows = read(Source(path=path, kind=kind, label="benign", answer_key="response"))
    for row in rows:
        if not row.answer.strip():
            raise ValueError(
                f"{row.named}: no response; expected a row with texts 'prompt' and 'response', or with 'messages' that "
                "end with the assistant's"
            )
    return rows, [row.answer for row in rows]
