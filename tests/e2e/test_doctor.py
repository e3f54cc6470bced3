"""`ollama-balancer doctor` finds faults that are planted: in files, sockets and hosts."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import ssl
import subprocess
import sys
import time
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import pytest

from .harness import (
    PATIENCE,
    TOKEN,
    Hosts,
    RawHost,
    environment,
    free_port,
    running_proxy,
    silent_listener,
    wait_until,
)
from .test_tls import certificate

pytestmark = pytest.mark.e2e


def doctor(confdir: Path, *arguments: str, files: int | None = None) -> tuple[int, str]:
    """Run it with a limit of open files, if one is given; the exit code and what it prints."""
    command = [sys.executable, "-m", "ollama_balancer.cli.main", "doctor", "--set", f"confdir={confdir}", *arguments]
    limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None
    env = environment(HOME=str(confdir), PYTHONIOENCODING="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, env=env, preexec_fn=limit, timeout=2 * PATIENCE)
    assert done.stderr == ""
    return done.returncode, done.stdout


def problems(text: str) -> dict[str, str]:
    """What is wrong, and what to do about each."""
    lines = text.splitlines()
    found = {}
    for line, after in pairwise(lines):
        if line.startswith("problem  "):
            assert after.startswith("         → "), after
            found[line[9:]] = after[11:]
    return found


def remedy_of(found: dict[str, str], pattern: str) -> str:
    """What to do about the one problem that matches."""
    matching = [remedy for what, remedy in found.items() if re.search(pattern, what)]
    assert len(matching) == 1, f"{pattern}: {found}"
    return matching[0]


def answering(hosts: Hosts, whole: bytes) -> RawHost:
    """A host that gives the same answer to each request, head and body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(whole)

    return RawHost(hosts, serve)


def answer(status: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


def ollama(models: bytes = b"", *headers: bytes) -> bytes:
    """What serves as the version and as the list of models of an Ollama."""
    return answer(b"200 OK", b'{"version": "0.33.0", "models": [%s]}' % models, *headers)


def test_all_is_well(tmp_path: Path, hosts: Hosts) -> None:
    one, two = hosts.start("one", "llama3.2", "qwen3"), hosts.start("two")
    (tmp_path / "config.yaml").write_text(f"listen_port: {free_port()}\nbalancer_agents: [gpu-2={two.url}]\n")
    code, said = doctor(tmp_path)
    assert code == 0, said
    assert said.rstrip().endswith("No problems.")
    assert f"gpu-2: Ollama 0.33.0 at {two.url}, 1 model" in said
    code, said = doctor(tmp_path, "--set", f"balancer_agents=gpu-1={one.url}", "--listen-host", "127.0.0.1")
    assert code == 0, said
    assert f"gpu-1: Ollama 0.33.0 at {one.url}, 2 models" in said
    assert "gpu-2" not in said  # --set wins over config.yaml
    assert "is free, for this machine alone" in said
    assert [line for line in said.splitlines() if line and line[:9].strip() not in ("ok", "")][:-1] == []


def test_each_fault_of_the_machine_is_found(tmp_path: Path, hosts: Hosts) -> None:
    (tmp_path / "config.yaml").write_text("balancer_token: a-secret-of-the-file\nlisten_port: many\n")
    (tmp_path / "ollama-balancer-token").write_text("short")
    (tmp_path / "ollama-balancer-keys.db").write_text("")
    (tmp_path / "ollama-balancer-agents.json").write_text("{")
    for name, mode in (("config.yaml", 0o644), ("ollama-balancer-token", 0o600), ("ollama-balancer-keys.db", 0o640)):
        (tmp_path / name).chmod(mode)
    host = hosts.start("gpu-1")
    taken = answering(hosts, answer(b"404 Not Found", b"[]"))
    port = int(taken.url.rpartition(":")[2])
    agents = ("--set", f"balancer_agents=gpu-1={host.url}")
    code, said = doctor(tmp_path, "-p", str(port), *agents, files=256)
    assert code == 1
    found = problems(said)
    assert f"--listen-port {9090 if port != 9090 else 8080}" in remedy_of(
        found, rf"port {port} is used by .*no balancer"
    )
    assert "ulimit -Hn" in remedy_of(found, "open-file limit of 256 allows 96 clients at once")
    assert "chmod 600" in remedy_of(found, r"other users can read .*config\.yaml \(mode 0644\)")
    assert "chmod 600" in remedy_of(found, r"other users can read .*keys\.db \(mode 0640\)")
    assert "remove it" in remedy_of(found, r"agents\.json is damaged")
    assert len(found) == 5, said
    assert "a-secret" not in said

    (tmp_path / "config.yaml").write_text("balancer_retries: 1\nlisten_host: [\n")
    code, said = doctor(tmp_path, "--listen-host", "192.0.2.77", "--set", "listen_port=http", *agents)
    found = problems(said)
    assert "correct that line" in remedy_of(found, r"config\.yaml, line \d: this is not YAML")
    assert "from 0 to 65535" in remedy_of(found, "listen_port: 'http' is not accepted")
    assert "give one that is" in remedy_of(found, "192.0.2.77 is no address of this machine")
    assert "delete it" in remedy_of(found, "token holds no usable token")
    assert code == 1

    tmp_path.chmod(0o777)
    assert "chmod 700" in remedy_of(problems(doctor(tmp_path, *agents)[1]), "other users can change files in")
    (tmp_path / "file").write_text("")
    code, said = doctor(tmp_path / "file" / "folder", *agents)
    assert code == 1
    assert "remove" in remedy_of(problems(said), "folder cannot be the balancer's folder: .*file is a file")


@pytest.mark.skipif(sys.platform != "linux", reason="has all of 127.0.0.0/8 as its own addresses")
def test_each_fault_of_a_host_is_found(tmp_path: Path, hosts: Hosts) -> None:
    good, secure = hosts.start("good"), certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(secure)

    async def tls() -> asyncio.Server:
        return await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)

    hosts.servers.append(hosts.run(tls()))
    late = formatdate(time.time() - 7200, usegmt=True).encode()
    with silent_listener() as silent:
        agents = {
            "good": good.url,
            "again": f"http://localhost:{good.port}",
            "loopback": f"http://127.0.0.2:{good.port}",
            "refused": f"http://127.0.0.1:{free_port()}",
            "nameless": "http://no-such-host.invalid:11434",
            "scheme": "https://127.0.0.1:11434",
            "tls": f"http://127.0.0.1:{hosts.servers[-1].sockets[0].getsockname()[1]}",
            "web": answering(hosts, answer(b"404 Not Found", b"\x1b[2Jnothing here")).url,
            "other": answering(hosts, answer(b"200 OK", b'{"version": 3}')).url,
            "ssh": answering(hosts, b"SSH-2.0-OpenSSH\r\n\r\n").url,
            "closed": answering(hosts, answer(b"403 Forbidden", b"")).url,
            "empty": answering(hosts, ollama()).url,
            "clock": answering(hosts, ollama(b'{"name": "m"}', b"Date: " + late)).url,
            "silent": f"http://127.0.0.1:{silent}",
        }
        given = [f"{name}={url}" for name, url in agents.items()] + [f"web=http://127.0.0.1:{free_port()}"]
        began = time.monotonic()
        code, said = doctor(tmp_path, "-p", str(free_port()), "--set", f"balancer_agents={','.join(given)}")
    assert time.monotonic() - began < PATIENCE
    assert code == 1
    found = problems(said)
    assert re.search(r"^ok +good: Ollama 0\.33\.0 at \S+, 1 model, for this machine alone$", said, re.MULTILINE)
    assert "keep one" in remedy_of(found, r"good, again are one host")
    assert "OLLAMA_HOST=0.0.0.0" in remedy_of(found, "loopback: Ollama on this machine listens on 127.0.0.1 only")
    assert "Ollama runs there" in remedy_of(found, "refused: cannot connect: connection refused at 127.0.0.1")
    assert "DNS" in remedy_of(found, "nameless: the name no-such-host.invalid does not resolve")
    assert "http://host:port" in remedy_of(found, "scheme: https://127.0.0.1:11434 begins with https://")
    assert "Ollama's own port" in remedy_of(found, "tls: .* expects https")
    assert "Ollama listens on" in remedy_of(found, "web: .* status 404")
    assert "Ollama listens on" in remedy_of(found, "other: .* does not answer GET /api/version as Ollama does")
    assert "Ollama listens on" in remedy_of(found, "ssh: .* not HTTP")
    assert "OLLAMA_HOST=0.0.0.0" in remedy_of(found, "closed: .* refuses the balancer")
    assert "ollama pull" in remedy_of(found, "empty: .* has no models")
    assert "set the clock" in remedy_of(found, "clock: the clock of 127.0.0.1 is 7[12]\\d\\d s behind")
    assert "firewall" in remedy_of(found, "silent: cannot connect: no connection within")
    assert "a name of its own" in remedy_of(found, "the name web is used twice")
    assert said.replace("\n", "").isprintable()


def test_a_running_balancer_is_asked_for_its_hosts(tmp_path: Path, hosts: Hosts) -> None:
    one, gone = hosts.start("one"), f"http://127.0.0.1:{free_port()}"
    with running_proxy(tmp_path, "--set", f"balancer_agents=gpu-1={one.url}") as proxy:
        proxy.wait_online("gpu-1")
        proxy.register("gpu-2", gone)
        proxy.register("gpu-3", proxy.url)
        assert proxy.control("POST", "/api/agents/gpu-1/drain").status_code == 200
        at = ("-p", str(proxy.port), "--listen-host", "127.0.0.1")
        wait_until(lambda: (tmp_path / "ollama-balancer-agents.json").exists(), "the registered hosts are stored")
        code, said = doctor(tmp_path, *at)
        found = problems(said)
        assert code == 1
        assert f"port {proxy.port} of 127.0.0.1: a balancer runs here" in said
        assert remedy_of(found, "gpu-2: cannot connect")
        assert remedy_of(found, "gpu-3: .* is the balancer itself")
        assert re.search(r"^warning +gpu-1 is drained", said, re.MULTILINE)
        assert len(found) == 2, said

        proxy.control("POST", "/api/keys", {"name": "app", "rights": ["infer"]})
        wait_until(lambda: proxy.http.get("/api/agents").status_code == 401, "keys are required")
        code, said = doctor(tmp_path / "elsewhere", *at, "--set", f"balancer_agents=gpu-1={one.url}")
        assert code == 0, said
        assert "warning  the running balancer lists its agents only to those who have a key" in said
        file = tmp_path / "key"
        file.write_text(TOKEN)
        code, said = doctor(tmp_path / "elsewhere", *at, "--key-file", str(file))
        assert code == 1
        assert remedy_of(problems(said), "gpu-2: cannot connect")
        assert TOKEN not in said


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_token_of_another_user_is_found(tmp_path: Path, hosts: Hosts) -> None:
    path = tmp_path / "ollama-balancer-token"
    path.write_text("a-good-token-of-this-balancer\n")
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    code, said = doctor(tmp_path, "--set", f"balancer_agents={hosts.start('a').url}", "-p", str(free_port()))
    assert code == 1
    assert f"chown {os.geteuid()}" in remedy_of(problems(said), "token belongs to another user")
    os.chown(tmp_path, 12345, -1)  # as the folder of a service, which root looks at
    code, said = doctor(tmp_path, "--set", f"balancer_agents={hosts.start('a').url}", "-p", str(free_port()))
    assert code == 0, said
