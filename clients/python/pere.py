#!/usr/bin/env python3
"""
PERE for Python: a device that listens and answers, a publisher that pushes and sees what became of it. One file, Python 3.9 or newer,
nothing but the standard library; a module and a program.

    import pere

    def handle(event):                                  # returns: done, with what it returned; raises: failed, with the message
        return print_order(event.data)

    pere.listen("http://127.0.0.1:4567", "orders", "till-7", handle, state="till-7.state")

    pere.publish("http://127.0.0.1:4567", "orders", {"table": 7}, wait=30)["complete"]

    for receipt in pere.receipts("http://127.0.0.1:4567", "orders"): ...

    python3 pere.py listen  http://127.0.0.1:4567 orders --device till-7 --state till-7.state --exec './print-order'
    python3 pere.py publish http://127.0.0.1:4567 orders '{"table": 7}' --deadline 600 --wait 30
    python3 pere.py receipts http://127.0.0.1:4567 orders

What it does on a bad network:

- It follows the event stream and comes back where it broke off, after what the service asked for (`retry:`, `Retry-After`) and a random time that
  doubles with each failure. Where no first byte comes in 5 s, or no sign of life in 40 s (the service gives one each 15 s), something on the way
  holds streams back: then it asks by long-poll, and tries the stream again a minute later, then two, at most 16. (There is no WebSocket in the
  standard library.)
- An event is worked on once, however often it comes. What became of it is kept before the final receipt leaves; with `state` in a file, and
  synced, so that this holds through a crash. A crash while the handler works is the exception: then nobody knows how far it was, and it is called
  again.
- Receipts are given until they are answered, at most 1,000 a request, those of 50 ms together, also while a handler works. One that the service
  refuses for good (an event that it doesn't have) is reported and let go.
- An answer is believed when it is PERE's, field by field. Whatever a proxy or a portal says instead, the request is made again.
- An event is `failed` only when the work said so. Where memory, descriptors or the command itself are missing, where the output can't be written,
  where HUP, INT, QUIT, KILL, PIPE or TERM ends the command, or where the handler raises while the listener is told to stop, the event stays open: it is
  worked on again here, or comes again to whoever listens next. A command that crashes by another signal failed.

It never keeps a position on the disk: the service knows what a device has not answered, and sends that to one that comes without a position.
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
from dataclasses import dataclass
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Iterator, List, Optional, Set, Tuple, TypeVar, Union, cast

#: A token, or what gives the newest one.
Token = Union[str, Callable[[], str], None]
#: The same for asyncio; the function may be `async`.
AsyncToken = Union[str, Callable[[], str], Callable[[], Awaitable[str]], None]

#: For the head and the first byte of an event stream; longer, and something holds it back.
FIRST_BYTE_SECONDS = 5.0
#: For a sign of life on an event stream: the service gives one each 15 s, and two may be late.
SILENCE_SECONDS = 40.0
#: On long-polls before the event stream is tried again.
RETURN_SECONDS = 60.0
#: Each time that it was in vain doubles that, so often at most: a stream that is tried is a stream on which events may be late.
RETURN_DOUBLINGS_MAX = 4
#: How long one long-poll rests. Some proxies cut what is quiet for 30 s.
POLL_SECONDS = 25
#: What an answer may take beyond the time that the service was asked to wait.
ANSWER_SECONDS = 15.0
#: The longest pause between two tries; before chance takes its part.
BACKOFF_SECONDS_MAX = 30.0
#: How long receipts wait for others to go with them.
COALESCE_SECONDS = 0.05
#: Receipts in one request: the service takes no more.
RECEIPTS_MAX = 1_000
#: The service takes no longer detail, in bytes.
DETAIL_BYTES_MAX = 4_096
#: What is left of a longer one, in characters: none takes more than six bytes in JSON.
DETAIL_CUT_CHARACTERS = 600
#: Events whose outcome is remembered: as many as a channel keeps.
HANDLED_MAX = 10_000
#: Events that wait for a handler; beyond, the stream is not read.
WAITING_MAX = 1_000
#: How long before its end a token is taken for old.
TOKEN_MARGIN_SECONDS = 10.0
#: What receipts may take that are still to be given when listening ends.
FAREWELL_SECONDS = 5.0
#: A longer pause than a day is not believed, whoever asks for it; one of more than an hour is cut.
ASKED_SECONDS_MAX = 86_400
ASKED_SECONDS_CUT = 3_600.0
#: Redirects that are followed for one request.
REDIRECTS_MAX = 5
#: No answer of the service is longer, and no line of an event stream: at most 1,000 events of 64 KiB and some.
ANSWER_BYTES_MAX = 128 * 1_024 * 1_024
#: What is read of an answer that refuses.
PROBLEM_BYTES_MAX = 1_024 * 1_024
#: A publisher who has no answer after this time is told so.
NEWS_SECONDS = 1.5
#: A deeper detail is sent as text: the service refuses a request that is more than 64 levels deep.
DETAIL_DEPTH_MAX = 32
#: What is looked at of a command's output, from its end.
OUTPUT_BYTES_MAX = 65_536
#: The shortest pause before an event that came to no end is worked on again.
AGAIN_SECONDS = 1.0
#: How often a background thread looks whether the event loop that it serves is closed.
LOOP_CHECK_SECONDS = 1.0

_NAME = re.compile(r"[A-Za-z0-9._:~-]{1,128}")
_CHANNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}")
#: Positions and ids go into headers and lines as they are.
_POSITION = re.compile(r"[!-~]{1,8192}")
#: A JWT: base64url and dots (RFC 7515).
_TOKEN = re.compile(r"[A-Za-z0-9._-]+")


class Refused(Exception):
    """The service said no, and will say it again. `status` is HTTP's, `problem` what stands in its problem document."""

    def __init__(self, status: int, problem: Dict[str, Any]) -> None:
        detail = problem.get("detail")
        super().__init__(detail if isinstance(detail, str) else f"status {status}")
        self.status = status
        self.problem = problem


class Unavailable(Exception):
    """The service could not be reached, or had trouble that passes, for as long as the caller was willing to try."""


class NoOutcome(Exception):
    """Raised by a handler: for a reason that is not the work's, nobody knows what became of the event. It stays open, and is worked on again."""


class _Trouble(Exception):
    """Something that passes. `after`: seconds that the service asked for."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _CannotGoOn(BaseException):
    """Something that this module itself needs is missing, which says nothing about an event. Not an Exception, so that it is not taken for a handler's failure."""


@dataclass(frozen=True)
class Event:
    """One event. `text` is its data as the publisher wrote it, `data` the same as Python reads it."""

    id: str
    channel: str
    seq: int
    at: str
    type: Optional[str]
    deadline: Optional[str]
    data: Any
    text: str


# ------------------------------------------------------------------------------------------------------------------ requests


def _say(line: str) -> None:
    if sys.stderr is None:
        return  # It was closed before the start; print() would take the output instead.
    try:
        print(f"pere: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # Nobody reads it; that is no reason to stop.


def _safely(report: Callable[[str], None]) -> Callable[[str], None]:
    """A caller's `report` that may fail without ending a thread that has receipts to give."""

    def safe(line: str) -> None:
        try:
            report(line)
        except Exception:
            _say(line)

    return safe


def _words_of(error: BaseException) -> str:
    """What an exception says, or what it is."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


def _checked_token(token: str) -> str:
    """Without the blanks around it. Raises ValueError, which doesn't show it."""
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise ValueError("the token is empty" if token == "" else "the token is not a JWT: it holds other characters than A-Z a-z 0-9 . _ -")
    return token


class _Proxy:
    """The proxy that the environment names for an address (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, in capitals or not)."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("the proxy that the environment names has no address of the form http://host:port")
        self.host, self.port = parts.hostname, parts.port or 80
        self.headers: Dict[str, str] = {}
        if parts.username is not None:
            user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self.headers["Proxy-Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()

    @staticmethod
    def of(scheme: str, host: str, port: int) -> Optional["_Proxy"]:
        named = urllib.request.getproxies_environment()
        url = named.get(scheme)
        if not url:
            url = named.get("all", "")
            if "://" in url and not url.startswith("http://"):
                return None  # Meant for other programs: such a proxy can't be spoken to from here.
        bypass: Callable[[str, Dict[str, str]], Any] = getattr(urllib.request, "proxy_bypass_environment")
        if not url or bypass(host if ":" in host else f"{host}:{port}", named):
            return None
        return _Proxy(url)


class _Service:
    """The service at a URL, and the token that it is asked with. Connections are not shared: a request is one."""

    def __init__(self, url: str, token: Token) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        is_address = re.fullmatch(r"[!-~]+", url) and parts.scheme in ("http", "https") and parts.hostname
        if not is_address or "@" in parts.netloc:
            raise ValueError(f"not an address of a service: {url}")
        if "?" in url or "#" in url:
            raise ValueError(f"the address of a service has no query and no fragment: {url}")
        try:
            self._port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise ValueError(f"not an address of a service, its port is none: {url}") from None
        self._secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._netloc = parts.hostname or "", parts.netloc
        self._base = parts.path.rstrip("/")
        self._proxy = _Proxy.of(parts.scheme, self._host, self._port)
        self._source = token if callable(token) or not token or not token.strip() else _checked_token(token)
        self._token: Optional[str] = None
        self._lock = threading.Lock()

    def renew(self) -> None:
        """The token that there is will not do any more."""
        with self._lock:
            self._token = None

    def _newest(self) -> Optional[str]:
        if not callable(self._source):
            return self._source or None
        with self._lock:
            if self._token is None or _ends_at(self._token) - TOKEN_MARGIN_SECONDS < time.time():
                self._token = _checked_token(self._source())
            return self._token

    def _dial(self, seconds: float) -> http.client.HTTPConnection:
        host, port = (self._host, self._port) if self._proxy is None else (self._proxy.host, self._proxy.port)
        if self._secure is None:
            return http.client.HTTPConnection(host, port, timeout=seconds)
        line = http.client.HTTPSConnection(host, port, timeout=seconds, context=self._secure)
        if self._proxy is not None:
            line.set_tunnel(self._host, self._port, self._proxy.headers)
        return line

    def open(
        self,
        method: str,
        path: str,
        headers: Dict[str, str],
        body: Optional[bytes],
        seconds: float,
        connected: Callable[[socket.socket], None] = lambda _sock: None,
    ) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Asks, and gives connection and answer when the head of a good one is there. `connected` is given each socket before the request is sent: the
        connection itself forgets it when the answer says `Connection: close`. Raises OSError, HTTPException, _Trouble, Refused."""
        try:
            token = self._newest()
        except Exception as error:
            raise _Trouble(f"there is no token: {_words_of(error)}") from error
        if token is not None:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        prefix = ""
        if self._proxy is not None and self._secure is None:  # Such a proxy is told the whole address.
            headers, prefix = {**headers, **self._proxy.headers}, f"http://{self._netloc}"
        target = self._base + path
        for _ in range(REDIRECTS_MAX + 1):
            line = self._dial(seconds)
            try:
                line.connect()
                connected(line.sock)
                # The line's own patience begins anew with every byte; where none comes, it ends first.
                late = threading.Timer(2 * seconds + 2, _shut, [line.sock])
                late.daemon = True
                late.start()
                try:
                    line.request(method, prefix + target, body, headers)
                    answer = line.getresponse()
                finally:
                    late.cancel()
                if answer.status in (200, 201):
                    return line, answer
                moved = self._moved(answer, target)
                if moved is None:
                    self._refuse(answer, path)
                target = moved or target
                line.close()
            except BaseException:
                line.close()
                raise
        raise _Trouble("the service redirects in a circle")

    def _moved(self, answer: http.client.HTTPResponse, target: str) -> Optional[str]:
        """Where to ask the same again, by 307 and 308 to the same origin."""
        location = answer.getheader("Location") or ""
        if answer.status not in (307, 308) or not _POSITION.fullmatch(location):
            return None
        scheme = "http" if self._secure is None else "https"
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(f"{scheme}://{self._netloc}{target}", location))
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if (parts.scheme, parts.hostname, port) != (scheme, self._host, self._port) or "@" in parts.netloc:
            return None
        return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"

    def _refuse(self, answer: http.client.HTTPResponse, path: str) -> None:
        """What an answer means that is not a good one. Only problems of PERE's own are its word; what else there is may be gone tomorrow."""
        status, after = answer.status, _seconds_asked(answer)
        if 300 <= status < 400:
            location = re.sub(r"[^!-~]", "", answer.getheader("Location") or "")[:300]
            there = location.split("?")[0]
            asked = path.split("?")[0]
            there = there[: -len(asked)] if there.endswith(asked) else there
            raise _Trouble(f"redirected with status {status}" + (f": use the address {there}" if there else " to nowhere"), after)
        problem = _problem_in(answer)
        said = f"status {status}" if problem is None else str(Refused(status, problem))
        if status in (401, 403) and callable(self._source):
            self.renew()
            raise _Trouble(said, after)
        if problem is None or not 400 <= status < 500 or status in (408, 425, 429):
            raise _Trouble(said, after)
        raise Refused(status, problem)

    def ask(
        self,
        method: str,
        path: str,
        headers: Dict[str, str],
        body: Optional[bytes],
        seconds: float = ANSWER_SECONDS,
        connected: Callable[[socket.socket], None] = lambda _sock: None,
    ) -> bytes:
        """The whole answer to one request. Raises _Trouble for all that passes, and Refused."""
        try:
            line, answer = self.open(method, path, headers, body, seconds, connected)
            try:
                return _whole(answer, seconds)
            finally:
                line.close()
        except (_Trouble, Refused):
            raise
        except Exception as error:
            raise _Trouble(f"{type(error).__name__}: {_words_of(error)}") from error


def _shut(sock: socket.socket) -> None:
    """Ends a connection under whoever waits for its bytes."""
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
            _shut(sock)

    def end(self) -> None:
        """Ends the request, and each one that comes after it."""
        self.stop.set()
        sock = self.socket
        if sock is not None:
            _shut(sock)


def _whole(answer: http.client.HTTPResponse, seconds: float) -> bytes:
    """An answer's body, to its end. Raises _Trouble where it has none in sight."""
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
            raise _Trouble("the answer has no end")
    if whole is not None and size < whole:
        raise _Trouble("the answer was cut off")
    return b"".join(parts)


def _problem_in(answer: http.client.HTTPResponse) -> Optional[Dict[str, Any]]:
    """PERE's own problem document; None: it is something else's."""
    try:
        problem = _json.decode(answer.read(PROBLEM_BYTES_MAX).decode())
    except Exception:
        return None
    kind = problem.get("type") if isinstance(problem, dict) else None
    return problem if isinstance(kind, str) and kind.startswith("urn:pere:") else None


def _seconds_asked(answer: http.client.HTTPResponse) -> float:
    """`Retry-After` (RFC 9110, 10.2.3): seconds, or a date by the clock of whoever answered. What makes no sense is 0."""
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
    return min(seconds, ASKED_SECONDS_CUT) if 0 <= seconds <= ASKED_SECONDS_MAX else 0.0


def _claims_of(token: str) -> Dict[str, Any]:
    """What a token says of itself; nothing, where it can't be read."""
    try:
        claims = token.split(".")[1]
        return _object(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)).decode())
    except Exception:
        return {}


def _ends_at(token: str) -> float:
    """When a token ends, in seconds since 1970, as it says itself; never, where it doesn't."""
    exp = _claims_of(token).get("exp")
    return float(exp) if isinstance(exp, (int, float)) else float("inf")


def _pause(failures: int, at_least: float = 0.0) -> float:
    """Seconds until the next try: full jitter on a doubling time, and what was asked for at least."""
    return max(at_least, random.uniform(0, min(BACKOFF_SECONDS_MAX, 0.25 * 2 ** min(failures, 10))))


def _quote(name: str) -> str:
    return urllib.parse.quote(name, safe=",")


# --------------------------------------------------------------------------------------------------------------------- feeds


@dataclass(frozen=True)
class _Message:
    """One message of a feed: the server's own by its name, an entry of the log by `None`."""

    own: Optional[str]
    text: str


class _Lines:
    """Lines of an event stream (WHATWG HTML, 9.2) from bytes as they come: LF, CR LF or CR. An unfinished one is never given."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> List[str]:
        text = self._rest + chunk
        # A CR at the end may have its LF still to come.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        if len(self._rest) > ANSWER_BYTES_MAX:
            raise _Trouble("a line of the event stream has no end")
        return [line.decode("utf-8", "replace") for line in lines]


class _Feed:
    """Follows one log of one or more channels, for ever: `messages` comes back where it broke off, by whichever way is open."""

    def __init__(
        self,
        service: _Service,
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
        #: Where it is; "" is the beginning, as the service sees it.
        self.position = ""
        self._retry_seconds = 0.0
        self._failures = 0
        self._stream_again_at = 0.0
        #: How often in a row the event stream was held back.
        self._held_back = 0
        self._line: Optional[http.client.HTTPConnection] = None
        self._request = _Request(stop)

    def messages(self) -> Iterator[_Message]:
        """Raises Refused."""
        while not self._stop.is_set():
            after = 0.0
            polls = time.monotonic() < self._stream_again_at
            try:
                yield from self._poll() if polls else self._stream()
                if polls or time.monotonic() < self._stream_again_at:
                    continue  # The time on long-polls is over, or begins.
                why, self._held_back = "the stream ended", 0
            except Refused:
                raise
            except _Trouble as error:
                why, after = str(error), error.after
            except Exception as error:
                why = f"{type(error).__name__}: {_words_of(error)}"
            if self._stop.is_set():
                return
            self._failures += 1
            seconds = _pause(self._failures, max(after, 0.0 if polls else self._retry_seconds))
            self._report(f"{why}; coming back in {seconds:.1f} s")
            self._stop.wait(seconds)

    def end(self) -> None:
        """Sets `stop`, and wakes a reader that waits for bytes."""
        self._request.end()

    def _open(self, headers: Dict[str, str], query: Dict[str, str], seconds: float) -> http.client.HTTPResponse:
        if self.position != "":
            headers["Last-Event-ID"] = self.position
        query = {**self._query, **query}
        path = f"{self._path}?{urllib.parse.urlencode(query)}" if query else self._path
        self._line, answer = self._service.open("GET", path, headers, None, seconds, self._request.connected)
        return answer

    def _close(self) -> None:
        line, self._line, self._request.socket = self._line, None, None
        if line is not None:
            line.close()

    def _stream(self) -> Iterator[_Message]:
        lines = _Lines()
        event, data, position = "", [], self.position  # type: Tuple[str, List[str], str]
        retry: Optional[float] = None
        # PERE says `ready` or `bye` before anything else. What doesn't is not PERE, and none of it is believed.
        is_ready = False
        try:
            answer = self._open({"Accept": "text/event-stream"}, {}, self._first_byte_seconds)
            if answer.getheader("Content-Type", "").split(";")[0].strip().lower() != "text/event-stream":
                raise _Trouble("the answer is not an event stream")
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
                        told = _Message(event[5:] if event.startswith("pere.") else None, "\n".join(data))
                        is_ready = is_ready or _is_greeting(told)
                        if is_ready:
                            self._heed(told)
                            yield told
                        elif told.own is None:
                            raise _Trouble("the event stream is not one of PERE's")
                    if is_ready:
                        self.position = position
                        if retry is not None and retry <= ASKED_SECONDS_CUT:
                            self._retry_seconds = retry
                    event, data = "", []
                chunk = answer.read1(65_536)
            if not is_ready:
                raise _Trouble("the event stream ended before it said that it is PERE's")
        except socket.timeout:
            self._stream_again_at = time.monotonic() + self._return_seconds * 2 ** min(self._held_back, RETURN_DOUBLINGS_MAX)
            self._held_back += 1
            self._report("nothing comes on the event stream, on with long-polls")
        finally:
            self._close()

    def _heed(self, told: _Message) -> None:
        """What the service says of the feed itself."""
        if told.own == "ready":
            self._failures = 0
        elif told.own == "bye" and _object(told.text).get("reason") == "expired":
            self._service.renew()
        elif told.own == "gap":
            self._report(f"events are no longer kept: {told.text[:300]}")
        elif told.own == "shared":
            self._report(f"this device is open at several addresses; is its name another machine's as well? {told.text[:300]}")

    def _poll(self) -> Iterator[_Message]:
        while not self._stop.is_set():
            rest = self._stream_again_at - time.monotonic()
            if rest <= 0:
                return
            # Whole seconds, and not past the time at which the stream is tried again.
            wait = max(1, min(POLL_SECONDS, int(rest)))
            try:
                answer = self._open({"Accept": "application/json"}, {"wait": str(wait)}, wait + ANSWER_SECONDS)
                text = _whole(answer, ANSWER_SECONDS).decode("utf-8")
            finally:
                self._close()
            messages, last = _polled(text)
            for message in messages:
                self._heed(message)
                yield message
            self.position = last
            self._failures = 0


def _is_greeting(told: _Message) -> bool:
    """Whether this is how PERE begins."""
    found = _object(told.text)
    return (told.own == "ready" and isinstance(found.get("channels"), dict)) or (told.own == "bye" and isinstance(found.get("reason"), str))


def _object(text: str) -> Dict[str, Any]:
    """The object that a text is; without members, where it is none."""
    try:
        found = _json.decode(text)
    except Exception:
        return {}
    return found if isinstance(found, dict) else {}


def _polled(text: str) -> Tuple[List[_Message], str]:
    """A long-poll's answer, `{"events":[…],"last":…}`: what it brings, each event as the text that it is, and where the next one goes on."""
    if not text.startswith('{"events":['):
        raise _Trouble("the answer is not one to a long-poll")
    at, events = len('{"events":['), []  # type: Tuple[int, List[_Message]]
    try:
        while text[at] == "{":
            end = _end_of(text, at)
            events.append(_Message(None, text[at:end]))
            at = end + (text[end] == ",")
        found = _json.decode('{"events":[' + text[at:])
        last, gaps, completes, shared = found["last"], found.get("gaps", []), found.get("complete", []), found.get("shared")
        if found["events"] != [] or not _POSITION.fullmatch(last):
            raise ValueError
        for lists in (gaps, completes):
            if not isinstance(lists, list) or not all(isinstance(one, dict) for one in lists):
                raise ValueError
    except Exception:
        raise _Trouble("the answer is not one to a long-poll") from None
    before = [_Message("gap", json.dumps(gap)) for gap in gaps]
    if isinstance(shared, dict):
        before.append(_Message("shared", json.dumps(shared)))
    return before + events + [_Message("complete", json.dumps(complete)) for complete in completes], last


@dataclass(frozen=True)
class Digits:
    """A number whose exponent even a Decimal can't hold, as the JSON text that it is. It can be given back as a detail or pushed."""

    text: str

    def __str__(self) -> str:
        return self.text


def _number(digits: str) -> Any:
    """A number as Python has it; where that can't hold it (`1e400`, or more digits than it reads: CVE-2020-10735), as a Decimal or as its Digits."""
    if digits.lstrip("-").isdigit() and len(digits) < 4_300:
        return int(digits)
    number = float(digits)
    if math.isfinite(number) and not digits.lstrip("-").isdigit():
        return number
    try:
        return decimal.Decimal(digits)
    except decimal.DecimalException:
        return Digits(digits)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_json = json.JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_no_number)
_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def _end_of(text: str, at: int) -> int:
    """Where the object or list ends that begins there."""
    depth = 0
    for mark in _MARKS.finditer(text, at):
        if mark.group() in "[{":
            depth += 1
        elif mark.group() in "]}":
            depth -= 1
            if depth == 0:
                return mark.end()
    raise ValueError("it has no end")


def _depth_of(text: str) -> int:
    """How deep a JSON text is."""
    depth = deepest = 0
    for mark in _MARKS.finditer(text):
        depth += (mark.group() in "[{") - (mark.group() in "]}")
        deepest = max(depth, deepest)
    return deepest


#: Stands before a number's digits while they pass through Python's writer of JSON, which has no way to give them as they are.
_DIGITS = uuid.uuid4().hex
_exactly = json.JSONDecoder(parse_int=lambda digits: _DIGITS + digits, parse_float=lambda digits: _DIGITS + digits)


def _encode(value: Any) -> str:
    """A value as JSON. Raises TypeError or ValueError for what JSON can't say."""

    def number(value: Any) -> str:
        if isinstance(value, Digits) or (isinstance(value, decimal.Decimal) and value.is_finite()):
            return f"{_DIGITS}{value}"
        raise TypeError(f"{type(value).__name__} is nothing that JSON can say")

    return re.sub(f'"{_DIGITS}([^"]*)"', r"\1", json.dumps(value, allow_nan=False, default=number))


def _line_for(text: str) -> str:
    """A JSON text on one line, in ASCII, with its numbers as they are."""
    return _encode(_exactly.decode(text))


def _event_of(text: str) -> Event:
    """Raises ValueError, KeyError or TypeError where the text is no event."""
    # Nothing before the data can hold a quote: names, numbers and times.
    head, _, raw = text.partition(',"data":')
    e = _json.decode(head + "}")
    texts, channel, seq = [e["id"], e["at"], e.get("type") or "", e.get("deadline") or ""], e["channel"], e["seq"]
    if not all(isinstance(text, str) for text in texts) or not _POSITION.fullmatch(e["id"]):
        raise ValueError("its members are not those of an event")
    if not _CHANNEL.fullmatch(channel) or not isinstance(seq, int) or not raw.endswith("}"):
        raise ValueError("its members are not those of an event")
    return Event(e["id"], channel, seq, e["at"], e.get("type"), e.get("deadline"), _json.decode(raw[:-1]), raw[:-1])


# -------------------------------------------------------------------------------------------------------------------- memory


class _Memory:
    """What became of the newest events, and which final receipts the service has. In a file, where there is one: a line for each
    change, synced, so that a crash takes at most a line that was never acted upon."""

    def __init__(self, path: Optional[str]) -> None:
        self._lock = threading.Lock()
        #: By event, oldest first: channel, status, detail, and whether the receipt was answered.
        self._outcomes: "collections.OrderedDict[str, List[Any]]" = collections.OrderedDict()
        #: A link is followed, so that it is still one when the file is written anew.
        self._path = None if path is None else os.path.realpath(path)
        self._file = None  # type: Any
        #: The last line was not written to its end.
        self._is_torn = False
        #: Lines in the file, and when it is written anew without what is no longer needed.
        self._lines = self._rewrite_at = 0
        if self._path is not None:
            if os.path.exists(self._path) and not os.path.isfile(self._path):
                raise ValueError(f"the state must be a regular file, and {path} is none")
            self._read(self._path)
            self._rewrite()

    def _read(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                lines = file.read().decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return
        if not all(map(_is_line_of_ours, lines)):
            raise ValueError(f"the state must be a file that pere.py wrote, or a new one; {path} holds something else, and is left as it is")
        for line in lines[:-1]:  # The last one is empty, or was not written to its end.
            change = _object(line)
            if isinstance(change.get("given"), str):
                outcome = self._outcomes.get(change["given"])
                if outcome is not None:
                    outcome[3] = True
            elif all(isinstance(change.get(name), str) for name in ("event", "channel", "status")):
                self._note(change["event"], change["channel"], change["status"], change.get("detail"))

    def _note(self, event: str, channel: str, status: str, detail: Any) -> None:
        self._outcomes[event] = [channel, status, detail, False]
        if len(self._outcomes) <= HANDLED_MAX:
            return
        # The oldest goes whose receipt is given; one that is still to be given stays.
        for old, outcome in self._outcomes.items():
            if outcome[3]:
                del self._outcomes[old]
                return

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
            for event, (channel, status, detail, given) in self._outcomes.items():
                file.write(_line_of(event, channel, status, detail))
                if given:
                    file.write(json.dumps({"given": event}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        old, self._file = self._file, open(self._path, "ab", buffering=0)
        if old is not None:
            old.close()
        self._is_torn = False
        self._lines = 2 * len(self._outcomes)
        self._rewrite_at = max(4 * HANDLED_MAX, 2 * self._lines)

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

    def outcome(self, event: str) -> Optional[Tuple[str, str, Any]]:
        """Channel, status and detail of an event that came to its end; None: nothing is known of it."""
        with self._lock:
            found = self._outcomes.get(event)
            return None if found is None else (found[0], found[1], found[2])

    def note(self, event: str, channel: str, status: str, detail: Any) -> None:
        """An event came to its end. On the disk when this returns."""
        with self._lock:
            self._note(event, channel, status, detail)
            self._write([_line_of(event, channel, status, detail)], True)

    def given(self, events: List[str]) -> None:
        """The service answered for these final receipts. If a crash takes that, they are given once more, which is harmless."""
        with self._lock:
            known = [event for event in events if event in self._outcomes]
            for event in known:
                self._outcomes[event][3] = True
            self._write([json.dumps({"given": event}) + "\n" for event in known], False)

    def unsent(self) -> List[Tuple[str, str, str, Any]]:
        """Final receipts that were not answered: event, channel, status, detail."""
        with self._lock:
            return [(event, o[0], o[1], o[2]) for event, o in self._outcomes.items() if not o[3]]

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


def _is_line_of_ours(line: str) -> bool:
    """Whether this is how a line of the state begins; it may be cut off, and a power cut may leave zeros."""
    start = line.strip("\0\r")[:100].replace(" ", "")
    return any(start.startswith(ours) or ours.startswith(start) for ours in ('{"event":"', '{"given":"'))


def _line_of(event: str, channel: str, status: str, detail: Any) -> str:
    return _with_detail({"event": event, "channel": channel, "status": status}, detail) + "\n"


class _Json(str):
    """A detail that is JSON text already, on one line, and goes as it is."""


def _with_detail(members: Dict[str, Any], detail: Any) -> str:
    """These members and the detail, as JSON."""
    return f'{json.dumps(members)[:-1]}, "detail": {detail if isinstance(detail, _Json) else _encode(detail)}}}'


# -------------------------------------------------------------------------------------------------------------------- outbox


class _Outbox(threading.Thread):
    """Receipts that the service has not answered yet, oldest first by channel, and the thread that gives them."""

    def __init__(self, service: _Service, device: str, memory: _Memory, report: Callable[[str], None]) -> None:
        super().__init__(name="pere-outbox", daemon=True)
        self._service, self._device, self._memory, self._report = service, device, memory, report
        self._changed = threading.Condition()
        self._waiting: Dict[str, List[Dict[str, Any]]] = {}
        self._ends_at: Optional[float] = None
        for event, channel, status, detail in memory.unsent():
            self.give(event, channel, status, detail)

    def give(self, event: str, channel: str, status: str, detail: Any = None) -> None:
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1_000) % 1_000:03d}Z"
        receipt = {"event": event, "status": status, "at": at}
        if detail is not None:
            receipt["detail"] = detail
        with self._changed:
            self._waiting.setdefault(channel, []).append(receipt)
            self._changed.notify()

    def holds(self, event: str) -> bool:
        """Whether a final receipt of this event is still to be given."""
        with self._changed:
            return any(r["event"] == event and _is_final(r) for batch in self._waiting.values() for r in batch)

    def end(self, seconds: float) -> int:
        """Gives what there is, for so long at most, and says how many receipts are left."""
        with self._changed:
            self._ends_at = time.monotonic() + seconds
            self._changed.notify()
        self.join(seconds + ANSWER_SECONDS)
        return sum(len(batch) for batch in self._waiting.values())

    def run(self) -> None:
        failures = 0
        while self._wait_for_some():
            try:
                with self._changed:
                    batches = [(channel, waiting[:RECEIPTS_MAX]) for channel, waiting in self._waiting.items()]
                for channel, batch in batches:
                    self._send(channel, batch)
                failures = 0
            except Exception as error:  # Nothing ends this thread: who has receipts goes on giving them.
                failures += 1
                seconds = _pause(failures, getattr(error, "after", 0.0))
                self._report(f"receipts wait: {_words_of(error)}; again in {seconds:.1f} s")
                if not self._rest(seconds):
                    return

    def _wait_for_some(self) -> bool:
        """Until there is something to give, and what belongs with it; false: there is nothing, and nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ends_at is not None)
            if self._ends_at is None:
                self._changed.wait_for(lambda: self._ends_at is not None, COALESCE_SECONDS)
            return bool(self._waiting)

    def _rest(self, seconds: float) -> bool:
        """Waits; false: then it will be too late."""
        until = time.monotonic() + seconds
        with self._changed:
            while time.monotonic() < until:
                if self._ends_at is not None and until >= self._ends_at:
                    return False
                self._changed.wait(until - time.monotonic())
        return True

    def _send(self, channel: str, batch: List[Dict[str, Any]]) -> None:
        """Gives receipts, and forgets those that were answered. Raises _Trouble."""
        path = f"/feedback/{_quote(channel)}?{urllib.parse.urlencode({'device': self._device})}"
        headers = {"Content-Type": "application/json"}
        body = "[" + ",".join(_with_detail({k: v for k, v in r.items() if k != "detail"}, r.get("detail")) for r in batch) + "]"
        try:
            rejected = _rejections(_object(self._service.ask("POST", path, headers, body.encode()).decode("utf-8", "replace")), batch)
        except Refused as error:
            # Of whatever else is wrong with the address or the token the feed is refused as well, and says so; the receipts are kept.
            if error.status not in (400, 413, 422):
                raise _Trouble(str(error)) from error
            if "rejected" in error.problem:
                rejected = _rejections(error.problem, batch)
            elif len(batch) > 1:  # One of them spoils it for all, and is let go alone.
                for receipt in batch:
                    self._send(channel, [receipt])
                return
            else:
                rejected = [(batch[0], str(error))]
        for receipt, reason in rejected:
            self._report(f"{receipt['status']} of {receipt['event']} was rejected: {reason}")
        with self._changed:
            self._waiting[channel] = self._waiting[channel][len(batch) :]
            if not self._waiting[channel]:
                del self._waiting[channel]
        self._memory.given([r["event"] for r in batch if _is_final(r)])


def _rejections(answer: Dict[str, Any], batch: List[Dict[str, Any]]) -> List[Tuple[Dict[str, Any], str]]:
    """The receipts that an answer rejects, and why. Raises _Trouble where it doesn't account for every one that was sent."""
    recorded, duplicate, listed = answer.get("recorded"), answer.get("duplicate"), answer.get("rejected")
    rejected: Dict[int, str] = {}
    for one in listed if isinstance(listed, list) else []:
        index, reason = (one.get("index"), one.get("reason")) if isinstance(one, dict) else (None, None)
        if isinstance(index, int) and _is_count(index) and index < len(batch) and one.get("event") == batch[index]["event"] and isinstance(reason, str):
            rejected[index] = reason
    counts: List[Any] = [recorded, duplicate, len(rejected)]
    is_right = isinstance(listed, list) and len(listed) == len(rejected) and all(_is_count(count) for count in counts)
    if not is_right or sum(counts) != len(batch):
        raise _Trouble("the answer does not account for the receipts")
    return [(batch[index], reason) for index, reason in rejected.items()]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_final(receipt: Dict[str, Any]) -> bool:
    return receipt["status"] in ("done", "failed")


# ------------------------------------------------------------------------------------------------------------------- devices


class _Listener:
    """A device: one thread reads the feed, one gives receipts, some work."""

    def __init__(
        self,
        feed: _Feed,
        outbox: _Outbox,
        memory: _Memory,
        on_event: Callable[[Event], Any],
        stop: threading.Event,
        report: Callable[[str], None],
    ) -> None:
        self._feed, self._outbox, self._memory = feed, outbox, memory
        self._on_event, self._stop, self._report = on_event, stop, report
        self._waiting: "queue.Queue[Optional[Event]]" = queue.Queue(WAITING_MAX)
        #: Events that were taken and have not come to their end.
        self._busy: Set[str] = set()
        self._failure: Optional[BaseException] = None

    def run(self, workers: int) -> None:
        reader = threading.Thread(target=self._read, name="pere-feed", daemon=True)
        hands = [threading.Thread(target=self._work, name="pere-worker", daemon=True) for _ in range(workers)]
        for thread in [reader, self._outbox, *hands]:
            thread.start()
        # A handler of signals may set `stop` at any moment, so this thread may not be within its lock then.
        ended: "queue.SimpleQueue[None]" = queue.SimpleQueue()
        threading.Thread(target=lambda: ended.put(None if self._stop.wait() else None), daemon=True).start()
        try:
            ended.get()
        finally:
            self._stop.set()
            self._feed.end()
            self._dismiss(len(hands))
            for hand in hands:
                hand.join()
            left = self._outbox.end(FAREWELL_SECONDS)
            self._memory.close()
            if left > 0:
                self._report(f"{left} receipts could not be given")
        if self._failure is not None:
            raise self._failure

    def _dismiss(self, hands: int) -> None:
        """Nobody starts on what still waits; it comes again."""
        try:
            while True:
                self._waiting.get_nowait()
        except queue.Empty:
            pass
        for _ in range(hands):
            self._waiting.put(None)

    def _read(self) -> None:
        try:
            for message in self._feed.messages():
                if message.own is not None:
                    continue
                try:
                    event = _event_of(message.text)
                except Exception as error:
                    self._report(f"something came that is no event: {_words_of(error)}")
                    continue
                self._take(event)
            self._stop.set()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Ends it all with this error; the first one counts."""
        self._failure = self._failure or error
        self._stop.set()

    def _take(self, event: Event) -> None:
        if event.id in self._busy:
            return
        outcome = self._memory.outcome(event.id)
        if outcome is not None:
            # It comes again because the service does not have its final receipt.
            if not self._outbox.holds(event.id):
                self._outbox.give(event.id, *outcome)
            return
        self._busy.add(event.id)
        self._outbox.give(event.id, event.channel, "received")
        while not self._stop.is_set():
            try:
                return self._waiting.put(event, timeout=1)
            except queue.Full:
                pass

    def _work(self) -> None:
        try:
            while True:
                event = self._waiting.get()
                outcome = None if event is None else self._outcome_of(event)
                if event is None or outcome is None:
                    return
                try:
                    self._memory.note(event.id, event.channel, *outcome)
                except (OSError, ValueError) as error:
                    self._report(f"what became of {event.id} could not be kept: {error}")
                self._outbox.give(event.id, event.channel, *outcome)
                self._busy.discard(event.id)
        except BaseException as error:  # It wants to leave, or can't go on. What it worked on stays open.
            self._fail(error)

    def _outcome_of(self, event: Event) -> Optional[Tuple[str, Any]]:
        """Status and detail, as the work said; None: it is not known, and nobody has time to try again."""
        failures = 0
        while not self._stop.is_set():
            try:
                value = self._on_event(event)
            except Exception as error:
                # What works may have got the signal that tells this process to stop.
                if not _is_of_surroundings(error) and not self._stop.is_set():
                    return "failed", _detail_of(_words_of(error))
                failures += 1
                seconds = max(AGAIN_SECONDS, _pause(failures))
                again = "it comes again" if self._stop.is_set() else f"again in {seconds:.1f} s"
                self._report(f"{event.id} stays open: {_words_of(error)}; {again}")
                self._stop.wait(seconds)
            else:
                if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
                    raise TypeError(f"the handler gave a {type(value).__name__} that nobody has run; {event.id} stays open")
                return "done", _detail_of(value)
        return None


def _check_handler(handler: Any) -> None:
    """Raises ValueError for what can't be called, and for what does nothing when it is called."""
    if not callable(handler):
        raise ValueError(f"the handler must be a function, and not {handler!r}")
    if any(map(inspect.iscoroutinefunction, _calls_of(handler))):
        raise ValueError("the handler must be a plain function: calling an async function runs none of its lines; use alisten() for that")
    if _is_generator_function(handler):
        raise ValueError("the handler must be a plain function: calling a generator runs none of its lines")


def _calls_of(handler: Any) -> Tuple[Any, Any]:
    """What may tell what kind of function a handler is."""
    return handler, getattr(handler, "__call__", None)


def _is_generator_function(handler: Any) -> bool:
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in _calls_of(handler))


def _is_of_surroundings(error: Exception) -> bool:
    """Whether a handler stopped for something that has nothing to do with its work."""
    lack = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return lack or isinstance(error, (NoOutcome, MemoryError))


def _detail_of(value: Any) -> Any:
    """A receipt's detail: what JSON can say, and not too long; else as much of the text as fits. Raises nothing."""
    try:
        text = str(value) if isinstance(value, _Json) else _encode(value)
        value = value if isinstance(value, (str, _Json)) else _Json(text)
    except Exception:
        try:
            value = repr(value)
        except Exception:
            value = f"<{type(value).__name__}>"
        text = json.dumps(value)
    if len(text.encode()) <= DETAIL_BYTES_MAX and _depth_of(text) <= DETAIL_DEPTH_MAX:
        return value
    return {"cut": (value if isinstance(value, str) else text)[:DETAIL_CUT_CHARACTERS]}


def _check(device: Optional[str], workers: int, times: List[float], positions: List[str]) -> None:
    """Raises ValueError for what can't be meant."""
    if device is not None and not (isinstance(device, str) and _NAME.fullmatch(device)):
        raise ValueError(f"a device's name is 1 to 128 of A-Z a-z 0-9 . _ : ~ -, and not {device!r}")
    if workers < 1:
        raise ValueError(f"there must be at least one worker, and not {workers}")
    for seconds in times:
        if not 0 < seconds <= ASKED_SECONDS_MAX:
            raise ValueError(f"a time must be more than 0 and at most {ASKED_SECONDS_MAX} seconds, and not {seconds}")
    for position in positions:
        if position != "" and not _POSITION.fullmatch(position):
            raise ValueError(f"an id has the form <epoch>-<seq>, and not {position!r}")


def listen(
    url: str,
    channels: Union[str, List[str]],
    device: str,
    on_event: Callable[[Event], Any],
    *,
    token: Token = None,
    state: Optional[str] = None,
    workers: int = 1,
    stop: Optional[threading.Event] = None,
    report: Callable[[str], None] = _say,
    first_byte_seconds: float = FIRST_BYTE_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
    return_seconds: float = RETURN_SECONDS,
) -> None:
    """
    Follows channels as a device, until `stop` is set: calls `on_event` for each event, once an id, and gives its receipts: `received` when it
    comes, `done` with what the handler returned, `failed` with the message of what it raised. Handlers run in threads of their own, `workers` at
    once; with one, events are handled in their order. When it ends, handlers that run are waited for, and what is left comes again.

    A handler that raises NoOutcome, MemoryError or an OSError for want of memory or descriptors said nothing of its work: the event stays open, and
    the handler is called again after a pause. So it does whatever a handler raises after `stop` was set: what it waited for may have got the same
    signal. One that raises SystemExit ends the listening, and leaves the event open. A handler is a plain function: one that is `async` or a generator
    is refused, and one that returns a coroutine or a generator ends the listening with TypeError.

    `token`: a text, or a function that gives the newest one, which is asked again before it ends and when it is refused. `state`: a file in which
    outcomes and unsent receipts survive the process, for one process at a time. `report` is told, in a line, what goes wrong and passes.

    Raises Refused when the service does not let the device in and no other token can be had; ValueError for arguments that can't be meant.
    """
    _check(device, workers, [first_byte_seconds, silence_seconds, return_seconds], [])
    _check_handler(on_event)
    stop, report = stop or threading.Event(), _safely(report)
    service, memory = _Service(url, token), _Memory(state)
    names = channels if isinstance(channels, str) else ",".join(channels)
    path, query = f"/feed/{_quote(names)}", {"device": device}
    feed = _Feed(service, path, query, stop, report, first_byte_seconds, silence_seconds, return_seconds)
    _Listener(feed, _Outbox(service, device, memory, report), memory, on_event, stop, report).run(workers)


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
    wait: Optional[int] = None,
    key: Optional[str] = None,
    token: Token = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _say,
) -> Dict[str, Any]:
    """
    Pushes one event and gives the service's answer; with `wait`, when every addressed device has answered or so many seconds have passed. `data` is
    anything that JSON can say, or bytes, which are JSON text and sent as they are. Times are in seconds.

    It is tried again for `patience_seconds`, and stored once, by its idempotency key: one of its own, or `key`, with which a caller may go on
    trying after that. `report` is told, in a line, what goes wrong and passes.

    Raises Refused, Unavailable; ValueError and TypeError for data that JSON can't say and for arguments that can't be meant.
    """
    return _push(_Request(threading.Event()), url, channel, data, type, to, ttl, deadline, remind, wait, key, token, patience_seconds, report)


def _push(
    request: _Request,
    url: str,
    channel: str,
    data: Any,
    type: Optional[str],
    to: Union[str, List[str], None],
    ttl: Optional[int],
    deadline: Optional[int],
    remind: Optional[int],
    wait: Optional[int],
    key: Optional[str],
    token: Token,
    patience_seconds: float,
    report: Callable[[str], None],
) -> Dict[str, Any]:
    """`publish`, until `request` is ended."""
    body = data if isinstance(data, bytes) else _encode(data).encode()
    if key is not None and not re.fullmatch(r"[ -~]{1,255}", key):
        raise ValueError("a key is 1 to 255 printable ASCII characters")
    names = ",".join(to) if isinstance(to, list) else to
    options = {"type": type, "to": names, "ttl": ttl, "deadline": deadline, "remind": remind}
    query = urllib.parse.urlencode({name: value for name, value in options.items() if value is not None})
    headers = {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
    if wait is not None:
        headers["Prefer"] = f"wait={wait}"
    service = _Service(url, token)
    until = time.monotonic() + patience_seconds
    failures = 0
    news = threading.Timer(NEWS_SECONDS, lambda: report(f"no answer from {url} yet; trying for {patience_seconds:.0f} s"))
    news.daemon = True
    news.start()

    def connected(sock: socket.socket) -> None:
        request.connected(sock)
        if wait is not None:
            news.cancel()  # The answer takes as long as the receipts do.

    try:
        while True:
            try:
                path = f"/push/{_quote(channel)}?{query}"
                return _stored(service.ask("POST", path, headers, body, ANSWER_SECONDS + (wait or 0), connected), channel)
            except _Trouble as error:
                failures += 1
                pause = _pause(failures, error.after)
                if request.stop.is_set() or time.monotonic() + pause > until:
                    raise Unavailable(str(error)) from error
                news.cancel()
                report(f"{error}; trying again in {pause:.1f} s")
                request.stop.wait(pause)
    finally:
        news.cancel()


def _stored(body: bytes, channel: str) -> Dict[str, Any]:
    """The answer to a push. Raises _Trouble where it doesn't say that the event is stored."""
    answer = _object(body.decode("utf-8", "replace"))
    audience = answer.get("audience")
    counts = [audience.get("addressed"), audience.get("connected"), answer.get("seq")] if isinstance(audience, dict) else [None]
    is_event = answer.get("channel") == channel and isinstance(answer.get("id"), str) and isinstance(answer.get("at"), str)
    if not is_event or not all(_is_count(count) for count in counts):
        raise _Trouble("the answer does not say that the event is stored")
    return answer


def receipts(
    url: str,
    channels: Union[str, List[str]],
    *,
    after: str = "",
    token: Token = None,
    stop: Optional[threading.Event] = None,
    report: Callable[[str], None] = _say,
) -> Iterator[Dict[str, Any]]:
    """
    The receipts of channels as they come, `missing` among them, and what became of an event when it is complete: that one has `"complete": true`.
    It begins now, or after the receipt with the id `after`, and comes back where it broke off. Ends when `stop` is set.

    Raises Refused; ValueError for arguments that can't be meant.
    """
    for text in _receipt_texts(url, channels, after, token, stop or threading.Event(), report):
        yield _json.decode(text)


def _receipt_texts(
    url: str, channels: Union[str, List[str]], after: str, token: Token, stop: threading.Event, report: Callable[[str], None]
) -> Iterator[str]:
    """The same as the JSON texts that came."""
    _check(None, 1, [], [after])
    names = channels if isinstance(channels, str) else ",".join(channels)
    times = (FIRST_BYTE_SECONDS, SILENCE_SECONDS, RETURN_SECONDS)
    feed = _Feed(_Service(url, token), f"/feedback/{_quote(names)}", {}, stop, report, *times)
    feed.position = after

    def end() -> None:
        stop.wait()
        feed.end()

    threading.Thread(target=end, daemon=True).start()
    try:
        for message in feed.messages():
            if message.own not in (None, "complete"):
                continue
            if isinstance(_object(message.text).get("event"), str):
                yield message.text
            else:
                report("something came that is no receipt")
    finally:
        stop.set()


# ------------------------------------------------------------------------------------------------------------------- asyncio


_Result = TypeVar("_Result")


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
        self._tasks: Set["asyncio.Task[Any]"] = set()
        self._is_cancelled = False

    def cancel(self) -> None:
        """Cancels what the loop awaits for these calls, and what it would await from now on. Called on the loop."""
        self._is_cancelled = True
        for task in list(self._tasks):
            task.cancel()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function in this thread. If it returns an awaitable, waits until the loop has awaited it, and returns that result. Raises what the
        function raises; NoOutcome if the awaiting was cancelled; _CannotGoOn if the loop is closed."""
        value = self._context.copy().run(function, *arguments)
        return self._context.copy().run(self._wait_for, value) if inspect.isawaitable(value) else value

    def _wait_for(self, awaitable: Awaitable[Any]) -> Any:
        awaiting = self._await(awaitable)
        try:
            future = asyncio.run_coroutine_threadsafe(awaiting, self._loop)
        except RuntimeError as error:
            awaiting.close()
            _discard(awaitable)
            raise _CannotGoOn("the event loop is closed") from error
        # The future of a loop that is closed meanwhile never ends. `result(timeout)` would not tell its TimeoutError from one of the function's own.
        while not concurrent.futures.wait([future], LOOP_CHECK_SECONDS).done:
            if self._loop.is_closed():
                raise _CannotGoOn("the event loop was closed")
        if future.cancelled():
            raise NoOutcome("it was cancelled")
        return future.result()

    async def _await(self, awaitable: Awaitable[Any]) -> Any:
        if self._is_cancelled:
            _discard(awaitable)
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await awaitable
        finally:
            self._tasks.discard(task)


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
    token: AsyncToken = None,
    state: Optional[str] = None,
    workers: int = 1,
    stop: Optional[asyncio.Event] = None,
    report: Callable[[str], None] = _say,
    first_byte_seconds: float = FIRST_BYTE_SECONDS,
    silence_seconds: float = SILENCE_SECONDS,
    return_seconds: float = RETURN_SECONDS,
) -> None:
    """
    `listen` for asyncio: follows channels as a device until `stop` is set or the task is cancelled. The promises and the arguments are those of `listen`.

    How it works: `listen` runs in background threads, and the caller's event loop awaits the handlers. At most `workers` handlers run at once, each held by
    one waiting thread; while all are busy, at most 1,000 events wait and the feed is not read further. An `async` handler runs on the caller's loop. A plain
    function runs in a background thread, so it may block; if it returns an awaitable, the loop awaits that. `token` may be an `async` function as well.
    `report` is called on the loop.

    `stop` lets handlers that run come to their end. Cancelling the task cancels the handlers that are awaited. An event whose handler was cancelled, or raises
    after that, gets no final receipt and comes again; a handler that catches the cancellation and returns is `done`. A plain function can't be cancelled
    and is waited for. In both cases `alisten` ends when the receipts that are due were answered, or after at most 20 seconds of trying; with `state` the rest
    are sent next time. A second cancellation does not wait. If the loop is closed without that, listening ends and the events stay open.

    Raises what `listen` raises.
    """
    if not callable(on_event) or _is_generator_function(on_event):
        raise ValueError(f"the handler must be a function or an async function, and not {'a generator' if callable(on_event) else repr(on_event)}")
    loop, handlers, tokens = asyncio.get_running_loop(), _LoopCalls(), _LoopCalls()
    ending, report = threading.Event(), _safely(_on_loop(report))
    times = {"first_byte_seconds": first_byte_seconds, "silence_seconds": silence_seconds, "return_seconds": return_seconds}
    handler, token = functools.partial(handlers.run, on_event), _sync_token(token, tokens)
    options: Dict[str, Any] = {"token": token, "state": state, "workers": workers, "stop": ending, "report": report, **times}
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
    wait: Optional[int] = None,
    key: Optional[str] = None,
    token: AsyncToken = None,
    patience_seconds: float = 60.0,
    report: Callable[[str], None] = _say,
) -> Dict[str, Any]:
    """
    `publish` for asyncio, in a background thread. `token` may be an `async` function; `report` is called on the loop.

    Cancelling the task ends the request and the retries at once. The event may be stored or not then; pass `key` to be able to ask again.

    Raises what `publish` raises.
    """
    request, tokens = _Request(threading.Event()), _LoopCalls()
    options = (type, to, ttl, deadline, remind, wait, key, _sync_token(token, tokens), patience_seconds, _safely(_on_loop(report)))
    try:
        return await _in_thread(_push, request, url, channel, data, *options)
    finally:
        request.end()
        tokens.cancel()


async def areceipts(
    url: str,
    channels: Union[str, List[str]],
    *,
    after: str = "",
    token: AsyncToken = None,
    report: Callable[[str], None] = _say,
) -> AsyncIterator[Dict[str, Any]]:
    """
    `receipts` for asyncio. A background thread reads the next receipt only when the caller asks for it, so a slow caller slows the feed down and no
    receipts pile up here. `token` may be an `async` function; `report` is called on the loop.

    It ends when the task is cancelled or the iterator is closed (`contextlib.aclosing`). To go on later, pass the last receipt's `id` as `after`.

    Raises what `receipts` raises.
    """
    stop, tokens = threading.Event(), _LoopCalls()
    texts = _receipt_texts(url, channels, after, _sync_token(token, tokens), stop, _safely(_on_loop(report)))
    try:
        while True:
            text = await _in_thread(next, texts, None)
            if text is None:
                return
            yield _json.decode(text)
    finally:
        stop.set()
        tokens.cancel()


# ------------------------------------------------------------------------------------------------------------------- program


#: HUP, INT, QUIT, KILL, PIPE, TERM: a command that ends by one of these did not come to its end. Its shell says so with 128 and the number.
_ENDED_BY = (1, 2, 3, 9, 13, 15)
#: What a shell says of a command that it could not run.
_NOT_RUN = (126, 127)


def _print(line: str) -> None:
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        print(line, flush=True)
    except (OSError, ValueError) as error:
        raise _CannotGoOn(f"the output can't be written: {_words_of(error)}") from error


def _show(event: Event) -> None:
    _print(f"{event.id} " + event.text.replace("\r", " ").replace("\n", " "))


def _scratch() -> Any:
    """A file without a name, in memory where that can be had."""
    try:
        return open(os.memfd_create("pere"), "w+b", buffering=0)
    except (AttributeError, OSError):
        return tempfile.TemporaryFile(buffering=0)


def _end_of_file(file: Any) -> str:
    """The end of what a command wrote, without the blanks around it."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_BYTES_MAX))
    written: bytes = file.read(OUTPUT_BYTES_MAX)
    return written.decode("utf-8", "replace").strip()


def _output_of(text: str) -> Any:
    """What a command printed, as a detail: JSON, where it is that as a whole or in its last line; else the last line's text."""
    last = text.rpartition("\n")[2].strip()
    for part in (text, last):
        try:
            _json.decode(part)
        except Exception:
            continue
        return _Json(part.replace("\r", " ").replace("\n", " "))
    return last or None


def _run(command: str, env: Dict[str, str], files: List[Any]) -> int:
    """Runs a command with these files as input, output and complaints; gives its status, or less than 0 for the signal that ended it."""
    actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number, file in enumerate(files)]
    # This thread is deaf to the signals that end the program; the command is not.
    how = {"setsigmask": [], "setsigdef": [signal.SIGPIPE]}  # type: Dict[str, Any]
    child = os.posix_spawn("/bin/sh", ["sh", "-c", command], env, file_actions=actions, **how)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError as error:
        raise _CannotGoOn(f"how the command ended can't be known: {error}; does this process ignore SIGCHLD?") from error


def _command(command: str, is_ending: Callable[[], bool]) -> Callable[[Event], Any]:
    """A handler that runs a command: data on its input; its output is the detail, what it complains of the reason of a failure.
    It is done when the command has ended, whatever it left running. `is_ending`: whether this program is told to end."""

    if not hasattr(os, "posix_spawn"):
        raise ValueError("--exec needs POSIX; use listen() with a function here")

    def handle(event: Event) -> Any:
        about = {"PERE_EVENT_ID": event.id, "PERE_EVENT_CHANNEL": event.channel, "PERE_EVENT_TYPE": event.type or ""}
        try:
            with _scratch() as given, _scratch() as said, _scratch() as complained:
                left = memoryview(event.text.encode())
                while left:
                    left = left[given.write(left) :]
                given.seek(0)
                status = _run(command, {**os.environ, **about}, [given, said, complained])
                output, complaint = _end_of_file(said), _end_of_file(complained)
        except OSError as error:
            raise NoOutcome(f"the command could not be run: {error}") from error
        if status == 0:
            return _output_of(output)
        status = 128 - status if status < 0 else status
        number = status - 128
        if number in _ENDED_BY:
            raise NoOutcome(f"the command was ended by signal {number}")
        if status in _NOT_RUN:
            raise NoOutcome(f"the command could not be run: {complaint[-DETAIL_CUT_CHARACTERS:] or f'exit status {status}'}")
        if is_ending():
            raise NoOutcome("it is told to end while the command works")
        raise RuntimeError((complaint or output or f"exit status {status}")[-DETAIL_CUT_CHARACTERS:])

    return handle


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> Any:
        _say(f"{message}; --help tells more")
        sys.exit(2)


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, and is {text!r}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?", text) or not 0 < float(text) <= ASKED_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, more than 0 and at most {ASKED_SECONDS_MAX}, and is {text!r}")
    return float(text)


def _like(pattern: str, what: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"must be {what}, and is {text!r}")
        return text

    return read


def _arguments() -> argparse.Namespace:
    parser = _Parser(prog="pere.py", description="Listens to PERE and answers, or publishes.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    channels = f"{_CHANNEL.pattern}(,{_CHANNEL.pattern}){{0,15}}"
    name = "1 to 128 of A-Z a-z 0-9 . _ : ~ -"

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        made.add_argument("url")
        # What is pushed to is the service's to judge.
        made.add_argument("channel", type=str if name == "publish" else _like(channels, "a channel, or up to 16 with commas between them"))
        made.add_argument("--token-file", help="holds the newest token; else the environment's PERE_TOKEN is taken")
        return made

    listener = command("listen", "Follows channels as a device, and answers each event.")
    listener.add_argument("--device", type=_like(_NAME.pattern, name), help="without, the token's `sub`, or a name that is made once and kept")
    listener.add_argument("--exec", type=_like(r"(?s).*\S.*", "a command"), help="run for each event, with its data on the input; without, events are printed")
    listener.add_argument("--state", type=_like(r"(?s).+", "a file's name"), help="a file in which outcomes and unsent receipts survive")
    listener.add_argument("--workers", type=_whole_number(1, 1_000), default=1, help="events that are worked on at once")
    listener.add_argument("--first-byte", type=_seconds, default=FIRST_BYTE_SECONDS, metavar="SECONDS")
    listener.add_argument("--silence", type=_seconds, default=SILENCE_SECONDS, metavar="SECONDS")
    listener.add_argument("--return", type=_seconds, default=RETURN_SECONDS, metavar="SECONDS", dest="again")

    publisher = command("publish", "Pushes one event and prints the answer.")
    publisher.add_argument("data", help="JSON text; - reads it from the input")
    publisher.add_argument("--type", type=_like(r"(?!pere\.)[A-Za-z0-9._-]{1,64}", "1 to 64 of A-Z a-z 0-9 . _ -, and not begin with pere."))
    publisher.add_argument("--to", type=_like(f"{_NAME.pattern}(,{_NAME.pattern})*", "devices' names with commas between them"))
    publisher.add_argument("--key", type=_like(r"[ -~]{1,255}", "1 to 255 printable ASCII characters"))
    year = 366 * 86_400
    for option, least, most in (("ttl", 1, year), ("deadline", 1, year), ("remind", 1, year), ("wait", 0, 120)):
        publisher.add_argument(f"--{option}", type=_whole_number(least, most), metavar="SECONDS")

    follower = command("receipts", "Prints receipts as they come.")
    follower.add_argument("--after", type=_like(_POSITION.pattern, "the id of a receipt"), help="the id of the last receipt that was seen")
    return parser.parse_args()


def _own_name() -> str:
    """This machine's name as a device: its host's and a few characters of chance, made once and kept in the user's state folder (XDG), where the other
    clients look as well. Raises ValueError where it can't be kept: it would be another device each time."""
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
                os.link(fresh, path)  # Whole, and the first one's where two begin at once.
            except FileExistsError:
                pass
            finally:
                os.unlink(fresh)
        with open(path, encoding="ascii") as file:
            name = file.read(1_000).strip()
        if not _NAME.fullmatch(name):
            raise ValueError("it holds no device's name")
        return name
    except (OSError, ValueError) as error:
        raise ValueError(f"--device is needed: a name of its own can't be kept in {path} ({error})") from error


def _device_of(named: Optional[str], token: Token) -> str:
    """The name that was given, or that the token gives, or one of this machine's own."""
    if named is not None:
        return named
    if token is None:
        return _own_name()
    try:
        name = _claims_of(_checked_token(token() if callable(token) else token)).get("sub")
    except Exception:
        name = None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("--device is needed: the token names no device")
    return name


def _token_of(path: Optional[str]) -> Token:
    if path is None:
        return os.environ.get("PERE_TOKEN") or None

    def read() -> str:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(65_536)

    return read


def _until_told(work: Callable[[threading.Event, Callable[[], bool]], None]) -> None:
    """Runs `work` until it ends or a signal asks for that; a second signal ends the program at once. `work` is given what is set then, and what tells
    it whether a signal has come by now: one that was sent to the whole group of processes before a command of ours ended by it is known to that."""
    stop = threading.Event()
    signals: List[int] = []
    failures: List[Optional[BaseException]] = []
    # What the main thread is to do. A handler of signals runs between any two of its steps and may wait for no lock; here it needs none. The sockets wake
    # the thread: a signal that comes just before it waits would not.
    calls: "collections.deque[Callable[[], None]]" = collections.deque()
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)

    def call(what: Callable[[], None]) -> None:
        calls.append(what)
        try:
            mouth.send(b".")
        except BlockingIOError:
            pass  # It has enough to wake up for.

    def end(number: int, _frame: Any) -> None:
        if signals:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signals.append(number)
        call(stop.set)

    def is_ending() -> bool:
        # Signals that have come are the main thread's first business when it wakes up.
        heard = threading.Event()
        call(heard.set)
        heard.wait()
        return bool(signals)

    def run() -> None:
        try:
            work(stop, is_ending)
            failures.append(None)
        except BaseException as error:
            failures.append(error)
        call(lambda: None)

    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    heeded = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    for number in heeded:
        signal.signal(number, end)
    # Signals are for the main thread alone: the others are deaf to them.
    thread = threading.Thread(target=run, name="pere-main", daemon=True)
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
        thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:  # Windows has no such thing, and hands signals to the main thread.
        thread.start()
    while not failures:
        ear.recv(1)
        while calls:
            calls.popleft()()
    if failures[0] is not None:
        raise failures[0]


def _main() -> int:
    # Inherited as ignored, it would hide how commands end.
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    a = _arguments()
    token = _token_of(a.token_file)
    if a.command == "publish":
        data = sys.stdin.buffer.read() if a.data == "-" else os.fsencode(a.data)
        options = {name: getattr(a, name) for name in ("type", "to", "ttl", "deadline", "remind", "wait", "key")}
        _print(json.dumps(publish(a.url, a.channel, data, token=token, **options)))
        return 0

    def follow(stop: threading.Event, _is_ending: Callable[[], bool]) -> None:
        for text in _receipt_texts(a.url, a.channel, a.after or "", token, stop, _say):
            _print(_line_for(text))

    def serve(stop: threading.Event, is_ending: Callable[[], bool]) -> None:
        times = {"first_byte_seconds": a.first_byte, "silence_seconds": a.silence, "return_seconds": a.again}
        handler = _command(a.exec, is_ending) if a.exec else _show
        listen(a.url, a.channel, _device_of(a.device, token), handler, token=token, state=a.state, workers=a.workers, stop=stop, **times)

    _until_told(follow if a.command == "receipts" else serve)
    return 0


def _ended_with(error: BaseException) -> int:
    """Says why the program ends, in one line, and gives its status."""
    _say(_words_of(error) if isinstance(error, (Refused, Unavailable, _CannotGoOn, ValueError, OSError)) else f"{type(error).__name__}: {_words_of(error)}")
    return 2 if isinstance(error, ValueError) else 1


def main() -> int:
    """The program: reads its arguments, runs, says in one line why it failed, and gives its exit status."""
    try:
        status = _main()
    except KeyboardInterrupt:
        status = 130
        _say("interrupted; what was to be pushed may be stored or not")
    except (Exception, _CannotGoOn) as error:
        status = _ended_with(error)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Else Python complains once more of what could not be written.
    return status


if __name__ == "__main__":
    sys.exit(main())
