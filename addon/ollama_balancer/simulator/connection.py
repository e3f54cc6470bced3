"""One client's connection: h11 reads the requests, and answers are framed here.

h11 frames no HTTP/1.0 keep-alive and costs too much per chunk for hundreds of streams, so that it only reads: each
request gets a fresh reader, which takes over what the client has sent ahead.
"""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote, urlsplit

import h11

from .answers import Answer, Headers, api_error, not_found
from .library import Upload

BODY_LIMIT = 100_000_000
HEAD_LIMIT = 1 << 20
SENT_AHEAD_LIMIT = 1 << 20
LINGER = 0.5
UNREAD_LIMIT = 256 << 10
"""Bytes: the real server reads and drops that much of a body it has no use for, and closes the connection beyond."""
CHUNK_BEYOND = 2048
"""Bytes: the real server buffers that much of an answer, and frames a longer one in chunks."""


@dataclass(frozen=True)
class Request:
    """A complete request. `path` is without its query and percent-encoding; `version` is `1.0` or `1.1`."""

    method: str
    target: str
    path: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes
    keep_alive: bool
    upload: Upload | None = None
    """What the body, which `body` has nothing of, has been taken in by."""


class Connection(asyncio.Protocol):
    """Reads requests one after another; each is passed to `serve`, which answers it now or later.

    `known` tells the paths that exist: at any other, a client that expects 100-continue is answered before its body.
    `upload` gives what takes in the body of a request's method and path where it isn't to be kept.
    `on_connect` and `on_disconnect` are told when the connection is there and when it is gone.
    """

    def __init__(
        self,
        serve: "Callable[[Connection, Request], None]",
        known: Callable[[str], bool],
        upload: Callable[[str, str], Upload | None],
        on_connect: "Callable[[Connection], None]",
        on_disconnect: "Callable[[Connection], None]",
    ) -> None:
        self._serve, self._known, self._upload_of = serve, known, upload
        self._on_connect, self._on_disconnect = on_connect, on_disconnect
        self._transport: asyncio.Transport | None = None
        self._reader = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._upload: Upload | None = None
        self._unread = 0
        """Bytes that have come of a body for which the host has no use."""
        self._body_skipped = False
        """The rest of it is not read."""
        self._asked_to_continue = False
        self._request: Request | None = None
        self._advancing = False
        self._discarding = False
        self._chunked = False
        self._drained: asyncio.Future[None] | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        """What answers the current request, if it takes time; cancelled when the client goes away."""
        self.ended_here = False
        """The host, not the client, ended the connection."""

    @property
    def busy(self) -> bool:
        """A request is being answered."""
        return self._request is not None

    # ---- what the client does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._on_connect(self)

    def data_received(self, data: bytes) -> None:
        if self._discarding or self._body_skipped:
            return
        self._reader.receive_data(data)
        if self.busy:
            if len(self._reader.trailing_data[0]) > SENT_AHEAD_LIMIT:
                self.abort()
            return
        self._advance()

    def eof_received(self) -> bool:
        # A half-close too is the client's good-bye: the real server cancels on it.
        if self.busy:
            self._cancel()
            self._abort_transport()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        self._cancel()
        if not self.closed.done():
            self.closed.set_result(None)
        self._on_disconnect(self)

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    # ---- reading

    def _advance(self) -> None:
        """Read and serve what has arrived, until a request takes time or more is needed."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not self.busy and not self._discarding and not self._closing:
                try:
                    event = self._reader.next_event()
                except h11.RemoteProtocolError as error:
                    status = HTTPStatus(error.error_status_hint)
                    body = f"{status.value} {status.phrase}".encode()
                    self._answer_and_close(Answer(status.value, "text/plain; charset=utf-8", body), bare=True)
                    return
                if event is h11.NEED_DATA:
                    self._ask_to_continue()
                    return
                self._handle_event(event)
        finally:
            self._advancing = False

    @property
    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _ask_to_continue(self) -> None:
        if self._reader.they_are_waiting_for_100_continue and not self._asked_to_continue:
            self._asked_to_continue = True
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _handle_event(self, event: object) -> None:
        if isinstance(event, h11.Request):
            self._handle_head(event)
        elif isinstance(event, h11.Data):
            if self._upload is not None:
                self._handle_upload_data(self._upload, bytes(event.data))
                return
            self._body += event.data
            if len(self._body) > BODY_LIMIT:
                self._refuse_body()
        elif isinstance(event, h11.EndOfMessage) and self._head is not None:
            self._request = self._complete(self._head)
            self._serve(self, self._request)
        elif isinstance(event, h11.ConnectionClosed) and self._transport is not None:
            self._transport.close()

    def _handle_head(self, head: h11.Request) -> None:
        self._head = head
        path = self._path(head)
        length = int(dict(head.headers).get(b"content-length", b"0"))
        self._upload = self._upload_of(head.method.decode(), path)
        self._unread = 0
        if self._upload is not None:
            waits = self._reader.they_are_waiting_for_100_continue
            if not self._upload.wanted and (waits or length > UNREAD_LIMIT):
                self._skip_body(head)
        elif length > BODY_LIMIT:
            self._refuse_body()
        elif self._reader.they_are_waiting_for_100_continue and not self._known(path):
            self._answer_and_close(not_found())

    def _handle_upload_data(self, upload: Upload, data: bytes) -> None:
        if upload.wanted:
            upload.feed(data)
            return
        self._unread += len(data)
        if self._unread > UNREAD_LIMIT and self._head is not None:
            self._skip_body(self._head)

    def _skip_body(self, head: h11.Request) -> None:
        """Answer now: the body is of no use, and what is still to come of it is long."""
        self._body_skipped = True
        self._request = replace(self._complete(head), keep_alive=False)
        self._serve(self, self._request)

    @staticmethod
    def _path(head: h11.Request) -> str:
        target = head.target.decode("latin-1")
        path = target.partition("?")[0] if target.startswith("/") else urlsplit(target).path
        return unquote(path)

    def _complete(self, head: h11.Request) -> Request:
        version = head.http_version.decode()
        tokens = [
            token.strip().lower()
            for name, value in head.headers
            if name == b"connection"
            for token in value.decode("latin-1").split(",")
        ]
        return Request(
            method=head.method.decode(),
            target=head.target.decode("latin-1"),
            path=self._path(head),
            version=version,
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()],
            body=bytes(self._body),
            upload=self._upload,
            keep_alive="close" not in tokens and (version != "1.0" or "keep-alive" in tokens),
        )

    def _refuse_body(self) -> None:
        self._answer_and_close(api_error(413, "http: request body too large"))

    def _answer_and_close(self, answer: Answer, *, bare: bool = False) -> None:
        """Answer before the request has been read; `bare`: as the real server does to what it can't parse."""
        headers = [("Content-Type", answer.content_type)]
        if not bare:
            headers += [("Date", _date()), ("Content-Length", str(len(answer.body)))]
        self.write(_head("1.1", answer.status, [*headers, ("Connection", "close")]) + answer.body)
        self._linger()

    def _linger(self) -> None:
        """Close in a moment, as the real server: it reads no more, and what has come unread by then resets the client.

        Who does not read while it sends may lose the answer.
        """
        self._discarding = self.ended_here = True
        if self._transport is not None:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(LINGER, self._transport.close)

    # ---- answering

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait while the client reads too slowly."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def answer(self, answer: Answer) -> None:
        """Send a complete answer to the current request and go on to the next."""
        request = self._current()
        keep = request.keep_alive
        body = answer.body
        chunked = answer.chunked or len(body) > CHUNK_BEYOND
        keep = keep and not (chunked and request.version == "1.0")
        headers = self._own_headers(answer.content_type, answer.headers, keep)
        if not chunked:
            # What is told of a body that isn't sent is told only where there would be one.
            if body or request.method != "HEAD":
                headers.append(("Content-Length", str(len(body))))
        elif request.version != "1.0" and request.method != "HEAD":
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        if keep and request.version == "1.0":
            headers.append(("Connection", "keep-alive"))
        elif not keep and request.version != "1.0":
            headers.append(("Connection", "close"))
        self.write(_head(request.version, answer.status, headers) + (b"" if request.method == "HEAD" else body))
        self._finish(keep)

    @staticmethod
    def _own_headers(content_type: str, more: Headers, keep: bool) -> list[tuple[str, str]]:
        """The headers as the real server orders them: its own, sorted, and then the date."""
        headers = [*more, *([("Content-Type", content_type)] if content_type else [])]
        # One that is to close takes back what its handler said about that.
        own = sorted(header for header in headers if keep or header[0] != "Connection")
        return [*own, ("Date", _date())]

    def begin(self, content_type: str, *payloads: bytes, headers: Headers = ()) -> None:
        """Send the head of a stream, together with its first chunks."""
        request = self._current()
        self._chunked = request.version != "1.0"
        lines = self._own_headers(content_type, headers, self._chunked and request.keep_alive)
        if self._chunked:
            lines.append(("Transfer-Encoding", "chunked"))
            if not request.keep_alive:
                lines.append(("Connection", "close"))
        self.write(_head(request.version, 200, lines) + b"".join(map(self.frame, payloads)))

    def frame(self, payload: bytes) -> bytes:
        """A payload as a chunk of the stream that has begun."""
        return b"%x\r\n%b\r\n" % (len(payload), payload) if self._chunked else payload

    def end(self, *payloads: bytes) -> None:
        """Send the last chunks of a stream, end it properly and go on to the next request."""
        chunks = b"".join(self.frame(payload) for payload in payloads if payload)
        self.write(chunks + (b"0\r\n\r\n" if self._chunked else b""))
        self._finish(self._chunked and self._current().keep_alive)

    def _current(self) -> Request:
        if self._request is None:
            raise RuntimeError("no request to answer")
        return self._request

    def _finish(self, keep: bool) -> None:
        data, _ = self._reader.trailing_data
        self._reader = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._head, self._request, self.task = None, None, None
        self._body, self._upload = bytearray(), None
        self._asked_to_continue = False
        if self._body_skipped:
            self._linger()
        elif not keep:
            self.close()
        elif data:
            self._reader.receive_data(data)
            asyncio.get_running_loop().call_soon(self._advance)

    # ---- ending

    def close(self) -> None:
        """Close when all that was written has been sent."""
        self.ended_here = True
        if self._transport is not None:
            self._transport.close()

    def abort(self, *, reset: bool = False) -> None:
        """Close at once, with TCP's RST if `reset`."""
        self.ended_here = True
        if reset and self._transport is not None:
            sock: socket.socket | None = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
                )
        self._abort_transport()

    def _abort_transport(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _head(version: str, status: int, headers: list[tuple[str, str]]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/{version} {status} {phrase}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


_last_date = (0, "")


def _date() -> str:
    global _last_date
    now = int(time.time())
    if _last_date[0] != now:
        _last_date = (now, formatdate(now, usegmt=True))
    return _last_date[1]
