"""The command line: ``alphaalign train | sft | generate | evaluate | data | convert | serve | bench | plan``.

It only parses arguments and calls the packages that do the work. ``--help`` shows the first line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from alphaalign_jax import __version__, terminal
from alphaalign_jax.errors import ends_with
from alphaalign_jax.parallel import processes
from alphaalign_jax.parallel.programs import keep_programs
from alphaalign_jax.text import printable


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected true or false")
    return text.lower() == "true"


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="alphaalign", description=__doc__.splitlines()[0])
    out.add_argument("--version", action="version", version=f"alphaalign {__version__}")
    commands = out.add_subparsers(dest="command", required=True)
    _training(commands)
    _using(commands)
    convert = commands.add_parser("convert", help="between Hugging Face, GGUF (in only) and Orbax")
    convert.add_argument("--from", dest="source", required=True)
    convert.add_argument("--to", required=True)
    convert.add_argument("--format", required=True, choices=("hf", "orbax"))
    convert.add_argument("--overwrite", action="store_true", help="replace a model that is at --to")
    _serving(commands)
    _measuring(commands)
    for name in CONFIGURED:
        command = commands.choices[name]
        command.add_argument(
            "--config", required=True, help="file.py or file.py:argument; change fields by --config.key=value"
        )
        command.add_argument(
            "--print-config", action="store_true", help="print the checked settings as JSON, and do nothing else"
        )
    return out


def _training(commands: Any) -> None:
    train = commands.add_parser("train", help="warm-up, PPO or GRPO, evaluation, export")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check settings and inputs, print what would run and its memory, and stop",
    )
    train.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        choices=("auto", "extend"),
        help="continue from the run's newest checkpoint; auto: if there is one; extend: for another number of "
        "steps, with a decaying learning rate recomputed for them",
    )

    sft = commands.add_parser("sft", help="supervised fine-tuning; without --data, the format warm-up")
    sft.add_argument(
        "--self",
        dest="own",
        action="store_true",
        help="format warm-up on texts that the model writes itself (warmup.source=self)",
    )
    sft.add_argument("--data", help="rows {prompt, response}, or {messages}: JSONL, .csv or .parquet")


def _using(commands: Any) -> None:
    generate = commands.add_parser("generate", help="sample responses to prompts")
    generate.add_argument("--prompts", required=True, help="rows {prompt}, or {messages}: JSONL, .csv or .parquet")
    generate.add_argument("--n", type=int, default=1, help="samples a prompt")
    generate.add_argument("--prefix", default="", help="text that every response starts with (prefilling attack)")

    evaluate = commands.add_parser("evaluate", help="harmful answered, benign refused, format rate")
    evaluate.add_argument(
        "--data", required=True, help="rows {prompt, label}, or {messages, label}: JSONL, .csv or .parquet"
    )

    data = commands.add_parser("data", help="inspect a set of prompts")
    audit = data.add_subparsers(dest="what", required=True).add_parser(
        "audit", help="find labels that are likely wrong, and training prompts that are also held out"
    )
    audit.add_argument(
        "--data", required=True, help="prompts with labels, as for evaluate; separate several files with commas"
    )
    audit.add_argument("--heldout", default="", help="held-out sets, in the same format")
    audit.add_argument(
        "--similarity", type=float, default=0.9, help="similarity from which two prompts count as near-duplicates"
    )
    audit.add_argument("--n", type=int, default=8, help="responses of the model to each prompt")
    audit.add_argument("--show", type=int, default=10, help="findings of each kind to print; the file has all")

    for command in (evaluate, audit):
        command.add_argument(
            "--label_map",
            default="",
            help="how the files spell labels: safe_unsafe, true_is_harmful, true_is_safe, or a JSON object from their "
            "values to harmful or benign",
        )
    for command in (generate, evaluate, audit):
        command.add_argument(
            "--model",
            required=command is not audit,
            help="Hugging Face directory or id, GGUF file, package:NAME, or a run's folder",
        )
        command.add_argument("--out", required=command is not audit, default="runs/audit.json")
        command.add_argument(
            "--template",
            type=boolean,
            default=True,
            help="put the AlphaAlign instruction before the question; false: a refusal counts outside the tags too",
        )
        command.add_argument(
            "--chat_args",
            help="arguments of the chat template, as name=value,...: enable_thinking=false; default: those "
            "saved with the model",
        )
        command.add_argument(
            "--chat_date", help="date for a chat template that prints today's; default: the one saved with the model"
        )
        command.add_argument("--temperature", type=float, default=1.0 if command is audit else 0.0)
        command.add_argument("--top_k", type=int, default=0)
        command.add_argument("--top_p", type=float, default=1.0)
        command.add_argument("--max_new_tokens", type=int, default=512)
        command.add_argument("--batch", type=int, default=16, help="prompts at a time")
        command.add_argument("--devices", type=int, default=0, help="use only the first N devices; 0: all")
        command.add_argument("--tensor", type=int, default=1, help="devices that share one copy of the weights")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "--format_mode", choices=("strict", "paper"), default="strict", help="how the format is checked"
        )
        command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def _serving(commands: Any) -> None:
    serve = commands.add_parser(
        "serve", help="the reward model of a config's reward_model section behind HTTP, for runs on other machines"
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all addresses of this machine"
    )
    serve.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any free port")
    serve.add_argument(
        "--token_env", default="", help="environment variable with the bearer token that clients must send"
    )
    serve.add_argument("--certificate", default="", help="PEM file, for https")
    serve.add_argument("--key", default="", help="its private key, if it is in another file")
    serve.add_argument(
        "--max_rows", type=int, default=1024, help="most rows in a request, and about the most in a scoring call"
    )
    serve.add_argument("--max_request_bytes", type=int, default=16 << 20)
    serve.add_argument(
        "--max_waiting",
        type=int,
        default=8192,
        help="most rows in the queue; beyond it, requests are told to retry later",
    )
    serve.add_argument("--receive_timeout", type=float, default=30.0, help="seconds within which a request must arrive")
    serve.add_argument("--timeout", type=float, default=60.0, help="seconds within which it must be scored")


def _measuring(commands: Any) -> None:
    bench = commands.add_parser("bench", help="time the phases of a config's step against this machine's limits")
    bench.add_argument("--repeats", type=int, default=3, help="timed calls of each phase, after the one that compiles")
    bench.add_argument(
        "--parts",
        default="phases,skewed,wait,growth",
        help="phases of a step, skewed response lengths, a wait for a slow reward model, growth with the rollout",
    )
    bench.add_argument("--out", default="runs/bench.json")

    plan = commands.add_parser(
        "plan", help="compile a config's step for a TPU without having one: memory, time and price"
    )
    plan.add_argument("--topology", required=True, help="v5litepod-16, v5p-16, v6e-16 and the like, v5e:4x4, or cpu:8")
    plan.add_argument("--prefix_tokens", type=int, default=140, help="tokens of the template, shared by all prompts")
    plan.add_argument(
        "--prompt_tokens",
        type=int,
        help="prompt tokens after the template; default: data.max_prompt_tokens minus the template",
    )
    plan.add_argument(
        "--sweep",
        action="store_true",
        help="plan many layouts and rank them; --sweep.mesh.tensor=1,2,4 and the like say which (all combinations)",
    )
    plan.add_argument(
        "--effort",
        choices=("full", "fast"),
        help="compiler effort: full as in a run, fast in half the time; default: fast in a sweep, else full",
    )
    plan.add_argument("--check", action="store_true", help="exit with status 1 if it does not fit")
    plan.add_argument("--price", type=float, help="dollars per chip and hour")
    plan.add_argument("--out", default="runs/plan.json")
    plan.add_argument("--plot", default="", help="write a picture (.png, .svg or .pdf); needs matplotlib")


def joined(argv: Sequence[str]) -> list[str]:
    """Rewrite ``--config.key value`` as ``--config.key=value``; the same for ``--sweep.key``."""
    found: list[str] = []
    for argument in argv:
        last = found[-1] if found else ""
        if last.startswith(("--config.", "--sweep.")) and "=" not in last and not argument.startswith("--"):
            found[-1] = f"{last}={argument}"
        else:
            found.append(argument)
    return found


def overrides(extra: Sequence[str]) -> list[tuple[str, str]]:
    """Return ``--config.key=value`` arguments as pairs. Raise ValueError for other arguments."""
    pairs = []
    for argument in extra:
        key, equals, value = argument.partition("=")
        if not key.startswith("--config.") or not equals:
            raise ValueError(f"argument {argument!r} is not known; settings are changed by --config.key=value")
        pairs.append((key.removeprefix("--config."), value))
    return pairs


def swept(extra: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return ``--sweep.key=value,value`` arguments as {key: values}, and the other arguments."""
    axes, rest = {}, []
    for argument in extra:
        key, equals, values = argument.partition("=")
        if key.startswith("--sweep.") and equals and values:
            axes[key.removeprefix("--sweep.")] = values.split(",")
        else:
            rest.append(argument)
    return axes, rest


def _print_config(args: Any, extra: Sequence[tuple[str, str]]) -> int:
    """Print the checked settings in the form of summary.json."""
    from alphaalign_jax import config

    print(json.dumps(dataclasses.asdict(config.load(args.config, extra)), indent=2))
    return 0


def _train(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax import config
    from alphaalign_jax.train import loop

    processes.keep_freed_memory()
    settings = config.load(args.config, extra)
    loop.train(settings, resume=args.resume, dry_run=args.dry_run, command=args.command_line)


def _sft(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax import config
    from alphaalign_jax.train import finetune

    processes.keep_freed_memory()
    if args.own and args.data:
        raise ValueError(f"--self makes the texts to learn from, and --data={args.data} brings them; give one of them")
    own = [("warmup.source", "self")] if args.own else []
    finetune.run(config.load(args.config, [*extra, *own]), data=args.data)


def _generate(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax.evaluation import commands

    commands.generate(args)


def _evaluate(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax.evaluation import commands

    commands.evaluate(args)


def _data(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax.evaluation import label_audit

    label_audit.run(args)


def _convert(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax import hf
    from alphaalign_jax.display import Display

    hf.convert(args.source, args.to, args.format, overwrite=args.overwrite)
    Display().say(f"{args.source} in format {args.format}: {args.to}")


def _serve(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax import config
    from alphaalign_jax.serving import command

    command.run(args, config.load(args.config, extra))


def _bench(args: Any, extra: Sequence[tuple[str, str]]) -> None:
    from alphaalign_jax import config
    from alphaalign_jax.bench import command

    processes.keep_freed_memory()
    settings = config.load(args.config, extra)
    parts = [part for part in args.parts.split(",") if part]
    command.run(settings, repeats=args.repeats, parts=parts, out=args.out, command=args.command_line)


def _plan(args: Any, extra: Sequence[tuple[str, str]]) -> int:
    from alphaalign_jax.planning import command, sweep

    fits = command.run(
        args.config,
        extra,
        topology_name=args.topology,
        prefix_tokens=args.prefix_tokens,
        prompt_tokens=args.prompt_tokens,
        axes=args.axes or (sweep.DEFAULT if args.sweep else None),
        effort=args.effort,
        dollars_hour=args.price,
        out=args.out,
        plot=args.plot,
        command=args.command_line,
    )
    return int(args.check and not fits)


# Commands that take a --config.
CONFIGURED = ("train", "sft", "serve", "bench", "plan")
# Each command returns its exit status; None means 0.
COMMANDS: dict[str, Callable[[Any, Sequence[tuple[str, str]]], int | None]] = {
    "train": _train,
    "sft": _sft,
    "generate": _generate,
    "evaluate": _evaluate,
    "data": _data,
    "convert": _convert,
    "serve": _serve,
    "bench": _bench,
    "plan": _plan,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. Invalid input ends in one line, not a traceback."""
    sys.excepthook = _show_error
    with terminal.tolerant():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    argv = joined(sys.argv[1:] if argv is None else argv)
    args, extra = parser().parse_known_args(argv)
    args.command_line = shlex.join(["alphaalign", *argv])
    try:
        if args.command == "plan":
            args.axes, extra = swept(extra)
        pairs = overrides(extra)
        if pairs and args.command not in CONFIGURED:
            raise ValueError(f"alphaalign {args.command} takes no --config settings, got {pairs[0][0]}")
        if args.command in CONFIGURED and args.print_config:
            return _print_config(args, pairs)
        keep_programs()
        processes.start()
        return COMMANDS[args.command](args, pairs) or 0
    except Exception as error:
        status, shown = ends_with(error)
        if not isinstance(shown, str):
            processes.abandon(status, error)
            raise
        terminal.write_error(f"alphaalign {args.command}: {printable(shown)}")
        processes.abandon(status)
        return status


def _show_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Print an unexpected error with control characters escaped, because it may quote a file."""
    terminal.write_error(printable("".join(traceback.format_exception(kind, error, trace))).rstrip("\n"))


if __name__ == "__main__":
    sys.exit(main())
