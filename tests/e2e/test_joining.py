"""A host joins by one line: the script that a real mitmdump serves, run by the system's own shell."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from agent_reporter import __version__
from ollama_balancer.api.reporter_wheel import wheel_name
from ollama_balancer.core.access import SECRET
from tests.e2e.browser import chromium, console_errors, needs_chromium
from tests.e2e.dashboard import accessibility_problems
from tests.e2e.harness import ROOT, TOKEN, Hosts, Proxy, environment, running_proxy, wait_until

DEPENDENCIES = "psutil pydantic pydantic-core annotated-types typing-extensions typing-inspection zeroconf ifaddr h11"

INSTALLATION = 600.0
"""Seconds that making an environment may take on a machine that has much else to do."""

ADDON = {"PYTHONPATH": str(ROOT / "addon")}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running_proxy(tmp_path_factory.mktemp("conf"), "--set", "balancer_trusted_proxies=127.0.0.1") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the reporter depends on, which stands for the package index."""
    folder = tmp_path_factory.mktemp("packages")
    for name in DEPENDENCIES.split():
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


@dataclass
class Host:
    """Where the script is run."""

    folder: Path
    environ: dict[str, str]

    @property
    def key(self) -> Path:
        return self.folder / "reporter" / "key"

    def start(self, line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", "-c", line],
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, line: str) -> tuple[int, str]:
        process = self.start(line)
        said, _ = process.communicate(timeout=INSTALLATION)
        return process.returncode, said

    def run_script(self, script: str, *shell: str) -> int:
        done = subprocess.run(
            shell or ("sh",),
            input=script,
            text=True,
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            timeout=INSTALLATION,
            check=False,
        )
        return done.returncode


@pytest.fixture
def host(tmp_path: Path, packages: Path) -> Host:
    environ = environment(
        HOME=str(tmp_path),
        OLLAMA_REPORTER_HOME=str(tmp_path / "reporter"),
        OLLAMA_REPORTER_SERVICE="no",
        PYTHON=sys.executable,
        PYTHONPATH=str(packages),
        PIP_NO_INDEX="1",
    )
    return Host(tmp_path, environ)


def command_line(proxy: Proxy, *arguments: str) -> str:
    """The line that `ollama-balancer join-code` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "ollama_balancer.cli.main", "join-code", "--balancer", proxy.url, *arguments],
        env=environment(OLLAMA_BALANCER_TOKEN=TOKEN, **ADDON),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def joins(proxy: Proxy, code: str, name: str = "b", address: str = "127.0.0.1") -> httpx.Response:
    headers = {"Authorization": f"Bearer {code}", "X-Forwarded-For": address}
    return proxy.http.post("/api/join", json={"name": name}, headers=headers)


def audited(proxy: Proxy) -> list[tuple[str, str, str]]:
    lines = (proxy.confdir / "ollama-balancer-audit.jsonl").read_text().splitlines()
    return [(entry["who"], entry["what"], entry["object"]) for entry in map(json.loads, lines)]


def test_a_host_joins_by_one_line_and_upgrades_by_it(proxy: Proxy, hosts: Hosts, host: Host) -> None:
    for name in ("hashlib", "ensurepip", "venv", "pip", "agent_reporter"):  # as somebody could leave them in /tmp
        (host.folder / f"{name}.py").write_text("raise SystemExit('imported from the folder it is run in')")
    ollama = hosts.start("gpu-1")
    line = command_line(proxy, "--name", "gpu-1")
    code = line.rsplit(" ", 1)[-1]
    assert line == f"curl -fsS {proxy.url}/join | sh -s -- {code}"
    own = f"--ollama {ollama.url} --advertise {ollama.url} --interval 0.5"
    joining = host.start(f"{line} {own}")
    try:
        wait_until(
            lambda: joining.poll() is not None or proxy.agents().get("gpu-1", {}).get("metrics"),
            "the host reports",
            INSTALLATION,
        )
        assert joining.poll() is None, joining.communicate()[0]
        proxy.wait_online("gpu-1")
        reporter = next(
            each
            for each in psutil.Process(joining.pid).children(recursive=True)
            if "--interval" in each.cmdline() and "agent_reporter" not in each.cmdline()
        )
        secret = host.key.read_text().strip()
        assert SECRET.fullmatch(secret.encode())
        assert stat.S_IMODE(host.key.stat().st_mode) == 0o600
        assert not any(code in word or secret in word for word in reporter.cmdline())
        reporter.terminate()
        said, _ = joining.communicate(timeout=60)
    finally:
        joining.kill()
    assert f"joined {proxy.url} as gpu-1" in said
    assert proxy.agents()["gpu-1"]["metrics"]["reporter_version"] == __version__

    # Whoever used the fleet without a key goes on doing so.
    assert proxy.http.get("/api/balancer").json()["access"] == {"needs_key": False, "keys": 0}
    proxy.control("POST", "/api/agents/gpu-1/resume")
    assert proxy.generate().status_code == 200

    # Again, with the used code: it keeps its key, its name and its options.
    options = host.folder / "reporter" / "options"
    assert options.read_text().split("\n") == [*own.split(), ""]
    options.write_text(options.read_text() + "--once\n")
    status, said = host.run(line)
    assert status == 0, said
    assert f"join: with the options in {options}: {own} --once\n" in said
    assert f"this host has joined {proxy.url} already, as gpu-1" in said
    assert host.key.read_text().strip() == secret

    # Another host does not get in by it, and this one only under its name.
    refused = joins(proxy, code)
    assert refused.status_code == 401
    assert "has been used" in refused.json()["error"]
    other = {"name": "gpu-2", "url": "http://127.0.0.1:9"}
    assert proxy.control("POST", "/api/agents", other, token=secret).status_code == 409
    assert "gpu-2" not in proxy.agents()

    assert secret not in proxy.log
    assert code not in proxy.log
    audit = audited(proxy)
    assert ("token", "join_code.make", "gpu-1") in audit
    assert ("join code", "host.join", "gpu-1") in audit
    assert ("unknown", "credential.refused", "/api/join") in audit

    # A service would run the same, with the name that the code has given.
    program = host.folder / "reporter" / "venv" / "bin" / "ollama-agent-reporter"
    status, said = host.run(f"{program} --balancer {proxy.url} --join {host.key} --ollama {ollama.url} --install")
    assert status == 1  # nobody was there to ask
    assert "--name gpu-1" in said or "<string>gpu-1</string>" in said
    assert secret not in said

    # What was tampered with on its way is not installed.
    script = proxy.http.get("/join").text.replace("sha256='", "sha256='0")
    status = host.run_script(script, "sh", "-s", "--", "--once")
    assert status == 1


def test_a_script_that_is_cut_off_does_nothing(proxy: Proxy, host: Host) -> None:
    script = proxy.http.get("/join").text
    lines = script.splitlines(keepends=True)
    for end in range(1, len(lines)):
        host.run_script("".join(lines[:end]))
        assert not (host.folder / "reporter").exists(), lines[end - 1]
    for shell in filter(shutil.which, ("dash", "bash", "busybox", "ksh")):
        checker = (shell, "sh", "-n") if shell == "busybox" else (shell, "-n")
        assert host.run_script(script, *checker) == 0


def test_a_host_without_a_fitting_python_is_told_what_to_install(proxy: Proxy, host: Host) -> None:
    (host.folder / "bin").mkdir()
    for tool in ("sh", "curl", "id", "mkdir"):
        (host.folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
    host.environ |= {"PATH": str(host.folder / "bin"), "PYTHON": "python-that-is-not-there"}
    status, said = host.run(f"curl -fsS {proxy.url}/join | sh")
    assert status == 1
    assert "Python 3.10 or newer" in said
    assert "apt install python3" in said
    assert not (host.folder / "reporter").exists()
    status, said = host.run(f"curl -fsS {proxy.url}/join | sh -s -- '{TOKEN}'")
    assert (status, "begins with join_" in said) == (1, True)


@pytest.mark.parametrize("name", ["a';id;'", "$(id)", "a`id`", "a b", 'a"', "a&b", "a:99999", "a:0", ""])
def test_no_host_header_gets_into_a_script(proxy: Proxy, name: str) -> None:
    for path in ("/join", "/join.sh", "/join.ps1"):
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
            head = f"GET {path} HTTP/1.1\r\nHost: {name}\r\nAccept: text/html, */*\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ")), answer
        assert b"#!/bin/sh" not in answer


def test_a_browser_sees_a_page_and_https_stays_https(proxy: Proxy) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = proxy.http.get("/join", headers=browser)
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for text in (f"curl -fsS {proxy.url}/join | sh -s -- CODE", "without encryption", "main &quot;$@&quot;"):
        assert text in page.text
    wheel = proxy.http.get(f"/join/{wheel_name()}")
    assert (wheel.content[:2], "Content-Encoding" in wheel.headers) == (b"PK", False)
    # curl has HTTP/2 there, which has no Host header.
    secure = subprocess.run(
        ["curl", "-kfsS", f"https://127.0.0.1:{proxy.port}/join"], capture_output=True, text=True, check=True
    )
    assert f"balancer='https://127.0.0.1:{proxy.port}'" in secure.stdout
    # A trusted proxy says what the client called; nobody else does.
    proto = {"X-Forwarded-Proto": "https"}
    assert f"balancer='{proxy.url}'" in proxy.http.get("/join", headers=proto).text
    through = proxy.http.get("/join", headers=proto | {"X-Forwarded-For": "10.0.0.7"}).text
    assert f"balancer='https://127.0.0.1:{proxy.port}'" in through


@needs_chromium
@pytest.mark.browser
def test_the_page_can_be_read_by_everybody(proxy: Proxy, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.get(f"{proxy.url}/join")
        for width in (390, 1280):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            page = "document.documentElement"
            assert browser.execute_script(f"return {page}.scrollWidth - {page}.clientWidth") == 0
            assert accessibility_problems(browser) == []
        assert console_errors(browser) == []


def test_wrong_codes_are_limited_like_wrong_keys(proxy: Proxy) -> None:
    statuses = [joins(proxy, f"join_{number}", address="203.0.113.7").status_code for number in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert joins(proxy, "join_x", address="203.0.113.8").status_code == 401
    assert proxy.http.post("/api/join", json={"name": "b"}).status_code == 401
    assert proxy.http.post("/api/join-codes", json={}).status_code == 401


def test_an_older_reporter_is_told_of(proxy: Proxy) -> None:
    proxy.register("old", "http://127.0.0.1:9")
    for version in (None, "0.0.9", "0.0.9", "99.0.0"):
        assert proxy.report("old", **({} if version is None else {"reporter_version": version})).status_code == 204
        notice = proxy.agents()["old"]["notice"]
        assert (notice is None) is (version != "0.0.9")
        if notice is not None:
            assert f"version 0.0.9, the balancer {__version__}" in notice
            assert notice.endswith(f"curl -fsS {proxy.url}/join | sh")
    assert proxy.log.count("old: its reporter has version 0.0.9") == 1


def test_the_command_says_what_is_wrong(proxy: Proxy, tmp_path: Path) -> None:
    def run(*arguments: str, token: str = TOKEN) -> tuple[int, str]:
        own = {"OLLAMA_BALANCER_TOKEN": token, "HOME": str(tmp_path)} | ADDON
        command = [sys.executable, "-m", "ollama_balancer.cli.main", "join-code", *arguments]
        done = subprocess.run(command, env=environment(**own), capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    url = ("--balancer", proxy.url)
    for arguments, token, said in (
        (url, "", "needs the balancer's token"),
        (url, "wrong", "the balancer's token (by default in ~/.mitmproxy/ollama-balancer-token"),
        (("--balancer", "http://127.0.0.1:9"), TOKEN, "does not answer (connection refused)"),
    ):
        status, shown = run(*arguments, token=token)
        assert status == 1
        assert said in shown
    for option, value, said in (("--expires", "2d", "from 1m to 1d"), ("--name", "a b", "1 to 59 letters, digits")):
        status, shown = run(*url, option, value)
        assert status == 2
        assert f"argument {option}: " in shown
        assert said in shown
    status, shown = run(*url, "--expires", "10m", "--json")
    assert status == 0
    made = json.loads(shown)
    assert (made["name"], made["expires_in"]) == (None, 600)
    assert joins(proxy, made["code"], "made-by-command").status_code == 201
