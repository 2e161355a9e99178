"""``alphaalign serve``: serve a config's reward model to runs on other machines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import time
from typing import Any

import jax
import rich.table
from aiohttp import web

from alphaalign_jax.config import Config
from alphaalign_jax.display import Display, figures_table
from alphaalign_jax.rewards.reward_model.http import LOOPBACK, bearer_token
from alphaalign_jax.rewards.reward_model.protocol import AsyncScorer
from alphaalign_jax.serving.endpoint import Endpoint, Limits
from alphaalign_jax.serving.pooling import Pool
from alphaalign_jax.train import assembly


def run(args: Any, config: Config, display: Display | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer the pending requests and print a summary.

    Raise ValueError, before the model is read, for a public address without a token, invalid limits
    or files, and a config without a reward model that runs here.
    """
    limits = Limits(args.max_rows, args.max_request_bytes, args.max_waiting, args.receive_timeout, args.timeout)
    token, tls = bearer_token(args.token_env, "--token_env"), _tls(args.certificate, args.key)
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port={args.port}: expected 0 to 65535")
    if args.host not in LOOPBACK and token is None:
        raise ValueError(
            f"--host={args.host} can be reached from other machines: set --token_env=VARIABLE, which holds a bearer "
            "token"
        )
    if config.reward_model.kind not in ("classifier", "callable"):
        raise ValueError(
            f"reward_model.kind={config.reward_model.kind}: serve needs a model that runs here, a classifier or a "
            "callable; for example --config.reward_model.kind=classifier --config.reward_model.target=DIR"
        )
    if jax.process_count() > 1:
        raise ValueError("serve runs on one host: start one on each, without ALPHAALIGN_PROCESSES")
    scorer = assembly.open_scorer(config)  # scores a first row: compiles, or fails early
    if scorer is None:
        raise ValueError(
            "reward.helpfulness=off: the config reads no reward model; set --config.reward.helpfulness=raw"
        )
    with contextlib.closing(scorer):
        asyncio.run(_serve(scorer, config, args, token, tls, limits, display or Display()))


async def _serve(
    scorer: AsyncScorer,
    config: Config,
    args: Any,
    token: str | None,
    tls: ssl.SSLContext | None,
    limits: Limits,
    display: Display,
) -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def end(number: int) -> None:  # a second signal ends the process at once
        loop.remove_signal_handler(number)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, number)
    pool = Pool(scorer.score, rows=limits.max_rows, waiting=limits.max_waiting)
    endpoint = Endpoint(pool, token, limits, config.reward_model.dtype)
    runner = endpoint.runner(endpoint.application())
    await runner.setup()
    working = asyncio.create_task(pool.work())
    began = time.monotonic()
    try:
        await _listen(web.TCPSite(runner, args.host, args.port, ssl_context=tls), args)
        # With --port=0 the system chose the port.
        port = runner.addresses[0][1]
        host = socket.getfqdn() if args.host in ("0.0.0.0", "::", "") else args.host
        url = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}/score"
        asked = f", with the bearer token of {args.token_env}" if token else ""
        display.say(f"{config.reward_model.target} answers at {url}{asked}; a run asks it with")
        named = f" --config.reward_model.token_env={args.token_env}" if token else ""
        if config.reward_model.dtype != "float32":
            named += f" --config.reward_model.dtype={config.reward_model.dtype}"
        display.say(f"  --config.reward_model.kind=http --config.reward_model.target={url}{named}")
        if token and not tls and args.host not in LOOPBACK:
            display.say("  the token travels unencrypted: give --certificate, or put a proxy with TLS before it")
        await ended.wait()
    finally:
        await runner.cleanup()
        working.cancel()
    display.say(_summary(endpoint, time.monotonic() - began))


async def _listen(site: web.TCPSite, args: Any) -> None:
    try:
        await site.start()
    except OSError as error:
        raise ValueError(f"--host={args.host} --port={args.port}: cannot be listened at ({error.strerror})") from error


def _summary(endpoint: Endpoint, seconds: float) -> rich.table.Table:
    table = figures_table("served", ("", "found"), left=("",), caption="")
    for status, count in sorted(endpoint.answered.items()):
        table.add_row(f"requests answered with {status}", str(count))
    table.add_row("rows scored", str(endpoint.rows))
    table.add_row("seconds to scores, mean", f"{endpoint.seconds / max(1, endpoint.answered[200]):.3f}")
    table.add_row("seconds", f"{seconds:.0f}")
    return table


def _tls(certificate: str, key: str) -> ssl.SSLContext | None:
    if not certificate and not key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"--certificate={certificate} --key={key}: not a PEM certificate and its key ({error.strerror or error})"
        ) from error
    return context
