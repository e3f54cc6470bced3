"""mitmproxy's console, in a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.e2e.harness import PATIENCE, Hosts, command, environment, free_port, wait_until

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|[\x0e\x0f]")


class Terminal:
    """What a person types into a program and has seen of it."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 180, 0, 0))
        env = environment(TERM="xterm-256color")
        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=folder, start_new_session=True
        )
        os.close(slave)
        self._seen = bytearray()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(OSError):
            while piece := os.read(self.master, 65536):
                self._seen += piece

    @property
    def seen(self) -> str:
        return ESCAPES.sub("", self._seen.decode("utf-8", "replace"))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, *texts: str) -> None:
        wait_until(lambda: all(text in self.seen for text in texts), f"{texts} on the screen")


@contextmanager
def console(tmp_path: Path, *arguments: str) -> Iterator[tuple[Terminal, httpx.Client]]:
    port = free_port()
    terminal = Terminal(command(tmp_path, port, *arguments, tool="mitmproxy"), tmp_path)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=PATIENCE)
    try:
        wait_until(lambda: client.get("/health").status_code == 200, "the agents are online")
        yield terminal, client
    finally:
        client.close()
        terminal.process.kill()
        terminal.process.wait(PATIENCE)
        os.close(terminal.master)


def test_the_console_shows_where_prompts_went_and_takes_commands_with_completion(tmp_path: Path, hosts: Hosts) -> None:
    agents = ",".join(f"{name}={hosts.start(name).url}" for name in ("gpu-1", "gpu-2"))
    with console(tmp_path, "--set", f"balancer_agents={agents}") as (terminal, client):
        answer = client.post("/api/generate", json={"model": "llama3.2", "prompt": "hi"})
        agent = answer.headers["X-Balancer-Agent"]
        terminal.wait_for("/api/generate")

        terminal.type(":balancer.agents\r")
        terminal.wait_for("loaded", "gpu-1", "gpu-2", "online")
        terminal.type("q")

        other = {"gpu-1": "gpu-2", "gpu-2": "gpu-1"}[agent]
        terminal.type(":balancer.dr\t")
        terminal.wait_for("balancer.drain")
        # Over the completed name: an escape that is read together with the next key would be another key.
        terminal.type("\x7f" * 40 + f"balancer.replay @focus {other}\r")
        terminal.wait_for(f"Sent to {other}: 1 of 1 flows")
        wait_until(
            lambda: (
                {a["name"]: a["stats"]["succeeded"] for a in client.get("/api/agents").json()["agents"]}[other] == 1
            ),
            "the copy is answered",
        )
        terminal.type("\r")
        terminal.wait_for("Request")
