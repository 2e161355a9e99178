"""``alphaalign generate`` and ``evaluate``: sample responses of a model, write a results file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax

from alphaalign_jax import config, hf, output
from alphaalign_jax.config.chat import ChatSettings
from alphaalign_jax.data.audit import audit
from alphaalign_jax.data.labels import map_of_text
from alphaalign_jax.data.prompts import Source, read
from alphaalign_jax.data.row import PromptRow
from alphaalign_jax.data.tokenized import PromptSet, check_no_control
from alphaalign_jax.display import Display
from alphaalign_jax.errors import explaining_memory
from alphaalign_jax.evaluation import outcome
from alphaalign_jax.evaluation.respond import Response, respond
from alphaalign_jax.hf.chat import control_texts
from alphaalign_jax.models import Network
from alphaalign_jax.models.distribution import Sampling
from alphaalign_jax.parallel import Layout, build_mesh, first_devices, rule_table
from alphaalign_jax.rewards.oracle import answer_block, refusal_oracle
from alphaalign_jax.rewards.template import render
from alphaalign_jax.rollout.engine import InFlight
from alphaalign_jax.rollout.policy import Policy
from alphaalign_jax.text import inline

_SHOWN = 3  # prompts whose first response generate prints; the file has all responses


def generate(args: Any) -> None:
    """Write one line per prompt: ``{prompt, samples: [...]}``, and ``context`` for earlier turns.

    Also print the first few.
    """
    output.check(args.out, args.prompts)
    if args.n > 1 and not args.temperature:
        raise ValueError(f"--n={args.n} with --temperature=0 gives {args.n} times the same; set --temperature=1.0")
    rows, display = _unlabelled(args.prompts), Display()
    results = sample(args, rows, display, group=args.n, prefix=args.prefix)
    lines = (
        json.dumps({**row.to_json(), "samples": [r.to_json() for r in responses]}) + "\n"
        for row, responses in zip(rows, results, strict=True)
    )
    output.write(args.out, "".join(lines))
    for row, responses in zip(rows[:_SHOWN], results):
        display.say(f"> {inline(row.prompt)}\n{inline(responses[0].text, 2000)}")
    display.say(f"{len(rows)} prompt(s) with {args.n} response(s) each: {args.out}")


def evaluate(args: Any) -> None:
    """Write the summary's fields with their counts, for all rows and by source; print the table."""
    output.check(args.out, args.data)
    rows = read(Source(path=args.data, label_map=map_of_text(args.label_map)), answers=False)
    display = Display()
    findings = audit(rows)
    if not findings.clean:
        display.say(str(findings))
    responses = [samples[0] for samples in sample(args, rows, display, group=1)]
    everything = outcome.count(rows, responses).to_json()
    groups = {name: value.to_json() for name, value in outcome.by_group(rows, responses).items()}
    about = {"model": args.model, "data": args.data, "chat": chat_settings(args).to_json()}
    by_source = {name: outcome.with_intervals(shares) for name, shares in groups.items()}
    found = {**outcome.with_intervals(everything), "by_source": by_source, **about}
    output.write(args.out, json.dumps(found, indent=2) + "\n")
    display.say(outcome.single({"all": everything, **groups}))
    display.say(f"the same with counts: {args.out}")


def sample(
    args: Any, rows: Sequence[PromptRow], display: Display, *, group: int, prefix: str = ""
) -> list[list[Response]]:
    """Sample ``group`` responses to each row from the model of ``args``, in order."""
    if group < 1 or args.batch < 1 or args.max_new_tokens < 1:
        raise ValueError(
            f"--n={group}, --batch={args.batch}, --max_new_tokens={args.max_new_tokens}: expected at least 1 each"
        )
    if not 0 <= args.seed < 2**31:
        raise ValueError(f"--seed={args.seed}: expected 0 to {2**31 - 1}")
    Sampling.create(args.temperature, args.top_k, args.top_p)  # checks ranges before reading files
    chat = chat_settings(args)
    policy = Policy.open(args.model, args.format_mode, chat.date, chat.args)
    sampling = policy.sampling(args.temperature, args.top_k, args.top_p)
    prompts = PromptSet.build(rows, policy.tokenizer, render if args.template else None, settings=policy.chat)
    check_no_control(prefix, control_texts(policy.tokenizer), f"--prefix={prefix!r:.200}", "take it out")
    forced = policy.tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    longest = prompts.longest + len(forced) + args.max_new_tokens
    if longest > policy.spec.max_positions:
        raise ValueError(
            f"the longest prompt, --prefix and --max_new_tokens need {longest} positions; "
            f"the model has {policy.spec.max_positions}; lower --max_new_tokens, or leave the row out: "
            f"{prompts.longest_row.named}"
        )
    layout = Layout(build_mesh(tensor=args.tensor, devices=first_devices(args.devices)), rule_table("tensor"))
    engine = policy.engine(layout, args.dtype, InFlight.of(config.Rollout()))
    _, params = hf.load(policy.path, network=Network(policy.spec), layout=layout, param_dtype=args.dtype)
    advice = "take less by a lower --batch, --n or --max_new_tokens, or --dtype=bfloat16"
    with explaining_memory(advice), display.bar("prompts", len(rows)) as advance:
        responses = respond(
            engine,
            engine.prepare(params),
            prompts,
            policy,
            sampling=sampling,
            key=jax.random.key(args.seed),
            slots=args.max_new_tokens + len(forced),
            batch=min(args.batch, len(rows)),
            group=group,
            forced=forced,
            on_batch=advance,
        )
    logprobs = (p for samples in responses for response in samples for p in response.logprobs if p is not None)
    if not all(map(math.isfinite, logprobs)):
        raise ValueError(f"{args.model} with --dtype={args.dtype} gives non-finite log-probs, so there is no result")
    return responses if args.template else [[judged_whole(one) for one in samples] for samples in responses]


def chat_settings(args: Any) -> ChatSettings:
    """Return the chat template's settings: those saved with the model; options override them."""
    pairs = None if args.chat_args is None else tuple(filter(None, args.chat_args.split(",")))
    try:
        return hf.chat_settings(args.model, args.chat_date or "", pairs)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def judged_whole(response: Response) -> Response:
    """Return the response with its refusal judged on the whole text if it has no answer block.

    Without the template, nothing asks the model for tags.
    """
    text = response.text.encode()
    if answer_block(text) is not None:
        return response
    return dataclasses.replace(response, refusal=refusal_oracle(b"<answer>" + text + b"</answer>"))


def _unlabelled(path: str) -> list[PromptRow]:
    """Read rows ``{prompt}``. Labels and answers are not read, because generate needs neither."""
    return read(Source(path=path, label="benign"), answers=False)
