"""The audit file of a real balancer and of the command line beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_balancer.gateway.audit import MAX_A_MINUTE
from ollama_balancer.storage.audit import FILE_NAME

from .harness import TOKEN, Hosts, Proxy, report, wait_until
from .web import Web, running_mitmweb

pytestmark = pytest.mark.e2e

WRONG = "ob_" + "W" * 43


def command(confdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = (sys.executable, "-m", "ollama_balancer.cli.main")
    return subprocess.run(
        [*program, *arguments, "--confdir", str(confdir)], capture_output=True, text=True, check=False
    )


class Scene:
    def __init__(self, proxy: Proxy, web: Web) -> None:
        self.proxy = proxy
        self.web = web
        self.secrets: list[str] = []

    def call(self, method: str, path: str, secret: str | None = TOKEN, body: object = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        answer = httpx.request(method, f"{self.proxy.url}{path}", headers=headers, json=body, timeout=20)
        if "secret" in answer.text and answer.is_success:
            self.secrets.append(answer.json()["secret"])
        return answer

    def entries(self) -> list[dict[str, Any]]:
        path = self.proxy.confdir / FILE_NAME
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.entries()) >= count, f"{count} entries: {self.entries()}")
        return self.entries()


@pytest.fixture
def scene(tmp_path: Path, hosts: Hosts) -> Iterator[Scene]:
    host = hosts.start("a")
    with running_mitmweb(tmp_path, "--set", f"balancer_agents=a={host.url}") as (proxy, web):
        proxy.wait_online("a")
        yield Scene(proxy, web)


def told(entries: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(entry["who"], entry["what"], entry["object"]) for entry in entries]


def test_each_change_by_an_operator_is_recorded(scene: Scene) -> None:
    confdir = scene.proxy.confdir
    added = command(confdir, "keys", "add", "olga", "--rights", "operate,infer", "--rpm", "50")
    olga = added.stdout.strip()
    scene.secrets.append(olga)
    wait_until(lambda: scene.call("GET", "/api/tags", None).status_code == 401, "the key is known")
    begun = len(scene.entries())
    reporter = {"name": "gpu-1", "url": "http://127.0.0.1:1", "instance": "first"}
    for method, path, body in (
        ("POST", "/api/agents", reporter),
        ("POST", "/api/agents", reporter),  # again: no change
        ("POST", "/api/agents/gpu-1/metrics", report()),
        ("POST", "/api/agents/gpu-1/drain", {"until": "registration"}),
        ("POST", "/api/agents/gpu-1/drain", None),
        ("POST", "/api/agents/gpu-1/resume", None),
        ("POST", "/api/agents", {"name": "gpu-1", "url": "http://127.0.0.1:1"}),
        ("DELETE", "/api/agents/gpu-1", None),
        ("POST", "/api/keys", {"name": "bob", "requests_per_minute": 5}),
        ("PATCH", "/api/keys/bob", {"disabled": True}),
        ("POST", "/api/keys/bob/rotate", {"overlap": 5}),
        ("DELETE", "/api/keys/bob", None),
    ):
        assert scene.call(method, path, olga, body).status_code < 300, (method, path)
    changed = scene.web.http.put("/options", json={"balancer_retries": 3, "balancer_token": "another-token"})
    assert changed.status_code == 200
    wait_until(lambda: "another-token" not in json.dumps(scene.entries()) and len(scene.entries()) >= begun + 11, "all")
    entries = scene.entries()[begun:]
    who = "key olga"
    assert told(entries) == [
        (who, "agent.register", "gpu-1"),
        (who, "agent.drain", "gpu-1"),
        (who, "agent.resume", "gpu-1"),
        (who, "agent.register", "gpu-1"),
        (who, "agent.delete", "gpu-1"),
        (who, "key.add", "bob"),
        (who, "key.set", "bob"),
        (who, "key.rotate", "bob"),
        (who, "key.remove", "bob"),
        ("console", "option.set", "balancer_retries"),
        ("console", "option.set", "balancer_token"),
    ]
    assert [entry["from"] for entry in entries] == ["127.0.0.1"] * 9 + ["console"] * 2
    assert [entry.get("settings") for entry in entries[5:7]] == [{"requests_per_minute": 5}, {"disabled": True}]
    assert (entries[-2]["value"], "value" in entries[-1]) == ("3", False)

    for arguments in (("set", "olga", "--rpm", ""), ("disable", "olga"), ("rotate", "olga"), ("remove", "olga")):
        scene.secrets += command(confdir, "keys", *arguments).stdout.split()
    of_user = [entry for entry in scene.entries() if entry["from"] == "command line"]
    assert [(entry["what"], entry["object"]) for entry in of_user] == [
        ("key.add", "olga"),
        ("key.set", "olga"),
        ("key.set", "olga"),
        ("key.rotate", "olga"),
        ("key.remove", "olga"),
    ]
    assert all(entry["who"].startswith("user ") for entry in of_user)
    assert of_user[0]["settings"] == {"rights": ["infer", "operate"], "requests_per_minute": 50}

    verified = command(confdir, "audit", "verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert f"is whole: {len(scene.entries())} lines" in verified.stdout
    kept = verified.stdout.split()[-1]
    assert command(confdir, "audit", "verify", "--known", kept).returncode == 0
    secrets = [*scene.secrets, TOKEN, "another-token"]
    assert len(scene.secrets) == 4
    for kept_file in confdir.rglob("*"):
        if kept_file.is_file():
            assert not [secret for secret in secrets if secret.encode() in kept_file.read_bytes()], kept_file
    assert not [secret for secret in secrets if secret in scene.proxy.log]

    audit_path = confdir / FILE_NAME
    lines = audit_path.read_bytes().splitlines(keepends=True)
    audit_path.write_bytes(b"".join(lines[:-1]))
    assert command(confdir, "audit", "verify").returncode == 0, "a cut at the end shows only by the hash"
    cut = command(confdir, "audit", "verify", "--known", kept)
    assert (cut.returncode, "lines are missing" in cut.stderr) == (1, True)
    for broken, number in ((lines[:3] + lines[4:], 4), ([lines[0].replace(b"olga", b"oleg"), *lines[1:]], 2)):
        audit_path.write_bytes(b"".join(broken))
        found = command(confdir, "audit", "verify")
        assert (found.returncode, f"is broken at line {number}:" in found.stderr) == (1, True)


def test_refused_credentials_are_recorded_and_limited(scene: Scene) -> None:
    infer = command(scene.proxy.confdir, "keys", "add", "alice").stdout.strip()
    old = command(scene.proxy.confdir, "keys", "add", "old", "--expires", "0s").stdout.strip()
    wait_until(lambda: scene.call("GET", "/api/balancer").json()["access"]["keys"] == 2, "the keys are known")
    assert scene.call("GET", "/api/tags", None).status_code == 401
    assert len(scene.entries()) == 2, "no credential, no entry"
    body = {"model": "llama3.2", "prompt": "hi"}
    assert scene.call("POST", "/api/generate", WRONG, body).status_code == 401
    assert scene.call("POST", "/api/generate", old, body).status_code == 401
    assert scene.call("DELETE", "/api/delete", infer, {"model": "llama3.2"}).status_code == 403
    assert scene.call("GET", "/api/agents", WRONG).status_code == 401
    assert scene.call("DELETE", "/api/agents/a", infer).status_code == 403
    entries = scene.wait_for(7)[2:]
    assert {entry["what"] for entry in entries} == {"credential.refused"}
    assert [(entry["who"], entry["object"], entry["status"]) for entry in entries] == [
        ("unknown", "/api/generate", 401),
        ("key old", "/api/generate", 401),
        ("key alice", "/api/delete", 403),
        ("unknown", "/api/agents", 401),
        ("key alice", "/api/agents/a", 403),
    ]
    for _ in range(2 * MAX_A_MINUTE):
        scene.call("GET", "/api/tags", WRONG)
    assert scene.call("POST", "/api/agents/a/drain").status_code == 200
    wait_until(lambda: scene.entries()[-1]["what"] == "agent.drain", "what came before is written")
    assert len(scene.entries()) <= 2 + 2 * MAX_A_MINUTE + 3
    assert not [secret for secret in (infer, old, WRONG) if secret in (scene.proxy.confdir / FILE_NAME).read_text()]
    assert command(scene.proxy.confdir, "audit", "verify").returncode == 0


def test_a_balancer_whose_audit_file_cannot_be_written_says_so_and_goes_on(scene: Scene) -> None:
    (scene.proxy.confdir / FILE_NAME).mkdir()
    assert scene.call("POST", "/api/agents/a/drain").status_code == 200
    wait_until(lambda: "agent.drain is missing in it" in scene.web.events(), "it is logged")
    assert command(scene.proxy.confdir, "audit", "verify").returncode == 1
