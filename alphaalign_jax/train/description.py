"""Describe a prepared run: its model and data when it starts, its plan for ``train --dry-run``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable

import jax

from alphaalign_jax import buckets, hf
from alphaalign_jax.config import Config
from alphaalign_jax.display import Display
from alphaalign_jax.train import assembly, provenance, sft, warmup
from alphaalign_jax.train.assembly import Prepared
from alphaalign_jax.train.checkpoint import Progress


def introduction(prepared: Prepared) -> list[str]:
    """Return lines about a run's model, devices and data, and about any problems in the data."""
    p, c = prepared, prepared.config
    mesh = p.train_layout.mesh
    devices = f"{mesh.size} {jax.devices()[0].platform.upper()} device{'s' * (mesh.size > 1)}"
    if mesh.size > 1:
        devices += f" (mesh: {', '.join(f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1)})"
    dropped = f" ({p.train.dropped} longer ones left out)" if p.train.dropped else ""
    aside = "" if p.validation is None else f", {len(p.validation)} set aside to choose the best state"
    lines = [
        f"{c.name}: {c.model.path}, {p.actor.spec.num_parameters / 1e6:.1f} M parameters, on {devices}",
        f"prompts: {len(p.train)} for training{dropped}{aside}, {len(p.heldout)} held out to measure it before and "
        "after",
    ]
    if hf.reads_date(p.policy.tokenizer):
        lines.append(f"the chat template asks for today's date: it is given {p.policy.chat.date} (model.chat_date)")
    if c.eval.every and c.checkpoint.keep_best and p.validation is None:
        lines.append(
            "data.validation=0: looks use the held-out prompts, so the best state is chosen by those that are reported"
        )
    return lines if p.audit.clean else [*lines, str(p.audit)]


def describe(prepared: Prepared, resumed: int | None) -> list[str]:
    """Return lines with the run's plan in order, and its estimated memory.

    The plan starts at step ``resumed``, or at the warm-up if it is None.
    """
    c, r, e = prepared.config, prepared.config.rollout, prepared.config.eval
    lines = [f"the template before each question takes {len(prepared.train.prefix)} tokens"]
    if resumed is not None:
        lines.append(f"resume at step {resumed}")
    if resumed is None and c.warmup.epochs:
        count = len(warmup.prompts(prepared.train, c))
        own = c.warmup.source == "self"
        if own:
            lines.append(f"sample a thought on each of {count} prompts and an answer to the benign ones of them")
        steps = f"{'at most ' * own}{sft.steps(c.warmup, count)} steps"
        lines.append(f"warm up for {steps} of {c.warmup.batch} of {'these' if own else count} examples")
    looks = f"evaluate {len(prepared.heldout)} held-out prompts before and after"
    if e.every:
        prompts, named = prepared.looked_at, "held-out" if prepared.validation is None else "validation"
        count = min(e.limit or len(prompts), len(prompts))
        looks += f", {count} {named} prompts every {e.every} steps"
    lines.append(f"{looks}, with responses of up to {e.max_new_tokens or r.max_new_tokens} tokens")
    updates = c.algorithm.epochs * c.algorithm.minibatches
    lines.append(
        f"train to step {c.steps}, each of {r.prompts} prompts with {r.group} responses of up to {r.max_new_tokens} "
        f"tokens and {updates} update(s) by {c.algorithm.advantage}"
    )
    scores = "no reward model" if prepared.scorer is None else f"{c.reward_model.kind} {c.reward_model.target}"
    lines.append(f"score answers by: {scores}")
    export = f", and export the model to {c.location}/export" if c.export else ""
    lines.append(f"keep checkpoints and records in {c.location}{export}")
    return [*lines, str(prepared.memory)]


def rehearse(
    config: Config,
    mirror: buckets.Mirror,
    progress: Progress | None,
    resumed: int | None,
    display: Display,
    look: Callable[[str], None],
) -> None:
    """Prepare the run and show its plan, without training or writing anything.

    ``progress``: saved progress of a run that resumes at step ``resumed``, else None. A new run
    uses a temporary folder. ``look``: as for ``assembly.prepare``.
    """
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        place = mirror if progress else buckets.Mirror(scratch)
        prepared = assembly.prepare(config, place, look, display.say, resumes=progress is not None)
        if prepared.scorer is not None:
            stack.enter_context(contextlib.closing(prepared.scorer))
        inputs = provenance.inputs(prepared)
        changed = provenance.check_resumed(progress, prepared, inputs) if progress else []
        for line in (*introduction(prepared), *changed, *describe(prepared, resumed)):
            display.say(line)
    display.say("dry run: nothing was trained or written")
