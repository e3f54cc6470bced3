"""Runs the installed reporter on the Python that runs this: every module, --help, --print, reports, the final drain.

Python 3.10 and newer, without packages besides the reporter's own: `.venv-reporter/bin/python tests/reporter/smoke.py`.
"""

import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECONDS = 60.0
"""Which only a reporter that hangs takes."""

TOKEN = "of-the-smoke-test"


class Balancer(ThreadingHTTPServer):
    """Takes what a reporter sends, and keeps it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.reported = threading.Event()


class Receiver(BaseHTTPRequestHandler):
    server: Balancer

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path, body))
        registers = self.path == "/api/agents"
        answer = json.dumps({"id": "1", "name": body["name"], "url": ""}).encode() if registers else b""
        self.send_response(201 if registers else 204)
        if answer:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        if self.path.endswith("/metrics"):
            self.server.reported.set()

    def log_message(self, *_: object) -> None:
        pass


def reporter(*options: str) -> "subprocess.Popen[str]":
    environ = {**os.environ, "OLLAMA_BALANCER_TOKEN": TOKEN}
    return subprocess.Popen(
        [sys.executable, "-m", "agent_reporter", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=tempfile.gettempdir(),
    )


def import_all() -> None:
    import agent_reporter

    for module in pkgutil.walk_packages(agent_reporter.__path__, "agent_reporter."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main() -> None:
    import_all()
    shown, _ = reporter("--help").communicate(timeout=SECONDS)
    assert "--balancer URL" in shown, shown
    printed, _ = reporter("--print").communicate(timeout=SECONDS)
    assert 0 <= json.loads(printed)["memory_usage"] <= 100, printed

    balancer = Balancer()
    threading.Thread(target=balancer.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{balancer.server_port}"
    running = reporter("--balancer", url, "--name", "smoke", "--interval", "0.5")
    try:
        assert balancer.reported.wait(SECONDS), "no report arrived"
        running.send_signal(signal.SIGTERM)
        assert running.wait(SECONDS) == 0, running.returncode
    finally:
        running.kill()
    assert [path for path, _ in balancer.calls][:2] == ["/api/agents", "/api/agents/1/metrics"], balancer.calls
    assert balancer.calls[-1] == ("/api/agents/1/drain", {"until": "registration"}), balancer.calls[-1]
    report = balancer.calls[1][1]
    assert 0 <= report["cpu_usage"] <= 100 and report["ollama_ok"] in (True, False), report  # type: ignore[operator]
    print(f"The reporter works on Python {sys.version.split()[0]}.")


if __name__ == "__main__":
    main()
