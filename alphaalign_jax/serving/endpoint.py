"""A reward model behind HTTP: the server of the protocol in ``rewards.reward_model.wire``.

    POST /score    as specified there
    GET  /health   200, without a token
    errors         {"error": "..."}, with Retry-After if the same request is worth another try

Clients are untrusted until their bearer token is checked. No request holds memory, a thread or the
queue for longer than its limits. The text of a request is never logged, and errors quote it only to
the client that sent it.
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
_SHOWN = 400  # characters of an error in a response


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on requests, under the names of the command's options."""

    max_rows: int  # per request
    max_request_bytes: int
    max_waiting: int  # queued rows of all requests, without those being scored
    receive_timeout: float  # seconds until a request has arrived completely
    timeout: float  # seconds from its arrival to its scores

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"--{field.name}={value}: expected a positive number")


class Refused(Exception):
    """A request that gets an error as its response."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class Endpoint:
    """HTTP handlers that pass requests on to ``pool``.

    ``token``: bearer token that every request must carry; None allows any client. ``dtype``:
    compute dtype of the model.
    """

    def __init__(self, pool: Pool, token: str | None, limits: Limits, dtype: str = "float32"):
        self._pool, self._limits, self._dtype = pool, limits, dtype
        self._token = None if token is None else f"Bearer {token}".encode()
        self.answered: collections.Counter[int] = collections.Counter()  # requests by status
        self.rows = 0  # scored
        self.seconds = 0.0  # total time of the requests that got scores

    def application(self) -> web.Application:
        # One byte more, because aiohttp rejects at its limit and the message here names ours.
        app = web.Application(client_max_size=self._limits.max_request_bytes + 1, middlewares=[self._answering])
        app.add_routes([web.post("/score", self._score), web.get("/health", self._health)])
        return app

    def runner(self, app: web.Application) -> web.AppRunner:
        """Return the server of ``app``.

        Idle connections are closed. Compressed bodies, which could expand to any size, are not
        decompressed and are rejected. A client that disconnects leaves the queue.
        """
        how = dict(handler_cancellation=True, auto_decompress=False, access_log=None, lingering_time=1.0)
        how |= dict(keepalive_timeout=self._limits.receive_timeout, shutdown_timeout=self._limits.timeout)
        return web.AppRunner(app, **how)

    @web.middleware
    async def _answering(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Refused as error:
            response = _error(error.status, str(error), error.headers)
        except web.HTTPException as error:  # unknown path, unsupported method, body too large
            limit = f"; max_request_bytes is {self._limits.max_request_bytes}" if error.status == 413 else ""
            response = _error(error.status, f"{error.reason}{limit}: POST /score, GET /health", {})
        if response.status >= 400:
            # aiohttp reads the rest of the request for a second, so that the response arrives.
            response.force_close()
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
        """Raise Refused for a request to reject by its headers, before its body is read."""
        said = request.headers.get("Authorization", "").encode("utf-8", errors="surrogateescape")
        if self._token is not None and not hmac.compare_digest(said, self._token):
            raise Refused(401, "this server wants its bearer token", WWW_Authenticate="Bearer")
        # A web page can make a browser send other content types to a server on the same machine.
        if request.content_type != "application/json":
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
                text.encode()  # JSON can escape a lone surrogate, which no tokenizer accepts
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
