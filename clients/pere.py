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

It never keeps a position on the disk: the service knows what a device has not answered, and sends that to one that comes without a position.
"""

import argparse
import base64
import collections
import http.client
import json
import os
import queue
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

#: A token, or what gives the newest one.
Token = Union[str, Callable[[], str], None]

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


class Refused(Exception):
    """The service said no, and will say it again. `status` is HTTP's, `problem` what stands in its problem document."""

    def __init__(self, status: int, problem: Dict[str, Any]) -> None:
        super().__init__(problem.get("detail", f"status {status}"))
        self.status = status
        self.problem = problem


class Unavailable(Exception):
    """The service could not be reached, or had trouble that passes, for as long as the caller was willing to try."""


class _Trouble(Exception):
    """Something that passes. `after`: seconds that the service asked for."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


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
    print(f"pere: {line}", file=sys.stderr, flush=True)


class _Service:
    """The service at a URL, and the token that it is asked with. Connections are not shared: a request is one."""

    def __init__(self, url: str, token: Token) -> None:
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an address of a service: {url}")
        self._secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/")
        self._source = token
        self._token: Optional[str] = None
        self._lock = threading.Lock()

    def renew(self) -> None:
        """The token that there is will not do any more."""
        with self._lock:
            self._token = None

    def _newest(self) -> Optional[str]:
        if not callable(self._source):
            return self._source
        with self._lock:
            if self._token is None or _ends_at(self._token) - TOKEN_MARGIN_SECONDS < time.time():
                self._token = self._source().strip()
            return self._token

    def open(
        self, method: str, path: str, headers: Dict[str, str], body: Optional[bytes], seconds: float
    ) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Asks, and gives connection and answer when the head is there. Raises OSError, HTTPException, _Trouble, Refused."""
        try:
            token = self._newest()
        except Exception as error:
            raise _Trouble(f"there is no token: {error}") from error
        if self._secure is None:
            line = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        else:
            line = http.client.HTTPSConnection(self._host, self._port, timeout=seconds, context=self._secure)
        try:
            if token is not None:
                headers = {**headers, "Authorization": f"Bearer {token}"}
            line.request(method, self._base + path, body, headers)
            answer = line.getresponse()
            if answer.status >= 300:
                self._refuse(answer)
            return line, answer
        except BaseException:
            line.close()
            raise

    def _refuse(self, answer: http.client.HTTPResponse) -> None:
        after = answer.getheader("Retry-After", "")
        problem = None
        # What is not a problem document comes from something on the way, and may be gone when it is asked again.
        if answer.getheader("Content-Type", "").startswith("application/problem+json"):
            problem = json.loads(answer.read())
        said = problem["detail"] if problem else f"status {answer.status}"
        if answer.status in (401, 403) and callable(self._source):
            with self._lock:
                self._token = None
            raise _Trouble(said)
        if problem is None or answer.status >= 500 or answer.status in (408, 429):
            raise _Trouble(said, float(after) if after.isdigit() else 0.0)
        raise Refused(answer.status, problem)

    def ask(
        self, method: str, path: str, headers: Dict[str, str], body: Optional[bytes], seconds: float = ANSWER_SECONDS
    ) -> bytes:
        """The whole answer to one request. Raises _Trouble for all that passes, and Refused."""
        try:
            line, answer = self.open(method, path, headers, body, seconds)
            try:
                return answer.read()
            finally:
                line.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Trouble(f"{type(error).__name__}: {error}") from error


def _ends_at(token: str) -> float:
    """When a token ends, in seconds since 1970, as it says itself; never, where it doesn't."""
    try:
        claims = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"])
    except Exception:
        return float("inf")


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

    def messages(self) -> Iterator[_Message]:
        """Raises Refused."""
        while not self._stop.is_set():
            after = 0.0
            polls = time.monotonic() < self._stream_again_at
            try:
                yield from self._poll() if polls else self._stream()
                if polls:
                    continue  # The time on long-polls is over.
                why, self._held_back = "the stream ended", 0
            except Refused:
                raise
            except _Trouble as error:
                why, after = str(error), error.after
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
            if self._stop.is_set():
                return
            self._failures += 1
            seconds = _pause(self._failures, max(after, 0.0 if polls else self._retry_seconds))
            self._report(f"{why}; coming back in {seconds:.1f} s")
            self._stop.wait(seconds)

    def end(self) -> None:
        """Wakes a reader that waits for bytes; called when `stop` is set."""
        line = self._line
        if line is not None and line.sock is not None:
            try:
                line.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _open(self, headers: Dict[str, str], query: Dict[str, str], seconds: float) -> http.client.HTTPResponse:
        if self.position != "":
            headers["Last-Event-ID"] = self.position
        query = {**self._query, **query}
        path = f"{self._path}?{urllib.parse.urlencode(query)}" if query else self._path
        self._line, answer = self._service.open("GET", path, headers, None, seconds)
        if self._stop.is_set():
            self.end()
        return answer

    def _close(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _stream(self) -> Iterator[_Message]:
        lines = _Lines()
        event, data, position = "", [], self.position  # type: Tuple[str, List[str], str]
        try:
            answer = self._open({"Accept": "text/event-stream"}, {}, self._first_byte_seconds)
            if not answer.getheader("Content-Type", "").startswith("text/event-stream"):
                raise _Trouble("the answer is not an event stream")
            chunk = answer.read1(65_536)
            if self._line is not None and self._line.sock is not None:
                self._line.sock.settimeout(self._silence_seconds)
            while chunk:
                for line in lines.feed(chunk):
                    field, _, value = line.partition(":")
                    value = value[1:] if value.startswith(" ") else value
                    if field == "id" and "\0" not in value:
                        position = value
                    elif field == "event":
                        event = value
                    elif field == "data":
                        data.append(value)
                    elif field == "retry" and value.isascii() and value.isdigit():
                        self._retry_seconds = int(value) / 1_000
                    if line != "":
                        continue
                    if data:
                        yield from self._told(event, "\n".join(data))
                    self.position = position
                    event, data = "", []
                chunk = answer.read1(65_536)
        except socket.timeout:
            self._stream_again_at = time.monotonic() + self._return_seconds * 2 ** min(self._held_back, RETURN_DOUBLINGS_MAX)
            self._held_back += 1
            raise _Trouble("nothing comes on the event stream, on with long-polls") from None
        finally:
            self._close()

    def _told(self, event: str, text: str) -> Iterator[_Message]:
        own = event[5:] if event.startswith("pere.") else None
        if own == "ready":
            self._failures = 0
        elif own == "bye" and json.loads(text).get("reason") == "expired":
            self._service.renew()
        elif own == "gap":
            self._report(f"events are no longer kept: {text}")
        yield _Message(own, text)

    def _poll(self) -> Iterator[_Message]:
        while not self._stop.is_set():
            rest = self._stream_again_at - time.monotonic()
            if rest <= 0:
                return
            # Whole seconds, and not past the time at which the stream is tried again.
            wait = max(1, min(POLL_SECONDS, int(rest)))
            try:
                answer = self._open({"Accept": "application/json"}, {"wait": str(wait)}, wait + ANSWER_SECONDS)
                text = answer.read().decode("utf-8")
            finally:
                self._close()
            found = _json.decode(text)
            for gap in found.get("gaps", []):
                yield from self._told("pere.gap", json.dumps(gap))
            for event in _elements(text):
                yield _Message(None, event)
            for complete in found.get("complete", []):
                yield _Message("complete", json.dumps(complete))
            self.position = found["last"]
            self._failures = 0


def _int(digits: str) -> Any:
    """Python refuses to read whole numbers of more digits (CVE-2020-10735); JSON knows no such limit, and an event may not stop a device."""
    return int(digits) if len(digits) < 4_300 else float(digits)


_json = json.JSONDecoder(parse_int=_int)


def _elements(text: str) -> Iterator[str]:
    """The events of a long-poll's answer `{"events":[…],…}`, each as the text that it is."""
    at = len('{"events":[')
    while text[at] == "{":
        _, end = _json.raw_decode(text, at)
        yield text[at:end]
        at = end + (text[end] == ",")


def _event_of(text: str) -> Event:
    # Nothing before the data can hold a quote: names, numbers and times.
    raw = text.partition(',"data":')[2][:-1]
    e = _json.decode(text)
    return Event(e["id"], e["channel"], e["seq"], e["at"], e.get("type"), e.get("deadline"), e["data"], raw)


# -------------------------------------------------------------------------------------------------------------------- memory


class _Memory:
    """What became of the newest events, and which final receipts the service has. In a file, where there is one: a line for each
    change, synced, so that a crash takes at most a line that was never acted upon."""

    def __init__(self, path: Optional[str]) -> None:
        self._lock = threading.Lock()
        #: By event, oldest first: channel, status, detail, and whether the receipt was answered.
        self._outcomes: "collections.OrderedDict[str, List[Any]]" = collections.OrderedDict()
        self._path = path
        self._file = None  # type: Any
        #: Lines in the file, and when it is written anew without what is no longer needed.
        self._lines = self._rewrite_at = 0
        if path is not None:
            self._read(path)
            self._rewrite()

    def _read(self, path: str) -> None:
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().split("\n")
        except FileNotFoundError:
            return
        for line in lines[:-1]:  # The last one is empty, or was not written to its end.
            try:
                change = json.loads(line)
            except ValueError:
                continue
            if "given" in change:
                outcome = self._outcomes.get(change["given"])
                if outcome is not None:
                    outcome[3] = True
            else:
                self._note(change["event"], change["channel"], change["status"], change["detail"])

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
        with open(new, "w", encoding="utf-8") as file:
            for event, (channel, status, detail, given) in self._outcomes.items():
                file.write(_line_of(event, channel, status, detail))
                if given:
                    file.write(json.dumps({"given": event}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._file is not None:
            self._file.close()
        os.replace(new, self._path)
        self._file = open(self._path, "a", encoding="utf-8")
        self._lines = 2 * len(self._outcomes)
        self._rewrite_at = max(4 * HANDLED_MAX, 2 * self._lines)

    def _write(self, lines: List[str], durably: bool) -> None:
        if self._file is None:
            return
        self._file.write("".join(lines))
        self._file.flush()
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


def _line_of(event: str, channel: str, status: str, detail: Any) -> str:
    return json.dumps({"event": event, "channel": channel, "status": status, "detail": detail}) + "\n"


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
            except _Trouble as error:
                failures += 1
                seconds = _pause(failures, error.after)
                self._report(f"receipts wait: {error}; again in {seconds:.1f} s")
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
        try:
            answer = json.loads(self._service.ask("POST", path, headers, json.dumps(batch).encode()))
            rejected = answer["rejected"]
        except (ValueError, KeyError, TypeError) as error:
            raise _Trouble(f"the answer makes no sense: {error}") from error
        except Refused as error:
            if error.status in (401, 403):  # The token stays as it is; so the feed is refused as well, and says so.
                raise _Trouble(str(error), BACKOFF_SECONDS_MAX) from error
            rejected = error.problem.get("rejected")
            if rejected is None and len(batch) > 1:  # One of them spoils it for all, and is let go alone.
                for receipt in batch:
                    self._send(channel, [receipt])
                return
            rejected = rejected or [{"index": 0, "reason": str(error)}]
        for rejection in rejected:
            receipt = batch[rejection["index"]]
            self._report(f"{receipt['status']} of {receipt['event']} was rejected: {rejection['reason']}")
        with self._changed:
            self._waiting[channel] = self._waiting[channel][len(batch) :]
            if not self._waiting[channel]:
                del self._waiting[channel]
        self._memory.given([r["event"] for r in batch if _is_final(r)])


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
        self._busy: set = set()
        self._failure: Optional[BaseException] = None

    def run(self, workers: int) -> None:
        reader = threading.Thread(target=self._read, name="pere-feed", daemon=True)
        hands = [threading.Thread(target=self._work, name="pere-worker", daemon=True) for _ in range(workers)]
        for thread in [reader, self._outbox, *hands]:
            thread.start()
        try:
            self._stop.wait()
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
                if message.own is None:
                    self._take(_event_of(message.text))
        except BaseException as error:
            self._failure = error
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
        while True:
            event = self._waiting.get()
            if event is None or self._stop.is_set():
                return
            try:
                status, detail = "done", _detail_of(self._on_event(event))
            except BaseException as error:  # A handler that wants to leave the program ends no more than itself.
                status, detail = "failed", _detail_of(str(error) or type(error).__name__)
            try:
                self._memory.note(event.id, event.channel, status, detail)
            except OSError as error:
                self._report(f"what became of {event.id} could not be kept: {error}")
            self._outbox.give(event.id, event.channel, status, detail)
            self._busy.discard(event.id)


def _detail_of(value: Any) -> Any:
    """A receipt's detail: what JSON can say, and not too long; else as much of the text as fits."""
    try:
        text = json.dumps(value, allow_nan=False)
        value = json.loads(text)  # What a file and the service will make of it.
    except (TypeError, ValueError, RecursionError):
        value = repr(value)
        text = json.dumps(value)
    if len(text) <= DETAIL_BYTES_MAX:
        return value
    return {"cut": (value if isinstance(value, str) else text)[:DETAIL_CUT_CHARACTERS]}


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

    `token`: a text, or a function that gives the newest one, which is asked again before it ends and when it is refused. `state`: a file in which
    outcomes and unsent receipts survive the process, for one process at a time. `report` is told, in a line, what goes wrong and passes.

    Raises Refused when the service does not let the device in and no other token can be had.
    """
    stop = stop or threading.Event()
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
) -> Dict[str, Any]:
    """
    Pushes one event and gives the service's answer; with `wait`, when every addressed device has answered or so many seconds have passed. `data` is
    anything that JSON can say, or bytes, which are JSON text and sent as they are. Times are in seconds. `type` becomes the name of the event on event streams;
    the service refuses "open", "message", "error" and what begins with "pere.".

    It is tried again for `patience_seconds`, and stored once, by its idempotency key: one of its own, or `key`, with which a caller may go on
    trying after that.

    Raises Refused, Unavailable; ValueError and TypeError for data that JSON can't say.
    """
    body = data if isinstance(data, bytes) else json.dumps(data, allow_nan=False).encode()
    names = ",".join(to) if isinstance(to, list) else to
    options = {"type": type, "to": names, "ttl": ttl, "deadline": deadline, "remind": remind}
    query = urllib.parse.urlencode({name: value for name, value in options.items() if value is not None})
    headers = {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
    if wait is not None:
        headers["Prefer"] = f"wait={wait}"
    service = _Service(url, token)
    until = time.monotonic() + patience_seconds
    failures = 0
    while True:
        try:
            seconds = ANSWER_SECONDS + (wait or 0)
            return json.loads(service.ask("POST", f"/push/{_quote(channel)}?{query}", headers, body, seconds))
        except (_Trouble, ValueError) as error:
            failures += 1
            pause = _pause(failures, getattr(error, "after", 0.0))
            if time.monotonic() + pause > until:
                raise Unavailable(str(error)) from error
            time.sleep(pause)


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

    Raises Refused.
    """
    names = channels if isinstance(channels, str) else ",".join(channels)
    stop = stop or threading.Event()
    times = (FIRST_BYTE_SECONDS, SILENCE_SECONDS, RETURN_SECONDS)
    feed = _Feed(_Service(url, token), f"/feedback/{_quote(names)}", {}, stop, report, *times)
    feed.position = after
    threading.Thread(target=lambda: (stop.wait(), feed.end()), daemon=True).start()
    try:
        for message in feed.messages():
            if message.own in (None, "complete"):
                yield json.loads(message.text)
    finally:
        stop.set()


# ------------------------------------------------------------------------------------------------------------------- program


def _command(command: str) -> Callable[[Event], Any]:
    """A handler that runs a command: data on its input; its output is the detail, what it complains of the reason of a failure."""

    def handle(event: Event) -> Any:
        about = {"PERE_EVENT_ID": event.id, "PERE_EVENT_CHANNEL": event.channel, "PERE_EVENT_TYPE": event.type or ""}
        ran = subprocess.run(command, shell=True, input=event.text.encode(), capture_output=True, env={**os.environ, **about})
        said = ran.stdout.decode("utf-8", "replace").strip()
        if ran.returncode != 0:
            complaint = ran.stderr.decode("utf-8", "replace").strip()
            raise RuntimeError((complaint or said or f"exit status {ran.returncode}")[-DETAIL_CUT_CHARACTERS:])
        try:
            return json.loads(said) if said else None
        except ValueError:
            return said

    return handle


def _show(event: Event) -> None:
    print(event.id, event.text.replace("\n", " "), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pere.py", description="Listens to PERE and answers, or publishes.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.add_argument("url")
        made.add_argument("channel")
        made.add_argument("--token-file", help="holds the newest token; else the environment's PERE_TOKEN is taken")
        return made

    listener = command("listen", "Follows channels as a device, and answers each event.")
    listener.add_argument("--device", required=True)
    listener.add_argument("--exec", help="run for each event, with its data on the input; without, events are printed")
    listener.add_argument("--state", help="a file in which outcomes and unsent receipts survive")
    listener.add_argument("--workers", type=int, default=1, help="events that are worked on at once")
    listener.add_argument("--first-byte", type=float, default=FIRST_BYTE_SECONDS, metavar="SECONDS")
    listener.add_argument("--silence", type=float, default=SILENCE_SECONDS, metavar="SECONDS")
    listener.add_argument("--return", type=float, default=RETURN_SECONDS, metavar="SECONDS", dest="again")

    publisher = command("publish", "Pushes one event and prints the answer.")
    publisher.add_argument("data", help="JSON text; - reads it from the input")
    publisher.add_argument("--type", help="the event name; open, message, error and pere.* are refused")
    for name in ("to", "key"):
        publisher.add_argument(f"--{name}")
    for name in ("ttl", "deadline", "remind", "wait"):
        publisher.add_argument(f"--{name}", type=int, metavar="SECONDS")

    follower = command("receipts", "Prints receipts as they come.")
    follower.add_argument("--after", default="", help="the id of the last receipt that was seen")
    return parser.parse_args()


def _token_of(path: Optional[str]) -> Token:
    if path is None:
        return os.environ.get("PERE_TOKEN") or None

    def read() -> str:
        with open(path, encoding="ascii") as file:
            return file.read()

    return read


def _main() -> int:
    a = _arguments()
    token, stop = _token_of(a.token_file), threading.Event()

    def end(number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # The second time at once.

    if a.command == "publish":
        data = sys.stdin.buffer.read() if a.data == "-" else a.data.encode()
        options = {name: getattr(a, name) for name in ("type", "to", "ttl", "deadline", "remind", "wait", "key")}
        print(json.dumps(publish(a.url, a.channel, data, token=token, **options)))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    if a.command == "receipts":
        for receipt in receipts(a.url, a.channel, after=a.after, token=token, stop=stop):
            print(json.dumps(receipt), flush=True)
        return 0
    times = {"first_byte_seconds": a.first_byte, "silence_seconds": a.silence, "return_seconds": a.again}
    handler = _command(a.exec) if a.exec else _show
    listen(a.url, a.channel, a.device, handler, token=token, state=a.state, workers=a.workers, stop=stop, **times)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except (Refused, Unavailable, ValueError, OSError) as error:
        sys.exit(f"pere: {error}")
