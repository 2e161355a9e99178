"""A reward model behind HTTP: the server of the protocol in ``rewards.reward_model.wire``.

    POST /score    as there
    else           {"error": "..."}, with Retry-After if the same request is worth another try
    GET  /health   200, without a token

Who asks is a stranger until the bearer token is seen, and no request may hold memory, a thread or the queue for longer
than its limits. What was asked is in no log, and in no error but to who asked it.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from alphaalign_jax.rewards.reward_model import wire
from alphaalign_jax.rewards.reward_model.protocol import RewardModelError, checked_texts
from alphaalign_jax.serving.pooling import Full, Pool
from alphaalign_jax.text import json_of, printable

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SHOWN = 400  # characters of an error


@dataclasses.dataclass(frozen=True)
class Limits:
    """Named as the command's options are."""

    max_rows: int  # of a request
    max_request_bytes: int
    max_waiting: int  # rows of all requests, but those that are being scored
    receive_timeout: float  # seconds for a request to arrive whole
    timeout: float  # seconds from then on to its scores

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"--{field.name}={value}: expected a positive number")


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class Endpoint:
    """Requests to ``pool``. ``token``: the bearer token that each must have; None where whoever asks may. ``dtype``:
    what the model computes in."""

    def __init__(self, pool: Pool, token: str | None, limits: Limits, dtype: str = "float32"):
        self._pool, self._limits, self._dtype = pool, limits, dtype
        self._token = None if token is None else f"Bearer {token}".encode()
        self.answered: collections.Counter[int] = collections.Counter()  # requests by status
        self.rows = 0  # scored
        self.seconds = 0.0  # that requests with scores took, from their arrival

    def application(self) -> web.Application:
        # One byte more than the limit: aiohttp refuses at it, the message here names it.
        app = web.Application(client_max_size=self._limits.max_request_bytes + 1, middlewares=[self._answering])
        app.add_routes([web.post("/score", self._score), web.get("/health", self._health)])
        return app

    def runner(self, app: web.Application) -> web.AppRunner:
        """Connections that say nothing are closed; a compressed body, which may unpack to anything, stays packed and is
        refused; who hangs up frees the queue."""
        how = dict(handler_cancellation=True, auto_decompress=False, access_log=None, lingering_time=1.0)
        how |= dict(keepalive_timeout=self._limits.receive_timeout, shutdown_timeout=self._limits.timeout)
        return web.AppRunner(app, **how)

    @web.middleware
    async def _answering(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Refused as error:
            response = _error(error.status, str(error), error.headers)
        except web.HTTPException as error:  # no such path, a method that it does not have, too large a body
            limit = f"; max_request_bytes is {self._limits.max_request_bytes}" if error.status == 413 else ""
            response = _error(error.status, f"{error.reason}{limit}: POST /score, GET /health", {})
        if response.status >= 400:
            response.force_close()  # what is left of the request is read for a second, so that the answer arrives
        self.answered[response.status] += 1
        return response

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "waiting": self._pool.waiting})

    async def _score(self, request: web.Request) -> web.Response:
        began = time.monotonic()
        self._admit(request)
        questions, answers = self._texts(await self._body(request))
        try:
            async with asyncio.timeout(self._limits.timeout):
                scores = await self._pool.score(questions, answers)
        except Full as error:
            raise Refused(429, f"{error}; ask again") from None
        except TimeoutError:
            seconds = self._limits.timeout
            raise Refused(503, f"not scored within {seconds:g} s; {self._pool.waiting} rows wait") from None
        except RewardModelError as error:
            raise Refused(500, str(error)) from None
        self.rows += len(questions)
        self.seconds += time.monotonic() - began
        return web.json_response(wire.reply(scores, self._dtype))

    def _admit(self, request: web.Request) -> None:
        """Before anything of the body is read."""
        said = request.headers.get("Authorization", "").encode("utf-8", errors="surrogateescape")
        if self._token is not None and not hmac.compare_digest(said, self._token):
            raise Refused(401, "this server wants its bearer token", WWW_Authenticate="Bearer")
        if request.content_type != "application/json":  # a web page may send others to a server on the reader's machine
            raise Refused(415, "expected Content-Type: application/json")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(415, "compressed bodies are not taken")
        if (request.content_length or 0) > self._limits.max_request_bytes:
            raise Refused(413, f"{request.content_length} bytes, max_request_bytes is {self._limits.max_request_bytes}")

    async def _body(self, request: web.Request) -> Any:
        try:
            async with asyncio.timeout(self._limits.receive_timeout):
                raw = await request.read()
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {self._limits.receive_timeout:g} s") from None
        try:
            return json_of(raw.decode())
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not UTF-8 JSON with each key once") from None

    def _texts(self, body: Any) -> tuple[list[str], list[str]]:
        if not isinstance(body, dict) or body.keys() != {"questions", "answers"}:
            raise Refused(400, 'expected {"questions": ["...", ...], "answers": ["...", ...]} and nothing else')
        if not all(isinstance(texts, list) for texts in body.values()):
            raise Refused(400, "questions and answers: expected lists")
        try:
            questions, answers = checked_texts(body["questions"], body["answers"])
            for text in (*questions, *answers):
                text.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
        except UnicodeEncodeError:
            raise Refused(400, "a text holds a lone surrogate; expected valid Unicode") from None
        except ValueError as error:
            raise Refused(400, str(error)) from None
        if not 0 < len(questions) <= self._limits.max_rows:
            raise Refused(413, f"{len(questions)} rows; expected 1 to max_rows={self._limits.max_rows}")
        return questions, answers


def _error(status: int, message: str, headers: dict[str, str]) -> web.Response:
    if wire.worth_another_try(status):
        headers = {"Retry-After": "1", **headers}
    return web.json_response({"error": printable(message)[:_SHOWN]}, status=status, headers=headers)
