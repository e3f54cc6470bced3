"""Clients on sockets of their own, over HTTP/1.1 and HTTP/2, that leave when a test says so."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Protocol

import h2.connection
import h2.errors
import h2.events

from tests.e2e.harness import PATIENCE


class Listener(Protocol):
    """A program that listens on a port of this machine, as the harness's proxies do."""

    port: int


class LeavingClient(Protocol):
    def send(self, path: str, body: object, *, whole: bool = True, pin: str = "") -> None:
        """Send a POST; not `whole`: without the last byte of its body."""

    def wait_for_body(self) -> None:
        """Until something of the answer's body has come."""

    def leave(self) -> None:
        """Give the request up."""

    def close(self) -> None: ...


class Http1Client:
    def __init__(self, proxy: Listener) -> None:
        self.socket = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)

    def send(self, path: str, body: object, *, whole: bool = True, pin: str = "") -> None:
        data = json.dumps(body).encode()
        pinned = f"X-Balancer-Agent: {pin}\r\n" if pin else ""
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{pinned}Content-Length: {len(data)}\r\n\r\n"
        self.socket.sendall(head.encode() + (data if whole else data[:-1]))

    def wait_for_body(self) -> None:
        received = b""
        while not received.partition(b"\r\n\r\n")[2]:
            piece = self.socket.recv(65536)
            assert piece, received
            received += piece

    def leave(self) -> None:
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


class Http2Client:
    """`leave` resets the request's stream; the connection stays, and `reset_received` tells what came for it."""

    def __init__(self, proxy: Listener) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
        self.socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        assert self.socket.selected_alpn_protocol() == "h2"
        self.connection = h2.connection.H2Connection()
        self.connection.initiate_connection()
        self.stream = 0

    def send(self, path: str, body: object, *, whole: bool = True, pin: str = "", scheme: str = "https") -> None:
        self.stream = self.connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", path), (":scheme", scheme), (":authority", "x")]
        self.connection.send_headers(self.stream, head + ([("x-balancer-agent", pin)] if pin else []))
        data = json.dumps(body).encode()
        self.connection.send_data(self.stream, data if whole else data[:-1], end_stream=whole)
        self.socket.sendall(self.connection.data_to_send())

    def wait_for_body(self) -> None:
        while not any(isinstance(event, h2.events.DataReceived) for event in self.events()):
            pass

    def status(self) -> str:
        """The status of the answer to the last request."""
        while True:
            for event in self.events():
                if isinstance(event, h2.events.ResponseReceived) and event.stream_id == self.stream:
                    return dict(event.headers)[b":status"].decode()

    def leave(self) -> None:
        self.connection.reset_stream(self.stream, h2.errors.ErrorCodes.CANCEL)
        self.socket.sendall(self.connection.data_to_send())

    def close(self) -> None:
        self.socket.close()

    def events(self) -> list[h2.events.Event]:
        """What has come next, which is acknowledged but for data."""
        data = self.socket.recv(65536)
        assert data, "the proxy has closed the connection"
        events = self.connection.receive_data(data)
        self.socket.sendall(self.connection.data_to_send())
        return events
