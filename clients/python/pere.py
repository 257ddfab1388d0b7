#!/usr/bin/env python3
"""
The Python client of PERE: a device that listens and answers, and a publisher that pushes and sees who has answered. One file for Python 3.9 or newer
that needs only the standard library. It is both a module and a program.

    import pere

    def handle(event):                                  # returns: done, with what it returns; raises: failed, with the message
        return print_order(event.data)

    pere.listen("http://127.0.0.1:4567", "orders", "till-7", handle, state="till-7.state")

    pere.publish("http://127.0.0.1:4567", "orders", {"table": 7}, wait=30)["complete"]

    for receipt in pere.receipts("http://127.0.0.1:4567", "orders"): ...

    pere.attention("http://127.0.0.1:4567")["devices"]      # who did not do it, in all channels, worst first

A handler that raises `pere.Deferred(after=600)` gets the event again in ten minutes. A publisher can take an event back (`withdraw`), replace it by a newer one
with the same `event_key`, and push later (`schedule`, `scheduled`, `cancel_scheduled`).

`alisten`, `apublish`, `areceipts` and so on are the same for asyncio: handlers are awaited on the caller's event loop.

    await pere.alisten("http://127.0.0.1:4567", "orders", "till-7", handle, workers=10, state="till-7.state")

    python3 pere.py listen  http://127.0.0.1:4567 orders --device till-7 --state till-7.state --exec './print-order'
    python3 pere.py publish http://127.0.0.1:4567 orders '{"table": 7}' --deadline 600 --wait 30
    python3 pere.py receipts http://127.0.0.1:4567 orders
    python3 pere.py withdraw http://127.0.0.1:4567 orders k3x9-42 --note 'printed twice'

On a bad network:

- It follows the event stream. When the stream breaks, it resumes from its position after the delay that the service asked for (`retry:`,
  `Retry-After`), and at least after a random delay that doubles with each failure. If no first byte comes within 5 s, or nothing within 40 s (the service
  sends something every 15 s), a proxy holds the stream back. Then it uses long-polling, and tries the stream again after one minute, then two, at most
  16. It has no WebSocket, because the standard library has none.
- It works on each event once, however often the event comes; and once more for each later round of an event that it deferred, or that it failed with attempts
  left. It stores the outcome before it sends the final receipt; with `state`, in a file that
  is synced, so this holds through a crash. The exception is a crash while the handler runs: nobody knows how far it was, so it is called again.
- It sends receipts until the service answers them, also while a handler runs. Receipts that are due within 50 ms go in one request, at most 1,000. A
  receipt that the service rejects for good (of an event that it doesn't have) is reported and dropped.
- It checks each answer field by field. Anything that is not PERE's, such as the page of a proxy or a captive portal, leads to another request.
- An event is `failed` only if the work itself failed. The event stays open if memory, file descriptors or the command are missing, if the output can't be
  written, if HUP, INT, QUIT, KILL, PIPE or TERM ends the command, or if the handler raises while the listener is being stopped. Then it is worked on again
  here, or it comes again to the next listener. A command that crashes by another signal has failed.

- An event that is withdrawn is not begun. If a handler works on it, `Event.withdrawn` is set, an `async` handler is cancelled, and a command is ended with
  TERM. No receipt follows then, unless the work was done all the same.

It does not store a position: the service knows which events a device has not answered, and sends these when it connects without a position.
"""

import argparse
import asyncio
import base64
import collections
import concurrent.futures
import contextvars
import decimal
import email.utils
import errno
import functools
import http.client
import inspect
import json
import math
import os
import queue
import random
import re
import signal
import socket
import ssl
import stat
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Iterator, List, Optional, Set, Tuple, TypeVar, Union, cast

_Result = TypeVar("_Result")

#: A token, or a function that returns the newest one.
Token = Union[str, Callable[[], str], None]
#: The same for asyncio; the function may be `async`.
AsyncToken = Union[str, Callable[[], str], Callable[[], Awaitable[str]], None]

#: The longest wait for the headers and the first byte of an event stream. After that, a proxy is holding the stream back.
FIRST_BYTE_SECONDS = 5.0
#: The longest silence on an event stream. The service sends something every 15 s; two of these may be late.
SILENCE_SECONDS = 40.0
#: How long long-polling is used before the event stream is tried again.
STREAM_RETRY_SECONDS = 60.0
#: That time doubles with each failed try, at most so many times. While a stream is tried, events may be late.
STREAM_RETRY_DOUBLINGS_MAX = 4
#: How long one long-poll waits. Some proxies cut connections that are quiet for 30 s.
POLL_SECONDS = 25
#: The longest wait for an answer, beyond the time that the service was asked to wait.
ANSWER_SECONDS = 15.0
#: The longest delay between two tries, before jitter.
BACKOFF_SECONDS_MAX = 30.0
#: How long a receipt waits for others that can go in the same request.
COALESCE_SECONDS = 0.05
#: Receipts in one request; the service accepts no more.
RECEIPTS_MAX = 1_000
#: The longest detail that the service accepts, in bytes.
DETAIL_BYTES_MAX = 4_096
#: A longer one is cut to so many characters. A character takes at most six bytes in JSON.
DETAIL_CUT_CHARACTERS = 600
#: Outcomes that are remembered: as many as a channel keeps events.
OUTCOMES_MAX = 10_000
#: Events that wait for a handler. When there are so many, the stream is not read further.
QUEUED_EVENTS_MAX = 1_000
#: A token is renewed so long before it expires.
TOKEN_MARGIN_SECONDS = 10.0
#: How long the last receipts are tried when listening ends.
FLUSH_SECONDS_MAX = 5.0
#: The longest duration that is accepted, as an option or in an answer.
DURATION_SECONDS_MAX = 86_400
#: The longest delay that is granted when an answer asks for one.
SERVER_PAUSE_SECONDS_MAX = 3_600.0
#: Redirects that are followed for one request.
REDIRECTS_MAX = 5
#: The longest answer, and the longest line of an event stream: 1,000 events of 64 KiB and some more.
ANSWER_BYTES_MAX = 128 * 1_024 * 1_024
#: How much of a refusal is read.
PROBLEM_BYTES_MAX = 1_024 * 1_024
#: After this time without an answer, a publisher is told that it is still waiting.
SLOW_ANSWER_SECONDS = 1.5
#: A detail with more levels is sent as text: the service refuses a request with more than 64.
DETAIL_DEPTH_MAX = 32
#: How much of a command's output is looked at, from its end.
OUTPUT_BYTES_MAX = 65_536
#: The shortest delay before a handler is called again for an event that stays open.
HANDLER_RETRY_SECONDS_MIN = 1.0
#: The shortest and the longest time after which an event can be sent again: the service accepts no other.
AFTER_SECONDS_MIN = 1.0
AFTER_SECONDS_MAX = 86_400.0
#: The exit status of a command that defers its event (EX_TEMPFAIL in sysexits.h).
DEFERRED_STATUS = 75
#: How often a background thread checks whether the event loop that it serves is closed.
LOOP_CHECK_SECONDS = 1.0

_NAME = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}")
#: Positions and ids are used in headers and lines without escaping.
_POSITION = re.compile(r"[!-~]{1,8192}")
#: A JWT: base64url and dots (RFC 7515).
_TOKEN = re.compile(r"[A-Za-z0-9._-]+")


class Refused(Exception):
    """The service refused the request for good. `status` is the HTTP status, `problem` the problem document (RFC 9457)."""

    def __init__(self, status: int, problem: Dict[str, Any]) -> None:
        detail = problem.get("detail")
        super().__init__(detail if isinstance(detail, str) else f"status {status}")
        self.status = status
        self.problem = problem


class Unavailable(Exception):
    """The service could not be reached, or answered with temporary errors, until the time for retries was over."""


class NoOutcome(Exception):
    """For a handler to raise when the outcome is unknown for a reason outside its work. The event stays open, and the handler is called again."""


def _after_within_limits(seconds: Optional[float]) -> Optional[float]:
    """None, or not a number: the service's default."""
    if seconds is None or not seconds == seconds:
        return None
    seconds = min(AFTER_SECONDS_MAX, max(AFTER_SECONDS_MIN, seconds))
    return int(seconds) if seconds == int(seconds) else seconds


class Deferred(Exception):
    """For a handler to raise: not now. The service sends the event again after `after` seconds (1 to 86,400; without it after 60), with the next `round`, and
    the handler is called again. `detail` is that of the receipt: any value that JSON can represent."""

    def __init__(self, after: Optional[float] = None, detail: Any = None) -> None:
        super().__init__("the event was deferred")
        self.after, self.detail = _after_within_limits(after), detail


class Failed(Exception):
    """For a handler to raise instead of another exception: the event has failed, with any `detail`. `retry=False`: for good, even if the event has attempts
    left. `after`: the seconds until the next attempt."""

    def __init__(self, detail: Any = None, *, retry: bool = True, after: Optional[float] = None) -> None:
        super().__init__(detail if isinstance(detail, str) else "the event failed")
        self.detail, self.retry, self.after = detail, retry, _after_within_limits(after)


class _TemporaryError(Exception):
    """An error after which the request is made again. `after`: the delay in seconds that the service asked for."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _FatalError(BaseException):
    """An error of this module's surroundings that ends listening. Not an Exception, so that it is not taken for a failure of the handler."""


class _Flag(threading.Event):
    """Calls functions when it is set."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: List[Callable[[], None]] = []
        self._calls_lock = threading.Lock()

    def set(self) -> None:
        with self._calls_lock:
            super().set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()

    def when_set(self, call: Callable[[], None]) -> None:
        """Calls the function when the flag is set, or now if it is."""
        with self._calls_lock:
            if not self.is_set():
                return self._calls.append(call)
        call()


@dataclass(frozen=True)
class Event:
    """One event. `text` is its data as the publisher wrote it; `data` is the same as a Python value. `at` and `deadline` are ISO 8601 times in UTC. `key`: what
    it is about; a newer event with the same key supersedes it. `scheduled`: the scheduled push that it was pushed for. `round`: how often it was sent to this
    device, from 1; it grows when a deferral ends. `withdrawn` is set when the event is withdrawn while a handler works on it."""

    id: str
    channel: str
    seq: int
    at: str
    type: Optional[str]
    deadline: Optional[str]
    data: Any
    text: str
    key: Optional[str] = None
    scheduled: Optional[str] = None
    round: int = 1
    withdrawn: threading.Event = field(default_factory=_Flag, compare=False, repr=False)


@dataclass(frozen=True)
class Withdrawal:
    """An event was withdrawn: `withdrawn` is its id. `reason` is `withdrawn` (its publisher took it back) or `superseded` (by the event `by`); a newer service
    may have others. `note` is for people. `id` is that of this notice, and `at` an ISO 8601 time in UTC."""

    id: str
    channel: str
    at: str
    withdrawn: str
    reason: str
    by: Optional[str] = None
    note: Optional[str] = None


# ------------------------------------------------------------------------------------------------------------------ requests


def _log(line: str) -> None:
    if sys.stderr is None:
        return  # It was closed before the start; print() would use the standard output instead.
    try:
        print(f"pere: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # Nobody reads the error output; that is no reason to stop.


def _safe_report(report: Callable[[str], None]) -> Callable[[str], None]:
    """The caller's `report`, but an error in it does not end the thread that calls it."""

    def safe(line: str) -> None:
        try:
            report(line)
        except Exception:
            _log(line)

    return safe


def _error_text(error: BaseException) -> str:
    """The message of an exception, or the name of its class."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


def _checked_token(token: str) -> str:
    """The token without surrounding whitespace. Raises ValueError, whose message doesn't show the token."""
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token is empty" if token == "" else "the token is not a JWT: it contains characters other than A-Z a-z 0-9 . _ -")
    return token


class _Proxy:
    """The HTTP proxy that the environment sets (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, in upper or lower case)."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY must be http://host:port")
        self.host, self.port = parts.hostname, parts.port or 80
        self.headers: Dict[str, str] = {}
        if parts.username is not None:
            user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self.headers["Proxy-Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()

    @staticmethod
    def of(scheme: str, host: str, port: int) -> Optional["_Proxy"]:
        """The proxy for a service; None: it is connected to directly. Raises ValueError."""
        named = urllib.request.getproxies_environment()
        url = named.get(scheme)
        if not url:
            url = named.get("all", "")
            if "://" in url and not url.startswith("http://"):
                return None  # ALL_PROXY may name a SOCKS proxy for other programs; this client can't use one.
        bypass: Callable[[str, Dict[str, str]], Any] = getattr(urllib.request, "proxy_bypass_environment")
        if not url or bypass(host if ":" in host else f"{host}:{port}", named):
            return None
        return _Proxy(url)


class _ServiceClient:
    """Makes requests to the service at a URL with a token. Each request has a connection of its own."""

    def __init__(self, url: str, token: Token) -> None:
        self.url = url
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        is_address = re.fullmatch(r"[!-~]+", url) and parts.scheme in ("http", "https") and parts.hostname
        if not is_address or "@" in parts.netloc:
            raise ValueError(f"the address of the service must be http://host:port or https://host:port: {url}")
        if "?" in url or "#" in url:
            raise ValueError(f"the address of the service must not have a query or a fragment: {url}")
        try:
            self._port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise ValueError(f"the address of the service has an invalid port: {url}") from None
        self._secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._netloc = parts.hostname or "", parts.netloc
        self._base = parts.path.rstrip("/")
        self._proxy = _Proxy.of(parts.scheme, self._host, self._port)
        self._source = token if callable(token) or not token or not token.strip() else _checked_token(token)
        self._token: Optional[str] = None
        self._lock = threading.Lock()

    def renew(self) -> None:
        """Asks for another token with the next request."""
        with self._lock:
            self._token = None

    def _current_token(self) -> Optional[str]:
        if not callable(self._source):
            return self._source or None
        with self._lock:
            if self._token is None or _token_expires_at(self._token) - TOKEN_MARGIN_SECONDS < time.time():
                self._token = _checked_token(self._source())
            return self._token

    def _new_connection(self, seconds: float) -> http.client.HTTPConnection:
        host, port = (self._host, self._port) if self._proxy is None else (self._proxy.host, self._proxy.port)
        if self._secure is None:
            return http.client.HTTPConnection(host, port, timeout=seconds)
        connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=self._secure)
        if self._proxy is not None:
            connection.set_tunnel(self._host, self._port, self._proxy.headers)
        return connection

    def open(
        self,
        method: str,
        path: str,
        headers: Dict[str, str],
        body: Optional[bytes],
        seconds: float,
        connected: Callable[[socket.socket], None] = lambda _sock: None,
        statuses: Tuple[int, ...] = (200, 201),
    ) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Makes a request and returns its connection and answer when the headers of one of `statuses` have come. `connected` is called with each socket before
        the request is sent: the connection itself drops it when the answer has `Connection: close`. `seconds` is the longest wait for one byte, and half of
        the longest wait for the headers. Raises OSError, HTTPException, _TemporaryError, Refused."""
        try:
            token = self._current_token()
        except Exception as error:
            raise _TemporaryError(f"no token: {_error_text(error)}") from error
        if token is not None:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        prefix = ""
        if self._proxy is not None and self._secure is None:  # A proxy for plain HTTP is sent the whole URL.
            headers, prefix = {**headers, **self._proxy.headers}, f"http://{self._netloc}"
        target = self._base + path
        for _ in range(REDIRECTS_MAX + 1):
            connection = self._new_connection(seconds)
            try:
                connection.connect()
                connected(connection.sock)
                # The connection's own timeout starts again with each byte.
                deadline = threading.Timer(2 * seconds + 2, _shut_down, [connection.sock])
                deadline.daemon = True
                deadline.start()
                try:
                    connection.request(method, prefix + target, body, headers)
                    answer = connection.getresponse()
                finally:
                    deadline.cancel()
                if answer.status in statuses:
                    return connection, answer
                redirected = self._redirect_target(answer, target)
                if redirected is None:
                    self._raise_refusal(answer, path)
                target = redirected or target
                connection.close()
            except BaseException:
                connection.close()
                raise
        raise _TemporaryError(f"more than {REDIRECTS_MAX} redirects")

    def _redirect_target(self, answer: http.client.HTTPResponse, target: str) -> Optional[str]:
        """Where to repeat the request: 307 and 308 are followed to the same origin. None: nowhere."""
        location = answer.getheader("Location") or ""
        if answer.status not in (307, 308) or not _POSITION.fullmatch(location):
            return None
        scheme = "http" if self._secure is None else "https"
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(f"{scheme}://{self._netloc}{target}", location))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if (parts.scheme, parts.hostname, port) != (scheme, self._host, self._port) or "@" in parts.netloc:
            return None
        return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"

    def _raise_refusal(self, answer: http.client.HTTPResponse, path: str) -> None:
        """Raises what an unsuccessful answer means. Only PERE's own problem documents are final; anything else may come from a proxy, and may pass."""
        status, after = answer.status, _retry_after_seconds(answer)
        if 300 <= status < 400:
            location = re.sub(r"[^!-~]", "", answer.getheader("Location") or "")[:300]
            there = location.split("?")[0]
            asked = path.split("?")[0]
            there = there[: -len(asked)] if there.endswith(asked) else there
            raise _TemporaryError(f"redirected with status {status}" + (f": use the address {there}" if there else " to nowhere"), after)
        problem = _parse_problem(answer)
        said = f"status {status}" if problem is None else str(Refused(status, problem))
        if status in (401, 403) and callable(self._source):
            self.renew()
            raise _TemporaryError(said, after)
        if problem is None or not 400 <= status < 500 or status in (408, 425, 429):
            raise _TemporaryError(said, after)
        raise Refused(status, problem)

    def ask(
        self,
        method: str,
        path: str,
        headers: Dict[str, str],
        body: Optional[bytes],
        seconds: float = ANSWER_SECONDS,
        connected: Callable[[socket.socket], None] = lambda _sock: None,
        statuses: Tuple[int, ...] = (200, 201),
    ) -> bytes:
        """Makes a request and returns the body of the answer. Raises _TemporaryError and Refused."""
        try:
            connection, answer = self.open(method, path, headers, body, seconds, connected, statuses)
            try:
                return _read_body(answer, seconds)
            finally:
                connection.close()
        except (_TemporaryError, Refused):
            raise
        except Exception as error:
            raise _TemporaryError(f"{type(error).__name__}: {_error_text(error)}") from error


def _shut_down(sock: socket.socket) -> None:
    """Ends a connection; a thread that reads from it is woken up."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class _Request:
    """The socket of the newest request, so that another thread can end it."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self.socket: Optional[socket.socket] = None

    def connected(self, sock: socket.socket) -> None:
        self.socket = sock
        if self.stop.is_set():
            _shut_down(sock)

    def end(self) -> None:
        """Ends the request, and each one that comes after it."""
        self.stop.set()
        sock = self.socket
        if sock is not None:
            _shut_down(sock)


def _read_body(answer: http.client.HTTPResponse, seconds: float) -> bytes:
    """The whole body of an answer. Raises _TemporaryError if it is too long, too slow or truncated."""
    until = time.monotonic() + seconds
    parts: List[bytes] = []
    size, whole = 0, answer.length
    while whole is None or size < whole:
        part = answer.read1(65_536)
        if part == b"":
            break
        parts.append(part)
        size += len(part)
        if size > ANSWER_BYTES_MAX or time.monotonic() > until:
            raise _TemporaryError("the answer is too long or too slow")
    if whole is not None and size < whole:
        raise _TemporaryError("the answer was truncated")
    return b"".join(parts)


def _parse_problem(answer: http.client.HTTPResponse) -> Optional[Dict[str, Any]]:
    """The problem document of an answer; None: the answer is not PERE's."""
    try:
        problem = _json.decode(answer.read(PROBLEM_BYTES_MAX).decode())
    except Exception:
        return None
    kind = problem.get("type") if isinstance(problem, dict) else None
    return problem if isinstance(kind, str) and kind.startswith("urn:pere:") else None


def _retry_after_seconds(answer: http.client.HTTPResponse) -> float:
    """`Retry-After` (RFC 9110, 10.2.3): seconds, or a date by the clock of the sender. 0 if it is missing or invalid."""
    text = (answer.headers.get_all("Retry-After") or [""])[0].strip()
    try:
        if text.isascii() and text.isdigit():
            seconds = float(text[:20])
        else:
            date = email.utils.parsedate_to_datetime(text).timestamp()
            here = answer.getheader("Date")
            seconds = date - (email.utils.parsedate_to_datetime(here).timestamp() if here else time.time())
    except Exception:
        return 0.0
    return min(seconds, SERVER_PAUSE_SECONDS_MAX) if 0 <= seconds <= DURATION_SECONDS_MAX else 0.0


def _token_claims(token: str) -> Dict[str, Any]:
    """The claims of a token, not verified; none if it can't be decoded."""
    try:
        claims = token.split(".")[1]
        return _object(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)).decode())
    except Exception:
        return {}


def _token_expires_at(token: str) -> float:
    """The expiry time of a token in seconds since 1970; infinity if it has none."""
    exp = _token_claims(token).get("exp")
    return float(exp) if isinstance(exp, (int, float)) else float("inf")


def _backoff_seconds(failures: int, at_least: float = 0.0) -> float:
    """Seconds until the next try: exponential backoff with full jitter, and at least what the service asked for."""
    return max(at_least, random.uniform(0, min(BACKOFF_SECONDS_MAX, 0.25 * 2 ** min(failures, 10))))


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe=",")


# --------------------------------------------------------------------------------------------------------------------- feeds


@dataclass(frozen=True)
class _Message:
    """One message of a feed. `server_event` is the name of an event of the service itself (`ready`, `bye`), None for an entry of the log."""

    server_event: Optional[str]
    text: str


class _LineDecoder:
    """Splits the bytes of an event stream into lines (WHATWG HTML, 9.2), which end with LF, CR LF or CR. Returns complete lines only."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> List[str]:
        text = self._rest + chunk
        # The LF of a CR at the end may still come.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        if len(self._rest) > ANSWER_BYTES_MAX:
            raise _TemporaryError("a line of the event stream is too long")
        return [line.decode("utf-8", "replace") for line in lines]


class _Feed:
    """Follows one log of one or more channels until `stop` is set. It resumes where it broke off, by event stream or long-polling."""

    def __init__(
        self,
        service: _ServiceClient,
        path: str,
        query: Dict[str, str],
        stop: threading.Event,
        report: Callable[[str], None],
        first_byte_seconds: float,
        silence_seconds: float,
        return_seconds: float,
    ) -> None:
        self._service = service
        self._path, self._query = path, query
        self._stop, self._report = stop, report
        self._first_byte_seconds = first_byte_seconds
        self._silence_seconds = silence_seconds
        self._return_seconds = return_seconds
        #: The id of the last message; "" lets the service choose where to start.
        self.position = ""
        self._retry_seconds = 0.0
        self._failures = 0
        self._stream_again_at = 0.0
        #: How many times in a row the event stream was held back.
        self._held_back = 0
        self._connection: Optional[http.client.HTTPConnection] = None
        self._request = _Request(stop)

    def messages(self) -> Iterator[_Message]:
        """The messages as they come. Raises Refused."""
        while not self._stop.is_set():
            after = 0.0
            is_polling = time.monotonic() < self._stream_again_at
            try:
                yield from self._poll() if is_polling else self._stream()
                if is_polling or time.monotonic() < self._stream_again_at:
                    continue  # A switch between event stream and long-polling is no failure.
                reason, self._held_back = "the stream ended", 0
            except Refused:
                raise
            except _TemporaryError as error:
                reason, after = str(error), error.after
            except Exception as error:
                reason = f"{type(error).__name__}: {_error_text(error)}"
            if self._stop.is_set():
                return
            self._failures += 1
            seconds = _backoff_seconds(self._failures, max(after, 0.0 if is_polling else self._retry_seconds))
            self._report(f"{reason}; reconnecting in {seconds:.1f} s")
            self._stop.wait(seconds)

    def end(self) -> None:
        """Sets `stop`, and wakes a reader that waits for bytes."""
        self._request.end()

    def _open(self, headers: Dict[str, str], query: Dict[str, str], seconds: float) -> http.client.HTTPResponse:
        if self.position != "":
            headers["Last-Event-ID"] = self.position
        query = {**self._query, **query}
        path = f"{self._path}?{urllib.parse.urlencode(query)}" if query else self._path
        self._connection, answer = self._service.open("GET", path, headers, None, seconds, self._request.connected)
        return answer

    def _close(self) -> None:
        connection, self._connection, self._request.socket = self._connection, None, None
        if connection is not None:
            connection.close()

    def _stream(self) -> Iterator[_Message]:
        lines = _LineDecoder()
        event, data, position = "", [], self.position  # type: Tuple[str, List[str], str]
        retry: Optional[float] = None
        # A stream of PERE begins with `ready` or `bye`. Anything else is not PERE's and is ignored.
        is_ready = False
        try:
            answer = self._open({"Accept": "text/event-stream"}, {}, self._first_byte_seconds)
            if answer.getheader("Content-Type", "").split(";")[0].strip().lower() != "text/event-stream":
                raise _TemporaryError("the answer is not an event stream")
            chunk = answer.read1(65_536)
            try:
                if self._request.socket is not None:
                    self._request.socket.settimeout(self._silence_seconds)
            except OSError:
                pass  # The answer is complete, and its socket closed.
            while chunk:
                for line in lines.feed(chunk):
                    field, _, value = line.partition(":")
                    value = value[1:] if value.startswith(" ") else value
                    if field == "id" and _POSITION.fullmatch(value):
                        position = value
                    elif field == "event":
                        event = value
                    elif field == "data":
                        data.append(value)
                    elif field == "retry" and value.isascii() and value.isdigit():
                        retry = int(value[:20]) / 1_000
                    if line != "":
                        continue
                    if data:
                        message = _Message(event[5:] if event.startswith("pere.") else None, "\n".join(data))
                        is_ready = is_ready or _is_pere_greeting(message)
                        if is_ready:
                            self._apply_server_event(message)
                            yield message
                        elif message.server_event is None:
                            raise _TemporaryError("the event stream is not PERE's")
                    if is_ready:
                        self.position = position
                        if retry is not None and retry <= SERVER_PAUSE_SECONDS_MAX:
                            self._retry_seconds = retry
                    event, data = "", []
                chunk = answer.read1(65_536)
            if not is_ready:
                raise _TemporaryError("the event stream ended before it had begun")
        except socket.timeout:
            self._stream_again_at = time.monotonic() + self._return_seconds * 2 ** min(self._held_back, STREAM_RETRY_DOUBLINGS_MAX)
            self._held_back += 1
            self._report("nothing comes on the event stream; using long-polling")
        finally:
            self._close()

    def _apply_server_event(self, message: _Message) -> None:
        """Handles the service's own events."""
        if message.server_event == "ready":
            self._failures = 0
        elif message.server_event == "bye" and _object(message.text).get("reason") == "expired":
            self._service.renew()
        elif message.server_event == "gap":
            self._report(f"some events are no longer kept: {message.text[:300]}")
        elif message.server_event == "shared":
            self._report(f"this device is connected from several addresses; does another machine use the same name? {message.text[:300]}")

    def _poll(self) -> Iterator[_Message]:
        while not self._stop.is_set():
            rest = self._stream_again_at - time.monotonic()
            if rest <= 0:
                return
            # Whole seconds, and not beyond the time when the stream is tried again.
            wait = max(1, min(POLL_SECONDS, int(rest)))
            try:
                answer = self._open({"Accept": "application/json"}, {"wait": str(wait)}, wait + ANSWER_SECONDS)
                text = _read_body(answer, ANSWER_SECONDS).decode("utf-8")
            finally:
                self._close()
            messages, last = _parse_poll(text)
            for message in messages:
                self._apply_server_event(message)
                yield message
            self.position = last
            self._failures = 0


def _is_pere_greeting(message: _Message) -> bool:
    """Whether a message is one with which PERE begins a stream."""
    found = _object(message.text)
    if message.server_event == "ready":
        return isinstance(found.get("channels"), dict)
    return message.server_event == "bye" and isinstance(found.get("reason"), str)


def _object(text: str) -> Dict[str, Any]:
    """A text as a JSON object; an empty one if it is something else."""
    try:
        found = _json.decode(text)
    except Exception:
        return {}
    return found if isinstance(found, dict) else {}


#: What the service says of an event as a whole, in the order in which the answer to a long-poll is to be handled.
_NOTICES = ("withdrawn", "complete", "settled")


def _is_notice(found: Dict[str, Any]) -> bool:
    """Whether a JSON object says something of an event as a whole, as a feed of events or of receipts does."""
    event = found.get("event", found.get("withdrawn"))
    return all(isinstance(text, str) and text != "" for text in (event, found.get("channel"), found.get("at")))


def _parse_poll(text: str) -> Tuple[List[_Message], str]:
    """The answer to a long-poll, `{"events":[…],"last":…}`: its messages, each event as the text that was sent, and the position for the next one."""
    if not text.startswith('{"events":['):
        raise _TemporaryError("the answer is not that of a long-poll")
    at, events = len('{"events":['), []  # type: Tuple[int, List[_Message]]
    try:
        while text[at] == "{":
            end = _json_end(text, at)
            events.append(_Message(None, text[at:end]))
            at = end + (text[end] == ",")
        found = _json.decode('{"events":[' + text[at:])
        last, shared = found["last"], found.get("shared")
        if found["events"] != [] or not _POSITION.fullmatch(last):
            raise ValueError
        listed = {name: found.get(name, []) for name in ("gaps", *_NOTICES)}
        for name, items in listed.items():
            if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
                raise ValueError
            if name != "gaps" and not all(_is_notice(one) for one in items):
                raise ValueError
    except Exception:
        raise _TemporaryError("the answer is not that of a long-poll") from None
    before = [_Message("gap", json.dumps(gap)) for gap in listed["gaps"]]
    if isinstance(shared, dict):
        before.append(_Message("shared", json.dumps(shared)))
    return before + events + [_Message(name, json.dumps(one)) for name in _NOTICES for one in listed[name]], last


@dataclass(frozen=True)
class Digits:
    """A number whose exponent is too large even for Decimal, as its JSON text. It can be returned as a detail, and published."""

    text: str

    def __str__(self) -> str:
        return self.text


def _parse_number(digits: str) -> Any:
    """A number as int or float. If these can't hold it (`1e400`, or more digits than int() accepts: CVE-2020-10735), as Decimal or Digits."""
    if digits.lstrip("-").isdigit() and len(digits) < 4_300:
        return int(digits)
    number = float(digits)
    if math.isfinite(number) and not digits.lstrip("-").isdigit():
        return number
    try:
        return decimal.Decimal(digits)
    except decimal.DecimalException:
        return Digits(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_json = json.JSONDecoder(parse_int=_parse_number, parse_float=_parse_number, parse_constant=_refuse_constant)
_JSON_TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def _json_end(text: str, at: int) -> int:
    """The index behind the object or list that begins at `at`. Raises ValueError if it does not end."""
    depth = 0
    for mark in _JSON_TOKENS.finditer(text, at):
        if mark.group() in "[{":
            depth += 1
        elif mark.group() in "]}":
            depth -= 1
            if depth == 0:
                return mark.end()
    raise ValueError("it does not end")


def _json_depth(text: str) -> int:
    """The levels of nesting in a JSON text."""
    depth = deepest = 0
    for mark in _JSON_TOKENS.finditer(text):
        depth += (mark.group() in "[{") - (mark.group() in "]}")
        deepest = max(depth, deepest)
    return deepest


#: Marks the digits of a number on their way through json.dumps, which can't write a number as given.
_NUMBER_MARK = uuid.uuid4().hex
_marking_json = json.JSONDecoder(parse_int=lambda digits: _NUMBER_MARK + digits, parse_float=lambda digits: _NUMBER_MARK + digits)


def _to_json(value: Any) -> str:
    """A value as JSON. Raises TypeError or ValueError if JSON can't represent it."""

    def number(value: Any) -> str:
        if isinstance(value, Digits) or (isinstance(value, decimal.Decimal) and value.is_finite()):
            return f"{_NUMBER_MARK}{value}"
        raise TypeError(f"JSON can't represent a {type(value).__name__}")

    return re.sub(f'"{_NUMBER_MARK}([^"]*)"', r"\1", json.dumps(value, allow_nan=False, default=number))


def _on_one_line(text: str) -> str:
    """A JSON text on one line and in ASCII; its numbers keep their digits."""
    return _to_json(_marking_json.decode(text))


def _parse_event(text: str) -> Event:
    """An event from its JSON text. Raises ValueError, KeyError or TypeError if it is not an event."""
    # Only names, numbers and times stand before the data, and none of these can contain a quote.
    head, _, raw = text.partition(',"data":')
    e = _json.decode(head + "}")
    names = [e["id"], e["at"], *(e.get(name) or "" for name in ("type", "deadline", "key", "scheduled"))]
    channel, seq, round_ = e["channel"], e["seq"], e.get("round", 1)
    if not all(isinstance(text, str) for text in names) or not _POSITION.fullmatch(e["id"]):
        raise ValueError("it is not an event")
    if not _CHANNEL.fullmatch(channel) or not isinstance(seq, int) or not raw.endswith("}") or not _is_count(round_) or round_ < 1:
        raise ValueError("it is not an event")
    optional = {name: e.get(name) for name in ("key", "scheduled")}
    return Event(e["id"], channel, seq, e["at"], e.get("type"), e.get("deadline"), _json.decode(raw[:-1]), raw[:-1], round=round_, **optional)


def _parse_withdrawal(text: str) -> Withdrawal:
    """A withdrawal from its JSON text. Raises ValueError if it is not one."""
    found = _object(text)
    names = [found.get(name) for name in ("id", "channel", "at", "withdrawn", "reason")]
    optional = [found.get(name) for name in ("by", "note")]
    if not all(isinstance(name, str) and name != "" for name in names) or not all(name is None or isinstance(name, str) for name in optional):
        raise ValueError("it is not a withdrawal")
    return Withdrawal(*names, *optional)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class _Outcome:
    """What became of an event in a round: the receipt that ends the work on it. `after` and `retry` are those of the receipt."""

    channel: str
    status: str
    detail: Any = None
    round: int = 1
    after: Optional[float] = None
    retry: bool = True

    def comes_again_as(self, round: int) -> bool:
        """Whether the event is worked on again in a later round: it was deferred, or failed with attempts left."""
        return round > self.round and (self.status == "deferred" or (self.status == "failed" and self.retry))

    def members(self) -> Dict[str, Any]:
        """Those members of its receipt that are not always the same, without the detail."""
        after = {} if self.after is None else {"after": self.after}
        return {"status": self.status, **after, **({} if self.retry else {"retry": False})}


@dataclass
class _Stored:
    outcome: _Outcome
    #: Whether the service has answered the receipt.
    is_answered: bool = False
    #: Whether it is of an earlier run, whose events are to be worked on again.
    is_earlier: bool = False


class _OutcomeStore:
    """The outcomes of the newest events, and which of their receipts the service has answered. With a path also in a file: one line per change, synced before
    anything depends on it, so a crash loses at most a line on which nothing depends yet."""

    def __init__(self, path: Optional[str]) -> None:
        self._lock = threading.Lock()
        #: By event id, oldest first.
        self._outcomes: "collections.OrderedDict[str, _Stored]" = collections.OrderedDict()
        #: A symbolic link is resolved: it would be replaced when the file is rewritten.
        self._path = None if path is None else os.path.realpath(path)
        self._file = None  # type: Any
        #: Whether the last line of the file was written in part only.
        self._is_torn = False
        #: Lines in the file, and at how many it is rewritten without those that are no longer needed.
        self._lines = self._rewrite_at = 0
        if self._path is not None:
            if os.path.exists(self._path) and not os.path.isfile(self._path):
                raise ValueError(f"the state must be a regular file, and {path} is not")
            self._read(self._path)
            self._rewrite()

    def _read(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                lines = file.read().decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return
        if not all(map(_is_state_line, lines)):
            raise ValueError(f"the state must be a file that pere.py wrote, or a new one; {path} contains something else, and is not changed")
        for line in lines[:-1]:  # The last one is empty, or was written in part only.
            change = _object(line)
            if isinstance(change.get("given"), str):
                stored = self._outcomes.get(change["given"])
                if stored is not None:
                    stored.is_answered = True
            elif isinstance(change.get("forgotten"), str):
                self._outcomes.pop(change["forgotten"], None)
            elif all(isinstance(change.get(name), str) for name in ("event", "channel", "status")):
                round_, after = change.get("round", 1), change.get("after")
                is_right = _is_count(round_) and (after is None or isinstance(after, (int, float)))
                more = {"round": round_, "after": after, "retry": change.get("retry") is not False} if is_right else {}
                self._record(change["event"], _Outcome(change["channel"], change["status"], change.get("detail"), **more))

    def _record(self, event: str, outcome: _Outcome) -> None:
        self._outcomes.pop(event, None)
        self._outcomes[event] = _Stored(outcome)
        if len(self._outcomes) <= OUTCOMES_MAX:
            return
        # The oldest one with an answered receipt is dropped.
        for old, stored in self._outcomes.items():
            if stored.is_answered:
                del self._outcomes[old]
                return

    def start_again(self) -> None:
        """The events that were finished in earlier runs are worked on again if they come again. Their receipts that were not answered are still sent."""
        with self._lock:
            for stored in self._outcomes.values():
                stored.is_earlier = True

    def _rewrite(self) -> None:
        if self._path is None:
            return
        new = f"{self._path}.new"
        try:
            os.unlink(new)
        except FileNotFoundError:
            pass
        mode = stat.S_IMODE(os.stat(self._path).st_mode) if os.path.exists(self._path) else 0o600
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            for event, stored in self._outcomes.items():
                file.write(_state_line(event, stored.outcome))
                if stored.is_answered:
                    file.write(json.dumps({"given": event}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        old, self._file = self._file, open(self._path, "ab", buffering=0)
        if old is not None:
            old.close()
        self._is_torn = False
        self._lines = 2 * len(self._outcomes)
        self._rewrite_at = max(4 * OUTCOMES_MAX, 2 * self._lines)

    def _write(self, lines: List[str], durably: bool) -> None:
        if self._file is None or not lines:
            return
        text = ("\n" if self._is_torn else "") + "".join(lines)
        self._is_torn = True
        self._is_torn = self._file.write(text.encode()) < len(text.encode())
        if self._is_torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durably:
            os.fsync(self._file.fileno())
        self._lines += len(lines)
        if self._lines > self._rewrite_at:
            self._rewrite()

    def outcome(self, event: str) -> Optional[_Outcome]:
        """The outcome of an event that was worked on; None: it is not known."""
        with self._lock:
            stored = self._outcomes.get(event)
            return None if stored is None or stored.is_earlier else stored.outcome

    def record(self, event: str, outcome: _Outcome) -> None:
        """Stores the outcome of an event. It is on the disk when this returns. Raises OSError."""
        with self._lock:
            self._record(event, outcome)
            self._write([_state_line(event, outcome)], True)

    def mark_answered(self, receipts: List[Tuple[str, int]]) -> None:
        """Notes that the service has answered the receipts for the outcomes of these events and rounds. If a crash loses that, they are sent again, which is
        harmless."""
        with self._lock:
            known = [event for event, round in receipts if event in self._outcomes and self._outcomes[event].outcome.round == round]
            for event in known:
                self._outcomes[event].is_answered = True
            self._write([json.dumps({"given": event}) + "\n" for event in known], False)

    def forget(self, event: str) -> None:
        """The event is worked on again when it comes again."""
        with self._lock:
            if self._outcomes.pop(event, None) is not None:
                self._write([json.dumps({"forgotten": event}) + "\n"], False)

    def unanswered(self) -> List[Tuple[str, _Outcome]]:
        """Outcomes whose receipts were not answered, with the ids of their events."""
        with self._lock:
            return [(event, stored.outcome) for event, stored in self._outcomes.items() if not stored.is_answered]

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def _is_state_line(line: str) -> bool:
    """Whether a line may be one of the state file. It may be truncated, and a power cut may leave zero bytes."""
    start = line.strip("\0\r")[:100].replace(" ", "")
    return any(start.startswith(ours) or ours.startswith(start) for ours in ('{"event":"', '{"given":"', '{"forgotten":"'))


def _state_line(event: str, outcome: _Outcome) -> str:
    round_ = {} if outcome.round == 1 else {"round": outcome.round}
    return _json_with_detail({"event": event, "channel": outcome.channel, **outcome.members(), **round_}, outcome.detail) + "\n"


class _Json(str):
    """A detail that is already JSON text, on one line; it is sent unchanged."""


def _json_with_detail(members: Dict[str, Any], detail: Any) -> str:
    """A JSON object with these members and the detail."""
    return f'{json.dumps(members)[:-1]}, "detail": {detail if isinstance(detail, _Json) else _to_json(detail)}}}'


# -------------------------------------------------------------------------------------------------------------------- outbox


class _Outbox(threading.Thread):
    """Receipts that the service has not answered yet, by channel and oldest first, and the thread that sends them."""

    def __init__(self, service: _ServiceClient, device: str, outcomes: _OutcomeStore, report: Callable[[str], None]) -> None:
        super().__init__(name="pere-outbox", daemon=True)
        self._service, self._device, self._outcomes, self._report = service, device, outcomes, report
        self._changed = threading.Condition()
        self._pending: Dict[str, List[Dict[str, Any]]] = {}
        self._ends_at: Optional[float] = None
        for event, outcome in outcomes.unanswered():
            self.add(event, outcome)

    def add(self, event: str, outcome: _Outcome) -> None:
        """Adds a receipt. One that is no outcome, such as `received`, has the same form."""
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1_000) % 1_000:03d}Z"
        receipt = {"event": event, "at": at, "round": outcome.round, **outcome.members()}
        if outcome.detail is not None:
            receipt["detail"] = outcome.detail
        with self._changed:
            self._pending.setdefault(outcome.channel, []).append(receipt)
            self._changed.notify()

    def has_outcome(self, event: str, round: int) -> bool:
        """Whether the receipt for the outcome of this event in this round is still to be sent."""
        with self._changed:
            return any(r["event"] == event and r["round"] == round and _is_outcome(r) for batch in self._pending.values() for r in batch)

    def flush(self, seconds: float) -> int:
        """Sends the remaining receipts for at most so many seconds, and returns how many are left."""
        with self._changed:
            self._ends_at = time.monotonic() + seconds
            self._changed.notify()
        self.join(seconds + ANSWER_SECONDS)
        return sum(len(batch) for batch in self._pending.values())

    def run(self) -> None:
        failures = 0
        while self._wait_for_receipts():
            try:
                with self._changed:
                    batches = [(channel, receipts[:RECEIPTS_MAX]) for channel, receipts in self._pending.items()]
                for channel, batch in batches:
                    self._send(channel, batch)
                failures = 0
            except Exception as error:  # Whatever it is, the receipts are still to be sent.
                failures += 1
                seconds = _backoff_seconds(failures, getattr(error, "after", 0.0))
                self._report(f"receipts could not be sent: {_error_text(error)}; trying again in {seconds:.1f} s")
                if not self._sleep(seconds):
                    return

    def _wait_for_receipts(self) -> bool:
        """Waits for receipts, and a moment for more to go with them. False: there are none, and listening has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._ends_at is not None)
            if self._ends_at is None:
                self._changed.wait_for(lambda: self._ends_at is not None, COALESCE_SECONDS)
            return bool(self._pending)

    def _sleep(self, seconds: float) -> bool:
        """Sleeps. False: listening ends before that time has passed."""
        until = time.monotonic() + seconds
        with self._changed:
            while time.monotonic() < until:
                if self._ends_at is not None and until >= self._ends_at:
                    return False
                self._changed.wait(until - time.monotonic())
        return True

    def _send(self, channel: str, batch: List[Dict[str, Any]]) -> None:
        """Sends receipts of one channel, and drops them when they are answered. Raises _TemporaryError."""
        path = f"/feedback/{_quoted(channel)}?{urllib.parse.urlencode({'device': self._device})}"
        headers = {"Content-Type": "application/json"}
        body = "[" + ",".join(_json_with_detail({k: v for k, v in r.items() if k != "detail"}, r.get("detail")) for r in batch) + "]"
        try:
            rejected, late = _read_answer(_object(self._service.ask("POST", path, headers, body.encode()).decode("utf-8", "replace")), batch)
        except Refused as error:
            # Other refusals concern the address or the token. The feed gets them too and reports them; the receipts are kept.
            if error.status not in (400, 413, 422):
                raise _TemporaryError(str(error)) from error
            late = []
            if "rejected" in error.problem:
                rejected, late = _read_answer(error.problem, batch)
            elif len(batch) > 1:  # One of them is the reason. Sent one by one, only that one is dropped.
                for receipt in batch:
                    self._send(channel, [receipt])
                return
            else:
                rejected = [(batch[0], str(error))]
        for receipt, reason in rejected:
            self._report(f"{receipt['status']} of {receipt['event']} was rejected: {reason}")
            if receipt["status"] == "deferred":
                self._outcomes.forget(receipt["event"])
        for receipt, reason in late:
            self._report(f"{receipt['status']} of {receipt['event']} was recorded, but late: {_LATE.get(reason, reason)}")
        with self._changed:
            self._pending[channel] = self._pending[channel][len(batch) :]
            if not self._pending[channel]:
                del self._pending[channel]
        self._outcomes.mark_answered([(r["event"], r["round"]) for r in batch if _is_outcome(r)])


#: Why a receipt is late, for people.
_LATE = {"missing": "the deadline had passed", "withdrawn": "the event had been withdrawn", "superseded": "a newer event had superseded it"}

_Reasons = List[Tuple[Dict[str, Any], str]]


def _read_answer(answer: Dict[str, Any], batch: List[Dict[str, Any]]) -> Tuple[_Reasons, _Reasons]:
    """The receipts that an answer rejects, and those that it recorded late, with the reasons. Raises _TemporaryError if the answer doesn't account for each one
    that was sent."""
    rejected, late = (_listed(answer.get(name, []), batch) for name in ("rejected", "late"))
    counts: List[Any] = [answer.get("recorded"), answer.get("duplicate"), None if rejected is None else len(rejected)]
    if "rejected" not in answer or late is None or not all(_is_count(count) for count in counts) or sum(counts) != len(batch):
        raise _TemporaryError("the answer does not account for the receipts")
    return rejected or [], late


def _listed(items: Any, batch: List[Dict[str, Any]]) -> Optional[_Reasons]:
    """The receipts that a list of an answer names, each once, with the reasons. None: it is not such a list."""
    if not isinstance(items, list):
        return None
    found: Dict[int, str] = {}
    for one in items:
        index, reason = (one.get("index"), one.get("reason")) if isinstance(one, dict) else (None, None)
        if isinstance(index, int) and _is_count(index) and index < len(batch) and one.get("event") == batch[index]["event"] and isinstance(reason, str):
            found[index] = reason
    return [(batch[index], reason) for index, reason in found.items()] if len(found) == len(items) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_outcome(receipt: Dict[str, Any]) -> bool:
    return receipt["status"] in ("deferred", "done", "failed")


# ------------------------------------------------------------------------------------------------------------------- devices


class _Work:
    """An event that was received and whose outcome is not known yet."""

    def __init__(self, event: Event) -> None:
        self.event = event

    @property
    def is_withdrawn(self) -> bool:
        return self.event.withdrawn.is_set()


class _Listener:
    """A device: one thread reads the feed, one sends receipts, and workers call the handler."""

    def __init__(
        self,
        feed: _Feed,
        outbox: _Outbox,
        outcomes: _OutcomeStore,
        on_event: Callable[[Event], Any],
        on_withdrawn: Optional[Callable[[Withdrawal], Any]],
        stop: threading.Event,
        report: Callable[[str], None],
    ) -> None:
        self._feed, self._outbox, self._outcomes = feed, outbox, outcomes
        self._on_event, self._on_withdrawn, self._stop, self._report = on_event, on_withdrawn, stop, report
        self._queue: "queue.Queue[Optional[_Work]]" = queue.Queue(QUEUED_EVENTS_MAX)
        #: By event id. The reader and the workers change it.
        self._unfinished: Dict[str, _Work] = {}
        self._failure: Optional[BaseException] = None

    def run(self, count: int) -> None:
        reader = threading.Thread(target=self._read, name="pere-feed", daemon=True)
        workers = [threading.Thread(target=self._work, name="pere-worker", daemon=True) for _ in range(count)]
        for thread in [reader, self._outbox, *workers]:
            thread.start()
        # A signal handler may set `stop` in this thread at any moment, so this thread must not hold the lock of `stop` then.
        ended: "queue.SimpleQueue[None]" = queue.SimpleQueue()
        threading.Thread(target=lambda: ended.put(None if self._stop.wait() else None), daemon=True).start()
        try:
            ended.get()
        finally:
            self._stop.set()
            self._feed.end()
            self._release_workers(len(workers))
            for worker in workers:
                worker.join()
            left = self._outbox.flush(FLUSH_SECONDS_MAX)
            self._outcomes.close()
            if left > 0:
                self._report(f"{left} receipts could not be sent")
        if self._failure is not None:
            raise self._failure

    def _release_workers(self, workers: int) -> None:
        """Drops the events that wait, which come again, and ends the workers."""
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            pass
        for _ in range(workers):
            self._queue.put(None)

    def _read(self) -> None:
        try:
            for message in self._feed.messages():
                if message.server_event == "withdrawn":
                    self._withdraw(message.text)
                if message.server_event is not None:
                    continue
                try:
                    event = _parse_event(message.text)
                except Exception as error:
                    self._report(f"the feed sent something that is not an event: {_error_text(error)}")
                    continue
                self._accept(event)
            self._stop.set()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Ends listening with this error, unless there was another one before."""
        self._failure = self._failure or error
        self._stop.set()

    def _withdraw(self, text: str) -> None:
        """An event was withdrawn: it is not begun, and a handler that works on it is told."""
        try:
            withdrawal = _parse_withdrawal(text)
        except ValueError as error:
            return self._report(f"the feed sent something else: {error}")
        work = self._unfinished.get(withdrawal.withdrawn)
        if work is not None:
            work.event.withdrawn.set()
        else:
            outcome = self._outcomes.outcome(withdrawal.withdrawn)
            if outcome is not None and outcome.status == "deferred":
                self._outcomes.forget(withdrawal.withdrawn)
        try:
            if self._on_withdrawn is not None:
                self._on_withdrawn(withdrawal)
        except Exception as error:
            self._report(f"on_withdrawn failed: {_error_text(error)}")

    def _accept(self, event: Event) -> None:
        work = self._unfinished.get(event.id)
        if work is not None:
            if event.round > work.event.round:
                # Another program with the name of this device deferred it. From now on the receipts answer that round.
                work.event = replace(event, withdrawn=work.event.withdrawn)
                self._outbox.add(event.id, _Outcome(event.channel, "received", round=event.round))
            return
        outcome = self._outcomes.outcome(event.id)
        if outcome is not None and not outcome.comes_again_as(event.round):
            # The event came again because the service does not have its last receipt.
            if not self._outbox.has_outcome(event.id, event.round):
                self._outbox.add(event.id, replace(outcome, round=event.round))
            return
        work = self._unfinished[event.id] = _Work(event)
        self._outbox.add(event.id, _Outcome(event.channel, "received", round=event.round))
        while not self._stop.is_set():
            try:
                return self._queue.put(work, timeout=1)
            except queue.Full:
                pass

    def _work(self) -> None:
        try:
            while True:
                work = self._queue.get()
                if work is None:
                    return
                outcome = self._outcome_of(work)
                event = work.event
                if outcome is not None:
                    outcome = replace(outcome, round=event.round)
                    try:
                        self._outcomes.record(event.id, outcome)
                    except (OSError, ValueError) as error:
                        self._report(f"the outcome of {event.id} could not be stored: {error}")
                    self._outbox.add(event.id, outcome)
                elif not work.is_withdrawn:
                    return  # Listening has ended. The event stays open.
                self._unfinished.pop(event.id, None)
        except BaseException as error:  # SystemExit, or an error of this module. The event stays open.
            self._fail(error)

    def _outcome_of(self, work: _Work) -> Optional[_Outcome]:
        """Calls the handler until the outcome is known. None: before that, listening ended or the event was withdrawn."""
        failures = 0
        while not self._stop.is_set() and not work.is_withdrawn:
            event = work.event
            try:
                value = self._on_event(event)
            except Exception as error:
                if work.is_withdrawn:
                    return None  # Nobody waits for it any more, and the handler may have been told to stop.
                if isinstance(error, Deferred):
                    return _Outcome(event.channel, "deferred", _fit_detail(error.detail), after=error.after)
                # What the handler uses may have received the same signal as this process.
                if not _is_environment_error(error) and not self._stop.is_set():
                    if isinstance(error, Failed):
                        return _Outcome(event.channel, "failed", _fit_detail(error.detail), after=error.after, retry=error.retry)
                    return _Outcome(event.channel, "failed", _fit_detail(_error_text(error)))
                failures += 1
                seconds = max(HANDLER_RETRY_SECONDS_MIN, _backoff_seconds(failures))
                again = "it comes again" if self._stop.is_set() else f"trying again in {seconds:.1f} s"
                self._report(f"{event.id} stays open: {_error_text(error)}; {again}")
                self._stop.wait(seconds)
            else:
                if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
                    raise TypeError(f"the handler returned a {type(value).__name__}, which does nothing by itself; {event.id} stays open")
                return _Outcome(event.channel, "done", _fit_detail(value))
        return None


def _check_handler(handler: Any) -> None:
    """Raises ValueError if a handler can't be called, or if calling it does nothing."""
    if not callable(handler):
        raise ValueError(f"the handler must be a function, not {handler!r}")
    if any(map(inspect.iscoroutinefunction, _callables_of(handler))):
        raise ValueError("the handler must be a plain function; an async function needs alisten()")
    if _is_generator_function(handler):
        raise ValueError("the handler must be a plain function, not a generator")


def _callables_of(handler: Any) -> Tuple[Any, Any]:
    """A handler and the method that makes an object callable: both may be async or generators."""
    return handler, getattr(handler, "__call__", None)


def _is_generator_function(handler: Any) -> bool:
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in _callables_of(handler))


def _is_environment_error(error: Exception) -> bool:
    """Whether a handler failed for lack of memory or file descriptors, or says that the outcome is unknown."""
    lack = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return lack or isinstance(error, (NoOutcome, MemoryError))


def _fit_detail(value: Any) -> Any:
    """A value as the detail of a receipt. If JSON can't represent it, or it is too long or too deep, as much of its text as fits. Raises nothing."""
    try:
        text = str(value) if isinstance(value, _Json) else _to_json(value)
        value = value if isinstance(value, (str, _Json)) else _Json(text)
    except Exception:
        try:
            value = repr(value)
        except Exception:
            value = f"<{type(value).__name__}>"
        text = json.dumps(value)
    if len(text.encode()) <= DETAIL_BYTES_MAX and _json_depth(text) <= DETAIL_DEPTH_MAX:
        return value
    return {"cut": (value if isinstance(value, str) else text)[:DETAIL_CUT_CHARACTERS]}


def _check_options(device: Optional[str], workers: int, times: List[float], positions: List[str]) -> None:
    """Raises ValueError for an invalid option."""
    if device is not None and not (isinstance(device, str) and _NAME.fullmatch(device)):
        raise ValueError(f"a device name must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -, not {device!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    for seconds in times:
        if not 0 < seconds <= DURATION_SECONDS_MAX:
            raise ValueError(f"a time must be more than 0 and at most {DURATION_SECONDS_MAX} seconds, not {seconds}")
    for position in positions:
        if position != "" and not _POSITION.fullmatch(position):
            raise ValueError(f"an id has the form <epoch>-<seq>; this is not one: {position!r}")


def listen(
    url: str,
    channels: Union[str, List[str]],
    device: str,
    on_event: Callable[[Event], Any],
    *,
    on_withdrawn: Optional[Callable[[Withdrawal], Any]] = None,
    since: Optional[str] = None,
    token: Token = None,
    state: Optional[str] = None,
    workers: int = 1,
    stop: Optional[threading.Event] = None,
    report: Callable[[str], None] = _log,
    first_byte_seconds: float = FIRST_BYTE_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
    return_seconds: float = STREAM_RETRY_SECONDS,
) -> None:
    """
    Follows channels as a device until `stop` is set. Calls `on_event` once for each event, and sends its receipts: `received` when it comes, `done` with
    what the handler returns as the detail, or `failed` with the message of what it raises. `workers` threads call the handler; with one, events are
    handled in order. When listening ends, handlers that run are waited for, and the events that wait come again.

    If a handler raises NoOutcome, MemoryError, or an OSError for lack of memory or file descriptors, the event stays open and the handler is called again after
    a delay. The event also stays open if the handler raises anything after `stop` was set, because it may have been interrupted by the same signal. SystemExit
    ends listening and leaves the event open. A handler is a plain function: async functions (see `alisten`) and generators are refused, and one that
    returns a coroutine or a generator ends listening with TypeError.

    If a handler raises Deferred, the service sends the event again later; an event that was pushed with `attempts` also comes again after a failure. The
    handler is then called again, with the event's next `round`. If the publisher withdraws an event, it is not begun; while a handler works on it, the event's
    `withdrawn` is set: the handler can look at it, stop and raise anything, and no receipt is sent. If it returns, the event is `done` all the same, and
    recorded as late. `on_withdrawn` is called with each withdrawal that the service tells, in the thread that reads the feed.

    `since`: where a device that is not yet enrolled starts: `now` or `earliest`. With `latest`, any device starts with the newest event of each key, also if it
    has finished that event before.

    `channels`: one name, several separated by commas, or a list. `token`: a string, or a function that returns the newest token; it is called again before the
    token expires and when it is refused. `state`: a file in which outcomes and unanswered receipts survive the process; one process at a time may use it.
    `report` is called with one line of text for each error after which the client tries again.

    Raises Refused if the service does not admit the device and no other token can be had; ValueError for invalid arguments.
    """
    _check_options(device, workers, [first_byte_seconds, silence_seconds, return_seconds], [])
    _check_handler(on_event)
    stop, report = stop or threading.Event(), _safe_report(report)
    service, outcomes = _ServiceClient(url, token), _OutcomeStore(state)
    if since == "latest":
        outcomes.start_again()
    names = channels if isinstance(channels, str) else ",".join(channels)
    path, query = f"/feed/{_quoted(names)}", {"device": device, **({} if since is None else {"since": since})}
    feed = _Feed(service, path, query, stop, report, first_byte_seconds, silence_seconds, return_seconds)
    _Listener(feed, _Outbox(service, device, outcomes, report), outcomes, on_event, on_withdrawn, stop, report).run(workers)


# ---------------------------------------------------------------------------------------------------------------- publishers


def publish(
    url: str,
    channel: str,
    data: Any,
    *,
    type: Optional[str] = None,
    to: Union[str, List[str], None] = None,
    ttl: Optional[int] = None,
    deadline: Optional[int] = None,
    remind: Optional[int] = None,
    event_key: Optional[str] = None,
    attempts: Optional[int] = None,
    wait: Optional[int] = None,
    key: Optional[str] = None,
    token: Token = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """
    Pushes one event and returns the service's answer; with `wait`, when every addressed device has answered or so many seconds have passed. `data` is any
    value that JSON can represent, or bytes that are JSON text and are sent unchanged. `to` names devices; `ttl`, `deadline`, `remind` and `wait` are in
    seconds. `event_key`: what the event is about; older events of the channel with the same key that are not complete are withdrawn in the same step.
    `attempts`: how often a device may try, 2 to 20; a failure before the last attempt counts as `deferred`, and the event comes again.

    What may be wrong with the push is in `warnings` of the answer, in sentences: named devices that are not enrolled, or that nobody was addressed.

    The push is repeated for `patience_seconds` and stored once, by its idempotency key. That is a random one, or `key`, with which the caller can
    repeat the push later. `report` is called with one line of text for each error after which it tries again.

    Raises Refused and Unavailable; ValueError and TypeError for data that JSON can't represent and for invalid arguments.
    """
    query = _event_query(type, to, ttl, deadline, remind, event_key, attempts)
    return _push(_Request(threading.Event()), url, channel, data, query, wait, key, token, patience_seconds, report)


def schedule(
    url: str,
    channel: str,
    data: Any,
    *,
    at: Union[datetime, str, None] = None,
    every: Optional[str] = None,
    tz: Optional[str] = None,
    type: Optional[str] = None,
    to: Union[str, List[str], None] = None,
    ttl: Optional[int] = None,
    deadline: Optional[int] = None,
    remind: Optional[int] = None,
    event_key: Optional[str] = None,
    attempts: Optional[int] = None,
    key: Optional[str] = None,
    token: Token = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """
    Pushes one event later: `at` a time (a datetime with a time zone, or ISO 8601 with an offset), or `every` time of a cron expression with five fields, in the
    IANA time zone `tz` (UTC without it). Each time is pushed exactly once, to the devices that are enrolled then. Returns the service's answer: `id`, `channel`
    and `next`. Everything else is as for `publish`.

    Raises Refused and Unavailable; ValueError and TypeError for data that JSON can't represent and for invalid arguments.
    """
    query = {**_event_query(type, to, ttl, deadline, remind, event_key, attempts), **_schedule_query(at, every, tz)}
    return _push(_Request(threading.Event()), url, channel, data, query, None, key, token, patience_seconds, report)


def withdraw(
    url: str,
    channel: str,
    event: str,
    *,
    note: Optional[str] = None,
    token: Token = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """
    Withdraws an event: from then on nobody is sent it, and the devices that may have it are told, with `note` (at most 256 characters). An event that is
    complete stays as it is. Returns the event's state. The request is repeated for `patience_seconds`.

    Raises Refused (status 404: the event is no longer kept) and Unavailable.
    """
    return _withdraw(_Request(threading.Event()), url, channel, event, note, token, patience_seconds, report)


def scheduled(
    url: str, channel: str, *, token: Token = None, patience_seconds: float = 60.0, report: Callable[[str], None] = _log
) -> Iterator[Dict[str, Any]]:
    """The pushes for later of a channel: `id`, `next`, `every`, `tz` and `last` of each. Raises Refused and Unavailable."""
    after: Optional[str] = ""
    while after is not None:
        page, after = _scheduled_page(_Request(threading.Event()), url, channel, after, token, patience_seconds, report)
        yield from page


def cancel_scheduled(
    url: str, channel: str, id: str, *, token: Token = None, patience_seconds: float = 60.0, report: Callable[[str], None] = _log
) -> None:
    """Cancels a push for later. What it has pushed stays. Raises Refused (status 404: there is none) and Unavailable: it may be cancelled."""
    _cancel_scheduled(_Request(threading.Event()), url, channel, id, token, patience_seconds, report)


def _event_query(
    type: Optional[str],
    to: Union[str, List[str], None],
    ttl: Optional[int],
    deadline: Optional[int],
    remind: Optional[int],
    event_key: Optional[str],
    attempts: Optional[int],
) -> Dict[str, Any]:
    """The query parameters of a push that are options of its event."""
    names = ",".join(to) if isinstance(to, list) else to
    options = {"type": type, "to": names, "ttl": ttl, "deadline": deadline, "remind": remind, "key": event_key, "attempts": attempts}
    return {name: value for name, value in options.items() if value is not None}


def _schedule_query(at: Union[datetime, str, None], every: Optional[str], tz: Optional[str]) -> Dict[str, Any]:
    """The query parameters that say when to push. Raises ValueError."""
    if (at is None) == (every is None):
        raise ValueError("give either at or every")
    if isinstance(at, datetime):
        if at.utcoffset() is None:
            raise ValueError(f"at needs a time zone: {at}")
        at = at.isoformat(timespec="milliseconds")
    return {name: value for name, value in {"at": at, "every": every, "tz": tz}.items() if value is not None}


def _push(
    request: _Request,
    url: str,
    channel: str,
    data: Any,
    query: Dict[str, Any],
    wait: Optional[int],
    key: Optional[str],
    token: Token,
    patience_seconds: float,
    report: Callable[[str], None],
) -> Dict[str, Any]:
    """`publish` and `schedule`, until `request` is ended."""
    body = data if isinstance(data, bytes) else _to_json(data).encode()
    if key is not None and not re.fullmatch(r"[ -~]{1,255}", key):
        raise ValueError(f"a key must be 1 to 255 printable ASCII characters, not {key!r}")
    headers = {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
    if wait is not None:
        headers["Prefer"] = f"wait={wait}"
    is_later = "at" in query or "every" in query

    def parse(answer: bytes) -> Dict[str, Any]:
        return _parse_scheduled(answer, channel) if is_later else _parse_stored(answer, channel)

    path = f"/push/{_quoted(channel)}?{urllib.parse.urlencode(query)}"
    statuses = (200, 202) if is_later else (200, 201)
    return _ask_until_answered(request, _ServiceClient(url, token), ("POST", path, headers, body), wait, parse, patience_seconds, report, statuses)


def _withdraw(
    request: _Request,
    url: str,
    channel: str,
    event: str,
    note: Optional[str],
    token: Token,
    patience_seconds: float,
    report: Callable[[str], None],
) -> Dict[str, Any]:
    """`withdraw`, until `request` is ended."""
    if not _POSITION.fullmatch(event):
        raise ValueError(f"an id has the form <epoch>-<seq>; this is not one: {event!r}")

    def parse(body: bytes) -> Dict[str, Any]:
        answer = _object(body.decode("utf-8", "replace"))
        if answer.get("id") != event or answer.get("channel") != channel or not isinstance(answer.get("receipts"), dict):
            raise _TemporaryError("the answer does not say what became of the event")
        return answer

    query = "" if note is None else "?" + urllib.parse.urlencode({"note": note})
    path = f"/events/{_quoted(channel)}/{_quoted(event)}{query}"
    return _ask_until_answered(request, _ServiceClient(url, token), ("DELETE", path, {}, None), None, parse, patience_seconds, report)


def _scheduled_page(
    request: _Request, url: str, channel: str, after: str, token: Token, patience_seconds: float, report: Callable[[str], None]
) -> Tuple[List[Dict[str, Any]], Optional[str]]:
    """A page of `scheduled`, and where the next one begins; None: there is none."""

    def parse(body: bytes) -> Tuple[List[Dict[str, Any]], Optional[str]]:
        answer = _object(body.decode("utf-8", "replace"))
        page, following = answer.get("scheduled"), answer.get("next")
        is_page = isinstance(page, list) and all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in page)
        if not is_page or "next" not in answer or not (following is None or isinstance(following, str)):
            raise _TemporaryError("the answer is not a list of scheduled pushes")
        return cast(List[Dict[str, Any]], page), following

    query = urllib.parse.urlencode({"limit": 1_000, **({"after": after} if after else {})})
    asked = ("GET", f"/scheduled/{_quoted(channel)}?{query}", {}, None)  # type: _Asked
    return _ask_until_answered(request, _ServiceClient(url, token), asked, None, parse, patience_seconds, report)


def _cancel_scheduled(
    request: _Request, url: str, channel: str, id: str, token: Token, patience_seconds: float, report: Callable[[str], None]
) -> None:
    """`cancel_scheduled`, until `request` is ended."""
    failures: List[str] = []

    def note(line: str) -> None:
        failures.append(line)
        report(line)

    asked = ("DELETE", f"/scheduled/{_quoted(channel)}/{_quoted(id)}", {}, None)  # type: _Asked
    try:
        _ask_until_answered(request, _ServiceClient(url, token), asked, None, lambda body: body, patience_seconds, note, (204,))
    except Refused as error:
        # An earlier try may have cancelled it, and its answer was lost.
        if error.status != 404 or not failures:
            raise


#: A request: method, path, headers and body.
_Asked = Tuple[str, str, Dict[str, str], Optional[bytes]]


def _ask_until_answered(
    request: _Request,
    service: _ServiceClient,
    asked: _Asked,
    wait: Optional[int],
    parse: Callable[[bytes], _Result],
    patience_seconds: float,
    report: Callable[[str], None],
    statuses: Tuple[int, ...] = (200, 201),
) -> _Result:
    """Repeats a request that may be repeated, until it is answered, `request` is ended, or the time is over. `wait`: the seconds that the service was asked to
    wait; `statuses` are those of an answer. `parse` raises _TemporaryError if the answer is not the service's. Raises Refused and Unavailable."""
    until = time.monotonic() + patience_seconds
    failures = 0
    notice = threading.Timer(SLOW_ANSWER_SECONDS, lambda: report(f"no answer from {service.url} yet; trying for {patience_seconds:.0f} s"))
    notice.daemon = True
    notice.start()

    def connected(sock: socket.socket) -> None:
        request.connected(sock)
        if wait is not None:
            notice.cancel()  # The answer takes as long as the receipts do.

    try:
        while True:
            try:
                return parse(service.ask(*asked, ANSWER_SECONDS + (wait or 0), connected, statuses))
            except _TemporaryError as error:
                failures += 1
                pause = _backoff_seconds(failures, error.after)
                if request.stop.is_set() or time.monotonic() + pause > until:
                    raise Unavailable(str(error)) from error
                notice.cancel()
                report(f"{error}; trying again in {pause:.1f} s")
                request.stop.wait(pause)
    finally:
        notice.cancel()


def _parse_scheduled(body: bytes, channel: str) -> Dict[str, Any]:
    """The answer to a push for later. Raises _TemporaryError if it doesn't say that the push is scheduled."""
    answer = _object(body.decode("utf-8", "replace"))
    following = answer.get("next", False)
    if answer.get("channel") != channel or not isinstance(answer.get("id"), str) or not (following is None or isinstance(following, str)):
        raise _TemporaryError("the answer does not say that the push is scheduled")
    return answer


def _parse_stored(body: bytes, channel: str) -> Dict[str, Any]:
    """The answer to a push. Raises _TemporaryError if it doesn't say that the event is stored."""
    answer = _object(body.decode("utf-8", "replace"))
    audience = answer.get("audience")
    counts = [audience.get("addressed"), audience.get("connected"), answer.get("seq")] if isinstance(audience, dict) else [None]
    is_event = answer.get("channel") == channel and isinstance(answer.get("id"), str) and isinstance(answer.get("at"), str)
    if not is_event or not all(_is_count(count) for count in counts):
        raise _TemporaryError("the answer does not say that the event is stored")
    return answer


def _warnings(answer: Dict[str, Any]) -> List[str]:
    """The warnings in the answer to a push."""
    warnings = answer.get("warnings")
    return [warning for warning in warnings if isinstance(warning, str)] if isinstance(warnings, list) else []


def receipts(
    url: str,
    channels: Union[str, List[str]],
    *,
    after: str = "",
    token: Token = None,
    stop: Optional[threading.Event] = None,
    report: Callable[[str], None] = _log,
) -> Iterator[Dict[str, Any]]:
    """
    The receipts of channels as they come, `missing` included, each with its `round` and `attempt`. Also a summary when an event is complete: that one has
    `"complete": true`; one when an event was withdrawn, with `"kind": "withdrawn"`, `reason`, `by` and `note`; and one when an event with a deadline is
    complete or its deadline has passed, with `"kind": "settled"`. Starts now, or after the receipt with the id `after`, and resumes where it broke off. Ends when `stop`
    is set; when the caller ends it, `stop` is set.

    Raises Refused; ValueError for invalid arguments.
    """
    for text in _receipt_texts(url, channels, after, token, stop or threading.Event(), report):
        yield _json.decode(text)


def _receipt_texts(
    url: str, channels: Union[str, List[str]], after: str, token: Token, stop: threading.Event, report: Callable[[str], None]
) -> Iterator[str]:
    """`receipts`, as the JSON texts that were sent."""
    _check_options(None, 1, [], [after])
    names = channels if isinstance(channels, str) else ",".join(channels)
    times = (FIRST_BYTE_SECONDS, SILENCE_SECONDS, STREAM_RETRY_SECONDS)
    feed = _Feed(_ServiceClient(url, token), f"/feedback/{_quoted(names)}", {}, stop, report, *times)
    feed.position = after

    def end() -> None:
        stop.wait()
        feed.end()

    threading.Thread(target=end, daemon=True).start()
    try:
        for message in feed.messages():
            if message.server_event not in (None, *_NOTICES):
                continue
            if isinstance(_object(message.text).get("event"), str):
                yield _labelled(message)
            else:
                report("the feed sent something that is not a receipt")
    finally:
        stop.set()


def _labelled(message: _Message) -> str:
    """The text of an entry. What says that an event was withdrawn or is settled names its kind: by their other members they can be taken for a completion."""
    if message.server_event in (None, "complete"):
        return message.text
    found = _object(message.text)
    if message.server_event == "settled":
        found.pop("complete", None)
    return json.dumps({"kind": message.server_event, **found})


def attention(
    url: str,
    *,
    limit: Optional[int] = None,
    token: Token = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """
    Who did not do it, in all channels that the token may push to: `totals`, and the lists `devices`, `events`, `hooks` and `channels`, each worst first and
    at most `limit` long (1 to 1,000; 100 by default). The request is repeated for `patience_seconds`; `report` is called with one line of text for each
    error after which it tries again.

    Raises Refused and Unavailable.
    """
    return _attention(_Request(threading.Event()), url, limit, token, patience_seconds, report)


def _attention(
    request: _Request, url: str, limit: Optional[int], token: Token, patience_seconds: float, report: Callable[[str], None]
) -> Dict[str, Any]:
    """`attention`, until `request` is ended."""

    def parse(body: bytes) -> Dict[str, Any]:
        answer = _object(body.decode("utf-8", "replace"))
        lists = [answer.get(name) for name in ("devices", "events", "hooks", "channels")]
        if not isinstance(answer.get("totals"), dict) or not all(isinstance(one, list) for one in lists):
            raise _TemporaryError("the answer does not say what needs attention")
        return answer

    asked = ("GET", "/attention" if limit is None else f"/attention?limit={limit}", {}, None)  # type: _Asked
    return _ask_until_answered(request, _ServiceClient(url, token), asked, None, parse, patience_seconds, report)


# ------------------------------------------------------------------------------------------------------------------- asyncio


def _in_thread(function: Callable[..., _Result], *arguments: Any) -> "asyncio.Future[_Result]":
    """Calls a function in a thread of its own, for the event loop that runs. Cancelling the future drops the result; it does not end the call."""
    loop = asyncio.get_running_loop()
    future: "asyncio.Future[_Result]" = loop.create_future()

    def settle(result: Optional[_Result], error: Optional[BaseException]) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(_Result, result))

    def run() -> None:
        result, error = None, None  # type: Tuple[Optional[_Result], Optional[BaseException]]
        try:
            result = function(*arguments)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # The loop is closed, so nobody waits for this.

    threading.Thread(target=run, name="pere-asyncio", daemon=True).start()
    return future


class _LoopCalls:
    """Calls that background threads make, and whose awaitable results the caller's event loop awaits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        #: Called functions see the context variables of whoever called the interface, as with `asyncio.to_thread`.
        self._context = contextvars.copy_context()
        #: What is awaited, and the event that it works on, if any.
        self._tasks: Dict["asyncio.Task[Any]", Optional[Event]] = {}
        self._is_cancelled = False

    def cancel(self) -> None:
        """Cancels what the loop awaits for these calls, and what it would await from now on. Called on the loop."""
        self._is_cancelled = True
        for task in list(self._tasks):
            task.cancel()

    def cancel_withdrawn(self) -> None:
        """Cancels what the loop awaits for events that were withdrawn. Called on the loop."""
        for task, event in list(self._tasks.items()):
            if event is not None and event.withdrawn.is_set():
                task.cancel()

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls a function on the loop, unless that is closed."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in this thread. If it returns an awaitable, waits until the loop has awaited it, and returns that result. Raises what the
        function raises; NoOutcome if the awaiting was cancelled or the loop is closed."""
        value = self._context.copy().run(function, *arguments)
        event = arguments[0] if arguments and isinstance(arguments[0], Event) else None
        return self._context.copy().run(self._wait_for, value, event) if inspect.isawaitable(value) else value

    def _wait_for(self, awaitable: Awaitable[Any], event: Optional[Event]) -> Any:
        awaiting = self._await(awaitable, event)
        try:
            future = asyncio.run_coroutine_threadsafe(awaiting, self._loop)
        except RuntimeError as error:
            awaiting.close()
            _discard(awaitable)
            raise NoOutcome("the event loop is closed") from error
        # The future of a loop that is closed meanwhile never ends. `result(timeout)` would not tell its TimeoutError from one of the function's own.
        while not concurrent.futures.wait([future], LOOP_CHECK_SECONDS).done:
            if self._loop.is_closed():
                raise NoOutcome("the event loop was closed")
        if future.cancelled():
            raise NoOutcome("it was cancelled")
        return future.result()

    async def _await(self, awaitable: Awaitable[Any], event: Optional[Event]) -> Any:
        if self._is_cancelled or (event is not None and event.withdrawn.is_set()):
            _discard(awaitable)
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = event
        try:
            return await awaitable
        finally:
            self._tasks.pop(task, None)


def _discard(awaitable: Awaitable[Any]) -> None:
    """Without this, Python warns that a coroutine was never awaited."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()


def _sync_token(token: AsyncToken, calls: _LoopCalls) -> Token:
    """A token source that background threads can call."""
    return functools.partial(calls.run, token) if callable(token) else token


def _on_loop(report: Callable[[str], None]) -> Callable[[str], None]:
    """A `report` that background threads can call; `report` itself runs on the event loop."""
    loop = asyncio.get_running_loop()
    return lambda line: cast(None, loop.call_soon_threadsafe(report, line))


async def alisten(
    url: str,
    channels: Union[str, List[str]],
    device: str,
    on_event: Callable[[Event], Any],
    *,
    on_withdrawn: Optional[Callable[[Withdrawal], Any]] = None,
    since: Optional[str] = None,
    token: AsyncToken = None,
    state: Optional[str] = None,
    workers: int = 1,
    stop: Optional[asyncio.Event] = None,
    report: Callable[[str], None] = _log,
    first_byte_seconds: float = FIRST_BYTE_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
    return_seconds: float = STREAM_RETRY_SECONDS,
) -> None:
    """
    `listen` for asyncio: follows channels as a device until `stop` is set or the task is cancelled. The promises and the arguments are those of `listen`.

    How it works: `listen` runs in background threads, and the caller's event loop awaits the handlers. At most `workers` handlers run at once, each held by
    one waiting thread; while all are busy, at most 1,000 events wait and the feed is not read further. An `async` handler runs on the caller's loop. A plain
    function runs in a background thread, so it may block; if it returns an awaitable, the loop awaits that. `token` may be an `async` function as well.
    `report` is called on the loop.

    If an event is withdrawn, its handler is cancelled, and no receipt is sent; a handler that catches the cancellation and returns is `done`, late. A plain
    function finds the event's `withdrawn` set. `on_withdrawn` is called on the loop, and may be an `async` function.

    `stop` lets handlers that run come to their end. Cancelling the task cancels the handlers that are awaited. An event whose handler was cancelled, or raises
    after that, gets no final receipt and comes again; a handler that catches the cancellation and returns is `done`. A plain function can't be cancelled
    and is waited for. In both cases `alisten` ends when the receipts that are due were answered, or after at most 20 seconds of trying; with `state` the rest
    are sent next time. A second cancellation does not wait. If the loop is closed without that, listening ends and the events stay open.

    Raises what `listen` raises.
    """
    if not callable(on_event) or _is_generator_function(on_event):
        raise ValueError(f"the handler must be a function or an async function, and not {'a generator' if callable(on_event) else repr(on_event)}")
    loop, handlers, tokens = asyncio.get_running_loop(), _LoopCalls(), _LoopCalls()
    ending, report = threading.Event(), _safe_report(_on_loop(report))
    times = {"first_byte_seconds": first_byte_seconds, "silence_seconds": silence_seconds, "return_seconds": return_seconds}
    handler, token = functools.partial(handlers.run, on_event), _sync_token(token, tokens)
    withdrawals: Set["asyncio.Task[Any]"] = set()

    async def tell(withdrawal: Withdrawal) -> None:
        try:
            value = on_withdrawn(withdrawal) if on_withdrawn is not None else None
            if inspect.isawaitable(value):
                await value
        except Exception as error:
            report(f"on_withdrawn failed: {_error_text(error)}")

    def tell_on_loop(withdrawal: Withdrawal) -> None:
        handlers.cancel_withdrawn()
        if on_withdrawn is not None:
            task = loop.create_task(tell(withdrawal))
            withdrawals.add(task)
            task.add_done_callback(withdrawals.discard)

    def withdrawn(withdrawal: Withdrawal) -> None:
        handlers.call_soon(tell_on_loop, withdrawal)

    options: Dict[str, Any] = {"token": token, "state": state, "workers": workers, "stop": ending, "report": report, **times}
    options.update(on_withdrawn=withdrawn, since=since)
    listening = _in_thread(functools.partial(listen, url, channels, device, handler, **options))

    def watch_loop() -> None:
        while not ending.wait(LOOP_CHECK_SECONDS):
            if loop.is_closed():
                report("the event loop was closed; listening ends, and events without a final receipt stay open")
                ending.set()

    threading.Thread(target=watch_loop, name="pere-loop", daemon=True).start()
    stopped = None if stop is None else loop.create_task(stop.wait())
    ends: Set["asyncio.Future[Any]"] = {listening} if stopped is None else {listening, stopped}
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        ending.set()
        await asyncio.wait({listening})
    except asyncio.CancelledError:
        # In this order: what a handler raises after `ending` is set answers nothing.
        ending.set()
        handlers.cancel()
        await asyncio.wait({listening})
        raise
    finally:
        ending.set()
        tokens.cancel()
        if stopped is not None:
            stopped.cancel()
    listening.result()


async def apublish(
    url: str,
    channel: str,
    data: Any,
    *,
    type: Optional[str] = None,
    to: Union[str, List[str], None] = None,
    ttl: Optional[int] = None,
    deadline: Optional[int] = None,
    remind: Optional[int] = None,
    event_key: Optional[str] = None,
    attempts: Optional[int] = None,
    wait: Optional[int] = None,
    key: Optional[str] = None,
    token: AsyncToken = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """
    `publish` for asyncio, in a background thread. `token` may be an `async` function; `report` is called on the loop.

    Cancelling the task ends the request and the retries at once. The event may be stored or not then; pass `key` to be able to ask again.

    Raises what `publish` raises.
    """
    query = _event_query(type, to, ttl, deadline, remind, event_key, attempts)
    return await _off_loop(_push, (url, channel, data, query, wait, key), token, patience_seconds, report)


async def aschedule(
    url: str,
    channel: str,
    data: Any,
    *,
    at: Union[datetime, str, None] = None,
    every: Optional[str] = None,
    tz: Optional[str] = None,
    type: Optional[str] = None,
    to: Union[str, List[str], None] = None,
    ttl: Optional[int] = None,
    deadline: Optional[int] = None,
    remind: Optional[int] = None,
    event_key: Optional[str] = None,
    attempts: Optional[int] = None,
    key: Optional[str] = None,
    token: AsyncToken = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """`schedule` for asyncio, as `apublish` is `publish`."""
    query = {**_event_query(type, to, ttl, deadline, remind, event_key, attempts), **_schedule_query(at, every, tz)}
    return await _off_loop(_push, (url, channel, data, query, None, key), token, patience_seconds, report)


async def awithdraw(
    url: str,
    channel: str,
    event: str,
    *,
    note: Optional[str] = None,
    token: AsyncToken = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """`withdraw` for asyncio, as `apublish` is `publish`."""
    return await _off_loop(_withdraw, (url, channel, event, note), token, patience_seconds, report)


async def ascheduled(
    url: str, channel: str, *, token: AsyncToken = None, patience_seconds: float = 60.0, report: Callable[[str], None] = _log
) -> AsyncIterator[Dict[str, Any]]:
    """`scheduled` for asyncio, as `apublish` is `publish`."""
    after: Optional[str] = ""
    while after is not None:
        page, after = await _off_loop(_scheduled_page, (url, channel, after), token, patience_seconds, report)
        for one in page:
            yield one


async def acancel_scheduled(
    url: str, channel: str, id: str, *, token: AsyncToken = None, patience_seconds: float = 60.0, report: Callable[[str], None] = _log
) -> None:
    """`cancel_scheduled` for asyncio, as `apublish` is `publish`."""
    await _off_loop(_cancel_scheduled, (url, channel, id), token, patience_seconds, report)


async def _off_loop(
    function: Callable[..., _Result],
    arguments: Tuple[Any, ...],
    token: AsyncToken,
    patience_seconds: float,
    report: Callable[[str], None],
) -> _Result:
    """Calls a function that makes a request in a background thread. Cancelling the task ends the request."""
    request, tokens = _Request(threading.Event()), _LoopCalls()
    try:
        return await _in_thread(function, request, *arguments, _sync_token(token, tokens), patience_seconds, _safe_report(_on_loop(report)))
    finally:
        request.end()
        tokens.cancel()


async def areceipts(
    url: str,
    channels: Union[str, List[str]],
    *,
    after: str = "",
    token: AsyncToken = None,
    report: Callable[[str], None] = _log,
) -> AsyncIterator[Dict[str, Any]]:
    """
    `receipts` for asyncio. A background thread reads the next receipt only when the caller asks for it, so a slow caller slows the feed down and no
    receipts pile up here. `token` may be an `async` function; `report` is called on the loop.

    It ends when the task is cancelled or the iterator is closed (`contextlib.aclosing`). To go on later, pass the last receipt's `id` as `after`.

    Raises what `receipts` raises.
    """
    stop, tokens = threading.Event(), _LoopCalls()
    texts = _receipt_texts(url, channels, after, _sync_token(token, tokens), stop, _safe_report(_on_loop(report)))
    try:
        while True:
            text = await _in_thread(next, texts, None)
            if text is None:
                return
            yield _json.decode(text)
    finally:
        stop.set()
        tokens.cancel()


async def aattention(
    url: str,
    *,
    limit: Optional[int] = None,
    token: AsyncToken = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _log,
) -> Dict[str, Any]:
    """
    `attention` for asyncio, in a background thread. `token` may be an `async` function; `report` is called on the loop. Cancelling the task ends the request.

    Raises what `attention` raises.
    """
    return await _off_loop(_attention, (url, limit), token, patience_seconds, report)


# ------------------------------------------------------------------------------------------------------------------- program


#: HUP, INT, QUIT, KILL, PIPE, TERM: a command that one of these ended was interrupted. A shell then exits with 128 plus the number.
_OUTSIDE_SIGNALS = (1, 2, 3, 9, 13, 15)
#: The exit statuses of a shell that could not run a command.
_NOT_RUN_STATUSES = (126, 127)


def _print(line: str) -> None:
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        print(line, flush=True)
    except (OSError, ValueError) as error:
        raise _FatalError(f"the output can't be written: {_error_text(error)}") from error


def _print_event(event: Event) -> None:
    _print(f"{event.id} " + event.text.replace("\r", " ").replace("\n", " "))


def _temporary_file() -> Any:
    """A file without a name, in memory if the system can do that."""
    try:
        return open(os.memfd_create("pere"), "w+b", buffering=0)
    except (AttributeError, OSError):
        return tempfile.TemporaryFile(buffering=0)


def _read_end(file: Any) -> str:
    """The end of what a command wrote, without surrounding whitespace."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_BYTES_MAX))
    written: bytes = file.read(OUTPUT_BYTES_MAX)
    return written.decode("utf-8", "replace").strip()


def _detail_from_output(text: str) -> Any:
    """The output of a command as a detail: as JSON if all of it or its last line is JSON, otherwise the last line as text."""
    last = text.rpartition("\n")[2].strip()
    for part in (text, last):
        try:
            _json.decode(part)
        except Exception:
            continue
        return _Json(part.replace("\r", " ").replace("\n", " "))
    return last or None


def _run_command(command: str, env: Dict[str, str], files: List[Any], withdrawn: threading.Event) -> int:
    """Runs a command with these files as its standard input, output and error, and ends it with TERM if the event is withdrawn. Returns its exit status, or the
    negative number of the signal that ended it."""
    actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number, file in enumerate(files)]
    # This thread blocks the signals that end the program; the command must not inherit that.
    how = {"setsigmask": [], "setsigdef": [signal.SIGPIPE]}  # type: Dict[str, Any]
    child = os.posix_spawn("/bin/sh", ["sh", "-c", command], env, file_actions=actions, **how)
    lock = threading.Lock()
    running = [child]

    def end() -> None:
        with lock:
            for number in running:
                os.kill(number, signal.SIGTERM)

    if isinstance(withdrawn, _Flag):
        withdrawn.when_set(end)
    try:
        if hasattr(os, "waitid"):  # Its number must not belong to another process while it may be signalled.
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            with lock:
                running.clear()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError as error:
        raise _FatalError(f"the exit status of the command is lost: {error}; does this process ignore SIGCHLD?") from error
    finally:
        with lock:
            running.clear()
    return status


#: What a command says about another try, as the last line of its output.
_WISH = re.compile(r"PERE_(?:AFTER=(?P<after>[0-9]{1,9})|RETRY=(?P<retry>no))")


def _wish_from_output(text: str) -> Tuple[str, Optional[float], bool]:
    """The output of a command without its last line, if that says when (`PERE_AFTER=600`) or that not (`PERE_RETRY=no`) to try again."""
    rest, _, last = text.rpartition("\n")
    wish = _WISH.fullmatch(last.strip())
    if wish is None:
        return text, None, True
    return rest.strip(), None if wish["after"] is None else float(wish["after"]), wish["retry"] is None


def _command_handler(command: str, is_ending: Callable[[], bool]) -> Callable[[Event], Any]:
    """A handler that runs a command with the event's data on its standard input. Its output is the detail, its error output the reason of a failure. Status 75
    defers the event. The event is done when the command has ended, even if it left processes running. `is_ending`: whether this program is being stopped."""

    if not hasattr(os, "posix_spawn"):
        raise ValueError("--exec needs POSIX; use listen() with a function here")

    def handle(event: Event) -> Any:
        variables = {"PERE_EVENT_ID": event.id, "PERE_EVENT_CHANNEL": event.channel, "PERE_EVENT_TYPE": event.type or "", "PERE_ROUND": str(event.round)}
        try:
            with _temporary_file() as data, _temporary_file() as output_file, _temporary_file() as error_file:
                left = memoryview(event.text.encode())
                while left:
                    left = left[data.write(left) :]
                data.seek(0)
                status = _run_command(command, {**os.environ, **variables}, [data, output_file, error_file], event.withdrawn)
                output, errors = _read_end(output_file), _read_end(error_file)
        except OSError as error:
            raise NoOutcome(f"the command could not be run: {error}") from error
        if status == 0:
            return _detail_from_output(output)
        output, after, retry = _wish_from_output(output)
        if status == DEFERRED_STATUS:
            raise Deferred(after, _detail_from_output(output) or errors[-DETAIL_CUT_CHARACTERS:] or None)
        status = 128 - status if status < 0 else status
        number = status - 128
        if number in _OUTSIDE_SIGNALS:
            raise NoOutcome(f"the command was ended by signal {number}")
        if status in _NOT_RUN_STATUSES:
            raise NoOutcome(f"the command could not be run: {errors[-DETAIL_CUT_CHARACTERS:] or f'exit status {status}'}")
        if is_ending():
            raise NoOutcome("this program was stopped while the command ran")
        raise Failed((errors or output or f"exit status {status}")[-DETAIL_CUT_CHARACTERS:], retry=retry, after=after)

    return handle


def _print_withdrawal(withdrawal: Withdrawal) -> None:
    said = [withdrawal.reason, *(part for part in (withdrawal.by, withdrawal.note) if part)]
    _log(f"{withdrawal.withdrawn} was withdrawn: {': '.join(said)}".replace("\n", " "))


class _Parser(argparse.ArgumentParser):
    """Prints one line about an invalid argument."""

    def error(self, message: str) -> Any:
        _log(f"{message}; see --help")
        sys.exit(2)


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?", text) or not 0 < float(text) <= DURATION_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, more than 0 and at most {DURATION_SECONDS_MAX}, not {text!r}")
    return float(text)


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
        return text

    return read


#: Commands with one channel, which the service checks.
_PLAIN_CHANNEL = ("publish", "withdraw", "scheduled", "cancel")


def _arguments() -> argparse.Namespace:
    about = "A client of PERE: listens for events and answers them, publishes events, or follows receipts."
    parser = _Parser(prog="pere.py", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    channels = f"{_CHANNEL.pattern}(,{_CHANNEL.pattern}){{0,15}}"
    name = "1 to 128 of A-Z a-z 0-9 . _ : ~ -"

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.add_argument("url")
        made.add_argument("channel", type=str if name in _PLAIN_CHANNEL else _matching(channels, "a channel name, or up to 16 separated by commas"))
        made.add_argument("--token-file", help="a file with the newest token; default: the environment variable PERE_TOKEN")
        return made

    listener = command("listen", "Follows channels as a device and answers each event.")
    about = "the name of the device; default: the token's `sub`, or a name that is made up once and kept"
    listener.add_argument("--device", type=_matching(_NAME.pattern, name), help=about)
    about = "a command to run for each event, with its data on standard input; default: print events"
    listener.add_argument("--exec", type=_matching(r"(?s).*\S.*", "a command"), help=about)
    listener.add_argument("--state", type=_matching(r"(?s).+", "a file name"), help="a file in which outcomes and unanswered receipts survive a restart")
    about = "where a new device starts; `latest`: the newest event of each key, at each start"
    listener.add_argument("--since", choices=("now", "earliest", "latest"), help=about)
    listener.add_argument("--workers", type=_whole_number(1, 1_000), default=1, help="how many events are worked on at once (default 1)")
    listener.add_argument("--first-byte", type=_seconds, default=FIRST_BYTE_SECONDS, metavar="SECONDS", help="wait for the start of a stream (default 5)")
    listener.add_argument("--silence", type=_seconds, default=SILENCE_SECONDS, metavar="SECONDS", help="longest silence on a stream (default 40)")
    retry = "time on long-polling before a stream is tried again (default 60)"
    listener.add_argument("--return", type=_seconds, default=STREAM_RETRY_SECONDS, metavar="SECONDS", dest="return_after", help=retry)

    publisher = command("publish", "Pushes one event and prints the answer.")
    publisher.add_argument("data", help="JSON text; - reads it from standard input")
    event_type = _matching(r"(?!pere\.)[A-Za-z0-9._-]{1,64}", "1 to 64 of A-Z a-z 0-9 . _ - that don't begin with pere.")
    devices = _matching(f"{_NAME.pattern}(,{_NAME.pattern})*", "device names separated by commas")
    key = _matching(r"[ -~]{1,255}", "1 to 255 printable ASCII characters")
    publisher.add_argument("--type", type=event_type, help="the type of the event")
    publisher.add_argument("--to", type=devices, help="the devices that the event is for; default: all")
    publisher.add_argument("--key", type=key, help="an idempotency key: an event with the same key is stored once")
    publisher.add_argument("--event-key", type=_matching(_NAME.pattern, name), help="what the event is about: it withdraws older events with the same key")
    publisher.add_argument("--attempts", type=_whole_number(2, 20), help="how often a device may try")
    when = publisher.add_mutually_exclusive_group()
    when.add_argument("--at", help="push it at this time, ISO 8601 with an offset, such as 2027-01-01T00:00:00Z")
    when.add_argument("--every", metavar="CRON", help="push it at each time of a cron expression with five fields")
    publisher.add_argument("--tz", metavar="ZONE", help="the IANA time zone of --every; default: UTC")
    year = 366 * 86_400
    for option, least, most, about in (
        ("ttl", 1, year, "after this time the event is delivered to nobody"),
        ("deadline", 1, year, "after this time a device without a final receipt is missing"),
        ("remind", 1, year, "how often the event is sent again to devices that gave no receipt"),
        ("wait", 0, 120, "wait so long for the receipts"),
    ):
        publisher.add_argument(f"--{option}", type=_whole_number(least, most), metavar="SECONDS", help=about)

    taker = command("withdraw", "Takes an event back, and prints its state.")
    taker.add_argument("event", type=_matching(_POSITION.pattern, "the id of an event"))
    taker.add_argument("--note", help="what to tell the people at the devices")

    command("scheduled", "Prints the pushes for later.")
    canceller = command("cancel", "Cancels a push for later.")
    canceller.add_argument("id", type=_matching(_NAME.pattern, "the id of a scheduled push"))

    follower = command("receipts", "Prints receipts as they come.")
    follower.add_argument("--after", type=_matching(_POSITION.pattern, "the id of a receipt"), help="the id of the last receipt that you have")
    return parser.parse_args()


def _machine_name() -> str:
    """This machine's device name: its host name and random characters, made once and kept in the user's state folder (XDG), where the other clients
    look as well. Raises ValueError if it can't be kept: it would be another device each time."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    path = os.path.join(home, "pere", "device")
    try:
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            host = re.sub(r"[^A-Za-z0-9._:~-]", "-", socket.gethostname())[:100] or "host"
            fresh = f"{path}.{os.getpid()}"
            with open(fresh, "w", encoding="ascii") as file:
                file.write(f"{host}-{uuid.uuid4().hex[:8]}\n")
            try:
                os.link(fresh, path)  # The file appears complete; if two processes do this at once, the first one wins.
            except FileExistsError:
                pass
            finally:
                os.unlink(fresh)
        with open(path, encoding="ascii") as file:
            name = file.read(1_000).strip()
        if not _NAME.fullmatch(name):
            raise ValueError("it does not contain a device name")
        return name
    except (OSError, ValueError) as error:
        raise ValueError(f"--device is needed: a name for this machine can't be kept in {path} ({error})") from error


def _device_name(named: Optional[str], token: Token) -> str:
    """The device name: as given, or the subject of the token, or one for this machine. Raises ValueError."""
    if named is not None:
        return named
    if token is None:
        return _machine_name()
    try:
        name = _token_claims(_checked_token(token() if callable(token) else token)).get("sub")
    except Exception:
        name = None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("--device is needed: the token has no device name as its `sub`")
    return name


def _token_source(path: Optional[str]) -> Token:
    if path is None:
        return os.environ.get("PERE_TOKEN") or None

    def read() -> str:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(65_536)

    return read


def _run_until_signal(work: Callable[[threading.Event, Callable[[], bool]], None]) -> None:
    """Runs `work` until it ends or a signal asks for that; a second signal ends the program at once. `work` is called with an event that is set then, and
    with a function that tells whether a signal has come. If a signal to the process group ended a command, that function already knows the signal."""
    stop = threading.Event()
    signals: List[int] = []
    failures: List[Optional[BaseException]] = []
    # Calls for the main thread. A signal handler runs between any two of its steps and must not wait for a lock; a deque needs none. The sockets wake the
    # thread even if a signal comes just before it waits.
    calls: "collections.deque[Callable[[], None]]" = collections.deque()
    wake_reader, wake_writer = socket.socketpair()
    wake_writer.setblocking(False)

    def call(what: Callable[[], None]) -> None:
        calls.append(what)
        try:
            wake_writer.send(b".")
        except BlockingIOError:
            pass  # The socket is full, so the main thread wakes up anyway.

    def end(number: int, _frame: Any) -> None:
        if signals:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signals.append(number)
        call(stop.set)

    def is_ending() -> bool:
        # The main thread handles signals that have come before it makes this call.
        is_up_to_date = threading.Event()
        call(is_up_to_date.set)
        is_up_to_date.wait()
        return bool(signals)

    def run() -> None:
        try:
            work(stop, is_ending)
            failures.append(None)
        except BaseException as error:
            failures.append(error)
        call(lambda: None)

    ending = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handled = [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]
    signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
    for number in handled:
        signal.signal(number, end)
    # Only the main thread receives signals; the others block them.
    thread = threading.Thread(target=run, name="pere-main", daemon=True)
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:  # Windows delivers signals to the main thread.
        thread.start()
    while not failures:
        wake_reader.recv(1)
        while calls:
            calls.popleft()()
    if failures[0] is not None:
        raise failures[0]


def _main() -> int:
    # If SIGCHLD was inherited as ignored, the exit status of commands would be lost.
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    arguments = _arguments()
    token = _token_source(arguments.token_file)
    if arguments.command == "publish":
        data = sys.stdin.buffer.read() if arguments.data == "-" else os.fsencode(arguments.data)
        options = ["type", "to", "ttl", "deadline", "remind", "event_key", "attempts", "key"]
        push: Callable[..., Dict[str, Any]] = publish
        if arguments.at is None and arguments.every is None:
            if arguments.tz is not None:
                raise ValueError("--tz needs --every")
            options.append("wait")
        elif arguments.wait is not None:
            raise ValueError("--wait is for what is pushed now; leave it out, or --at and --every")
        else:
            push, options = schedule, [*options, "at", "every", "tz"]
        given = {name: getattr(arguments, name) for name in options}
        answer = push(arguments.url, arguments.channel, data, token=token, **given)
        _print(json.dumps(answer))
        for warning in _warnings(answer):
            _log(warning)
        return 0
    if arguments.command == "withdraw":
        _print(_to_json(withdraw(arguments.url, arguments.channel, arguments.event, note=arguments.note, token=token)))
        return 0
    if arguments.command == "scheduled":
        for one in scheduled(arguments.url, arguments.channel, token=token):
            _print(json.dumps(one))
        return 0
    if arguments.command == "cancel":
        cancel_scheduled(arguments.url, arguments.channel, arguments.id, token=token)
        return 0

    def follow(stop: threading.Event, _is_ending: Callable[[], bool]) -> None:
        for text in _receipt_texts(arguments.url, arguments.channel, arguments.after or "", token, stop, _log):
            _print(_on_one_line(text))

    def serve(stop: threading.Event, is_ending: Callable[[], bool]) -> None:
        times = {"first_byte_seconds": arguments.first_byte, "silence_seconds": arguments.silence, "return_seconds": arguments.return_after}
        device = _device_name(arguments.device, token)
        handler = _command_handler(arguments.exec, is_ending) if arguments.exec else _print_event
        options: Dict[str, Any] = {"token": token, "state": arguments.state, "workers": arguments.workers, "stop": stop, **times}
        options.update(since=arguments.since, on_withdrawn=_print_withdrawal)
        listen(arguments.url, arguments.channel, device, handler, **options)

    _run_until_signal(follow if arguments.command == "receipts" else serve)
    return 0


def _report_failure(error: BaseException) -> int:
    """Prints one line about the error that ends the program, and returns the exit status."""
    _log(_error_text(error) if isinstance(error, (Refused, Unavailable, _FatalError, ValueError, OSError)) else f"{type(error).__name__}: {_error_text(error)}")
    return 2 if isinstance(error, ValueError) else 1


def main() -> int:
    """The program. Returns its exit status: 2 for invalid arguments, 1 for other errors, each with one line on the error output."""
    try:
        status = _main()
    except KeyboardInterrupt:
        status = 130
        _log("interrupted; the event may be stored or not")
    except (Exception, _FatalError) as error:
        status = _report_failure(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Otherwise Python reports at exit that it can't write the rest.
    return status


if __name__ == "__main__":
    sys.exit(main())
