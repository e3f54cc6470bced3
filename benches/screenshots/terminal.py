"""What mitmdump and ollama-balancer top print in a terminal, as a picture."""

from __future__ import annotations

import html
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx
from selenium.webdriver.common.by import By

from benches.screenshots.fleet import HOSTS
from benches.screenshots.png import smaller
from tests.e2e.browser import chromium
from tests.e2e.harness import PATIENCE, ROOT, TOKEN, Hosts, environment, free_port, mitmproxy_tool, report, wait_until

FOLDER = Path(__file__).parent
COLUMNS = 128
GIB = 1024**3

COLORS = {31: "#ff7b72", 32: "#7ee787", 33: "#d29922", 35: "#d2a8ff", 36: "#79c0ff"}
"""Of the escape sequences that mitmdump writes."""

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: #0d1117 }}
pre {{ margin: 0; padding: 14px 18px; width: {columns}ch; color: #c9d1d9; background: #0d1117;
      font: 13px/1.45 "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere }}
b {{ color: #fff }}
</style><pre>{text}</pre>"""


class Terminal:
    """A program in a pseudo-terminal; `text` is what it has written so far."""

    def __init__(self, words: Sequence[str], **env: str) -> None:
        ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment(TERM="xterm-256color", **env)
        )
        os.close(theirs)
        self._ours = ours
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        parts = b""
        while True:
            try:
                part = os.read(self._ours, 65536)
            except OSError:  # its end, on Linux
                return
            if not part:
                return
            parts += part
            self.text = parts.decode("utf-8", "ignore").replace("\r", "")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self._ours)


def as_html(text: str) -> str:
    """Text with escape sequences for bold, dim and colours."""
    made, styles = [], set[int]()
    for part in re.split(r"(\x1b\[[0-9;]*m)", text):
        if not part.startswith("\x1b"):
            color = next((COLORS[each] for each in styles if each in COLORS), "inherit")
            weight = "bold" if 1 in styles else "normal"
            opacity = 0.6 if 2 in styles else 1
            style = f"color:{color};font-weight:{weight};opacity:{opacity}"
            made.append(f'<span style="{style}">{html.escape(part)}</span>')
            continue
        for code in map(int, part[2:-1].split(";") if part[2:-1] else ["0"]):
            styles = set() if code == 0 else styles | {code}
    return "".join(made)


def prompt(*words: str) -> str:
    return f"<b>$ {html.escape(shlex.join(words))}</b>\n"


def work(client: httpx.Client, hosts: Hosts) -> None:
    """Reports of all hosts, then a few prompts; one of them goes to a host that fails first."""
    for number, name in enumerate(HOSTS, 1):
        metrics = report(
            cpu=7.0 * number,
            memory=22.0 + 9 * number,
            gpus=[{"name": "GPU", "utilization": 11 * number, "memory_used": number * GIB, "memory_total": 16 * GIB}],
        )
        client.post(f"/api/agents/{name}/metrics", json=metrics, headers={"Authorization": f"Bearer {TOKEN}"})
    chat = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 100}
    for path, model in (("/api/chat", "llama3.2"), ("/v1/chat/completions", "qwen3"), ("/v1/messages", "gemma3")):
        client.post(path, json={"model": model, **chat})
    hosts.all[1].faults.reset_before_head = True
    client.post("/api/chat", json={"model": "gemma3", **chat})
    client.post("/api/chat", json={"model": "mistral", **chat})


def take() -> None:
    hosts = Hosts()
    agents = ",".join(
        f"{name}={hosts.start(name, *models, timing=timing).url}" for name, (models, timing) in HOSTS.items()
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    shown = ("mitmdump", "-s", "addon/balancer.py", "--set", f"balancer_agents={agents}")
    with tempfile.TemporaryDirectory() as name:
        own = ("--listen-host", "127.0.0.1", "--listen-port", str(port), "--set", f"confdir={name}")
        terminal = Terminal([mitmproxy_tool(shown[0]), *shown[1:], *own], OLLAMA_BALANCER_TOKEN=TOKEN)
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            wait_until(lambda: client.get("/health").json()["agents"]["online"] == len(HOSTS), "the agents are online")
            work(client, hosts)
        top = [mitmproxy_tool("ollama-balancer"), "top", "--balancer", url, "--once"]
        fleet = subprocess.run(top, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
        terminal.stop()
        text = prompt(*shown) + as_html(terminal.text.partition("Shutting down")[0].rstrip())
        text += "\n\n" + prompt("ollama-balancer", "top", "--once") + html.escape(fleet.rstrip())
        page = Path(name) / "page.html"
        page.write_text(PAGE.format(columns=COLUMNS, text=text), "utf-8")
        with chromium(Path(name) / "profile", 1200, 1400) as browser:
            browser.get(page.as_uri())
            picture = browser.find_element(By.TAG_NAME, "pre").screenshot_as_png
    (FOLDER / "terminal.png").write_bytes(smaller(picture))
    hosts.stop()
