"""A reward model behind HTTP: the client of the protocol in ``wire``.

Retried with exponential backoff and jitter: the statuses of ``wire.worth_another_try`` (``Retry-After`` honoured),
time-outs, broken connections, and a 200 whose body is not the JSON expected or has a wrong count, as that of a proxy
whose server starts again. Anything else is an error at once, since the same request would fail the same way. Redirects
are not followed (the bearer token would travel to another host) and proxy variables are not read: a reward server is a
neighbour. The standard library's client is enough for that.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from alphaalign_jax.config import urls
from alphaalign_jax.rewards.reward_model import wire
from alphaalign_jax.rewards.reward_model.protocol import RewardModelError, check_precision, checked_texts
from alphaalign_jax.text import printable

log = logging.getLogger(__name__)
_SHOWN = 400  # characters of an error, with what a server said
_TELLING = 6  # characters of a token that are not to be seen
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Transient(Exception):
    """An attempt failed in a way that another attempt may not. ``wait`` is the server's Retry-After in seconds."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Limits:
    batch_limit: int  # rows a request
    max_concurrency: int  # requests in flight
    connect_timeout: float  # seconds to open the connection
    read_timeout: float  # seconds from the request sent to the last byte of its response
    max_retries: int  # attempts after the first
    backoff: float  # seconds before the first retry, doubling
    max_backoff: float  # seconds, the doubling's ceiling
    retry_after_limit: float  # seconds; a server that asks for longer is taken to be down
    max_response_bytes: int

    def __post_init__(self):
        for name, least in (("batch_limit", 1), ("max_concurrency", 1), ("max_retries", 0), ("max_response_bytes", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"HTTP reward model: {name} must be an integer >= {least}, got {value!r}")
        for name in ("connect_timeout", "read_timeout", "backoff", "max_backoff", "retry_after_limit"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"HTTP reward model: {name} must be seconds >= 0, got {value!r}")
        for name in ("connect_timeout", "read_timeout"):
            if getattr(self, name) == 0:
                raise ValueError(f"HTTP reward model: {name} must be above 0 seconds")


def bearer_token(name: str | None, setting: str) -> str | None:
    """The bearer token in environment variable ``name``, which ``setting`` has; its value appears in no message."""
    if not name:
        return None
    token = os.environ.get(name)
    if not token:
        raise ValueError(f"{setting} names {name!r}, but that variable is unset or empty")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{setting}: the value of {name!r} has blanks or control characters")
    return token


def retry_after_seconds(value: str | None) -> float:
    """Seconds that Retry-After asks for (RFC 9110 section 10.2.3: a count or a date); 0 if absent or malformed."""
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, when.timestamp() - time.time())


def _hang_up(sock: socket.socket) -> None:
    """From another thread: whoever reads from it is told that it is closed."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, which may be in use


class HttpRewardModel:
    """Scores rows by posting them, ``batch_limit`` rows a request and at most ``max_concurrency`` requests at a time.

    Args:
        url: ``http://host:port/path`` or ``https://...``.
        dtype: what the server's scores are computed in, one of ``DTYPES``. A server that states a less exact one is
            refused.
        token_env: name of an environment variable that holds a bearer token; read once, here.
        others: see ``_Limits``; times in seconds. With the defaults a server that is down is given up after two to
            four minutes: it may have weights to load.
    """

    def __init__(
        self,
        url: str,
        *,
        batch_limit: int = 64,
        max_concurrency: int = 4,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
        max_retries: int = 12,
        backoff: float = 0.5,
        max_backoff: float = 30.0,
        retry_after_limit: float = 300.0,
        token_env: str | None = None,
        max_response_bytes: int = 8 << 20,
        dtype: str = "float32",
    ):
        self._dtype = dtype
        self._limits = _Limits(
            batch_limit, max_concurrency, connect_timeout, read_timeout, max_retries, backoff, max_backoff,
            retry_after_limit, max_response_bytes,
        )  # fmt: skip
        self._url = urls.checked(url)
        self._token = bearer_token(token_env, "HTTP reward model: token_env")
        if self._token and self._url.scheme == "http" and self._url.hostname not in LOOPBACK:
            log.warning("the reward model's bearer token travels unencrypted to %s; use https", self._url.hostname)
        self._name = f"reward model at {self._url.scheme}://{self._url.netloc}{self._url.path}"
        self._pool = ThreadPoolExecutor(max_workers=max_concurrency, thread_name_prefix="reward-http")
        self._closed = threading.Event()
        self._open: set[socket.socket] = set()  # of requests that are under way
        self._call: threading.Event | None = None  # set to make a running call's requests stop retrying

    def __repr__(self) -> str:
        return f"HttpRewardModel({self._name})"

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """float32 [n], NaN for null. RewardModelError once any request has used up its retries."""
        questions, answers = checked_texts(questions, answers)
        if self._closed.is_set():
            raise RewardModelError(f"{self._name} is closed")
        size = self._limits.batch_limit
        stop = self._call = threading.Event()
        futures = [
            self._pool.submit(self._score_batch, questions[i : i + size], answers[i : i + size], stop)
            for i in range(0, len(questions), size)
        ]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and future.exception() is not None:
                    raise future.exception()
            parts = [future.result() for future in futures]
        finally:  # after a failure the other requests are of no use; they stop at their next retry
            stop.set()
            for future in futures:
                future.cancel()
        return np.concatenate(parts) if parts else np.zeros((0,), np.float32)

    def close(self) -> None:
        """Ends all requests: those that wait, and those that are being answered."""
        self._closed.set()
        if self._call is not None:
            self._call.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for sock in list(self._open):
            _hang_up(sock)

    def _score_batch(self, questions: list[str], answers: list[str], stop: threading.Event) -> np.ndarray:
        body = wire.request_body(questions, answers)
        limits = self._limits
        for attempt in range(limits.max_retries + 1):
            if stop.is_set() or self._closed.is_set():
                raise RewardModelError(f"{self._name}: stopped")
            try:
                return self._scores(self._attempt(body), len(questions))
            except _Transient as error:
                reason, asked = self._masked(str(error)), error.wait
            except RewardModelError as error:
                raise RewardModelError(self._masked(str(error))) from None  # its cause holds the reply
            if asked > limits.retry_after_limit:
                limit = f"retry_after_limit={limits.retry_after_limit:g}"
                raise RewardModelError(f"{self._name}: {reason}; it asks to wait {asked:.0f} s, above {limit}")
            if attempt < limits.max_retries:
                # Half of the delay is random, so that the hosts of a pod do not come back in step.
                delay = min(limits.max_backoff, limits.backoff * 2.0**attempt) * random.uniform(0.5, 1.0)
                delay = max(delay, asked)
                count = f"{attempt + 1} of {limits.max_retries}"
                log.warning("%s: %s; retry %s in %.1f s", self._name, printable(reason), count, delay)
                stop.wait(delay)
        raise RewardModelError(f"{self._name}: gave up after {limits.max_retries + 1} attempts; last: {reason}")

    def _scores(self, body: bytes, n: int) -> np.ndarray:
        try:
            scores, dtype = wire.parse_reply(body, n, "the server")
        except RewardModelError as error:
            raise _Transient(str(error)) from None
        check_precision(dtype or self._dtype, self._dtype, self._name)
        return scores

    def _masked(self, text: str) -> str:
        """What a server says, cut, and without the token: some echo the header that they refuse."""
        for secret in (self._token, repr(self._token)[1:-1]) if self._token else ():  # as it is, and quoted
            # Its beginning is as good as the whole where the text was cut: as much of it as follows, longest first.
            for length in range(len(secret), min(_TELLING, len(secret)) - 1, -1):
                text = text.replace(secret[:length], "***")
        return text[:_SHOWN]

    def _attempt(self, body: bytes) -> bytes:
        """One request; the body of a 200. _Transient where trying again makes sense."""
        connection, late = self._connection(), threading.Event()
        sock = timer = None
        try:
            sock = self._connect(connection)  # which http.client lets go of before the body is read
            self._open.add(sock)
            if self._closed.is_set():
                raise RewardModelError(f"{self._name}: stopped")
            # A socket's own time-out begins anew with each packet, and a byte is one: of a head, a body, a trailer.
            timer = threading.Timer(self._limits.read_timeout, lambda: (late.set(), _hang_up(sock)))
            timer.daemon = True
            timer.start()
            sock.settimeout(self._limits.read_timeout)
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            connection.request("POST", self._target(), body, self._headers())
            response = connection.getresponse()
            self._check_status(response)
            content = self._read(response)
            if late.is_set():  # what was hung up on looks as if it had ended
                raise TimeoutError
            return content
        except ssl.SSLCertVerificationError as error:
            raise RewardModelError(f"{self._name}: certificate refused: {error.verify_message}") from error
        except (OSError, http.client.HTTPException, RewardModelError) as error:
            if late.is_set() or (sock is not None and isinstance(error, TimeoutError)):
                raise _Transient(f"timed out (no whole response in {self._limits.read_timeout:g} s)") from error
            if isinstance(error, RewardModelError):
                raise
            kind = "timed out" if isinstance(error, TimeoutError) else type(error).__name__
            raise _Transient(f"{kind}: {error}") from error
        finally:
            if timer is not None:
                timer.cancel()
            self._open.discard(sock)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port, timeout = self._url.hostname, self._url.port, self._limits.connect_timeout
        return http.client.HTTPConnection(host, port or (443 if self._url.scheme == "https" else 80), timeout=timeout)

    def _connect(self, connection: http.client.HTTPConnection) -> socket.socket:
        """The socket, of TLS before its handshake: that is part of what one deadline holds."""
        connection.connect()
        if self._url.scheme == "https":
            context, host = ssl.create_default_context(), self._url.hostname
            plain = connection.sock
            connection.sock = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        return connection.sock

    def _target(self) -> str:
        return self._url.path or "/"

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The whole body, within the size limit."""
        limit, chunks, size = self._limits.max_response_bytes, [], 0
        while not response.isclosed():  # Python 3.13 closes it, and its socket, with the last byte that was promised
            chunk = response.read1(1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise RewardModelError(f"{self._name}: response above max_response_bytes={limit}")
        if response.length:  # bytes promised by Content-Length that never came
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(chunks)

    def _check_status(self, response: http.client.HTTPResponse) -> None:
        status = response.status
        if status == 200:
            return
        if wire.worth_another_try(status):
            raise _Transient(f"status {status}", retry_after_seconds(response.getheader("Retry-After")))
        said = response.read(1000).decode("utf-8", errors="replace")
        hint = " (redirects are not followed: give the final url)" if 300 <= status < 400 else ""
        raise RewardModelError(f"{self._name}: status {status}{hint}: {said!r}")
