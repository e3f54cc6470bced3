"""A balancer and an Ollama that are just large enough to be reported to and asked, and the reporter as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agent_reporter.wire import AgentMetrics, AgentRegistration

ROOT = Path(__file__).parents[2]
TOKEN = "stub-token-5f1c"
DEADLINE = 60.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail with `what` after a deadline that only a hung program meets."""
    give_up = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain until {what}"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Stub:
    """A server in a thread; `handle` answers a request with (status, JSON or bytes)."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, object]:
        raise NotImplementedError

    def start(self) -> None:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = stub.handle(self.command, self.path, self.headers.get("Authorization", ""), body)
                raw = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                if status != 204:
                    self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = _answer  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class StubBalancer(_Stub):
    """Keeps what it received. `refuse` maps the last part of a path to an answer that is given instead."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.token = TOKEN
        self.registrations: list[AgentRegistration] = []
        self.reports: list[AgentMetrics] = []
        self.drains: list[object] = []
        self.wrong: list[str] = []
        self.known: set[str] = set()
        self.refuse: dict[str, tuple[int, object]] = {}

    def handle(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, object]:
        last = path.rpartition("/")[2]
        if last in self.refuse:
            return self.refuse[last]
        if authorization != f"Bearer {self.token}":
            return 401, {"error": f"wrong token {authorization}"}
        if method == "POST" and path == "/api/agents":
            registration = AgentRegistration.model_validate_json(body)
            self.registrations.append(registration)
            identity = f"id/{len(self.registrations)}"
            self.known.add(identity)
            url = registration.url or f"http://127.0.0.1:{registration.port}"
            return 201, {"id": identity, "name": registration.name, "url": url}
        for identity in self.known:
            # An id may need quoting in a path: this one does.
            if path == f"/api/agents/{identity.replace('/', '%2F')}/metrics":
                self.reports.append(AgentMetrics.model_validate_json(body))
                return 204, None
            if path == f"/api/agents/{identity.replace('/', '%2F')}/drain":
                self.drains.append(json.loads(body))
                return 200, {}
        if last not in ("metrics", "drain"):
            self.wrong.append(f"{method} {path}")
        return 404, {"error": "no such agent"}

    def forget(self) -> None:
        """Lose all agents, as a balancer without a memory does when it starts again."""
        self.known.clear()


class StubOllama(_Stub):
    """Answers GET with `answers`; anything else is 404."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.answers: dict[str, tuple[int, object]] = {
            "/api/version": (200, {"version": "0.33.0"}),
            "/api/tags": (200, {"models": [{"name": "tiny:latest", "size": 8115977, "details": {"family": "llama"}}]}),
            "/api/ps": (200, {"models": [{"name": "tiny:latest", "size_vram": 0}]}),
        }

    def handle(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, object]:
        return self.answers.get(path, (404, b"404 page not found"))


class Program:
    """`python -m agent_reporter` as a process. What it says is read as it comes."""

    def __init__(self, arguments: Sequence[str], home: Path, **environ: str) -> None:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("OLLAMA_") and name.lower() != "no_proxy"
        }
        clean |= {"HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": str(ROOT)}
        # Nothing listens there: whoever heeds it reaches nobody.
        clean |= {
            "http_proxy": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "all_proxy": "http://127.0.0.1:9",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent_reporter", *arguments],
            cwd=home,
            env=clean | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.out = ""
        self.err = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_out, self._read_err)]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.out += line

    def _read_err(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.err += line

    def wait(self) -> int:
        """The exit code, once it has exited by itself."""
        code = self._process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def terminate(self, number: int = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        return self.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def program(arguments: Sequence[str], home: Path, **environ: str) -> Iterator[Program]:
    """A running reporter that is gone at the end, whatever happens. What it said never holds the token."""
    running = Program(arguments, home, **environ)
    try:
        yield running
    finally:
        running.close()
    assert TOKEN not in running.out + running.err
