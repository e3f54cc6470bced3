"""Join codes over the control API, the wheel that hosts install, and what is said of older reporters."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

import agent_reporter
from ollama_balancer.api.app import ControlApi
from ollama_balancer.api.dashboard import FOLDER
from ollama_balancer.api.paths import CALLER
from ollama_balancer.api.reporter_wheel import reporter_wheel
from ollama_balancer.api.upgrades import is_older
from ollama_balancer.core import join_codes
from ollama_balancer.core.access import Key, Keyring, Right
from ollama_balancer.core.history import History
from ollama_balancer.core.queue import RequestQueue
from ollama_balancer.core.recent import Recent
from ollama_balancer.core.stats import RequestMetrics
from ollama_balancer.gateway.access import Access
from ollama_balancer.gateway.audit import AuditTrail
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.storage.keys import FILE_NAME, KeyStore
from tests.core.fakes import Clock, address, new_registry

OPERATOR = Caller("client", authorized=True)


class Keys:
    """The file with the keys, as the balancer follows it."""

    def __init__(self, path: Path, access: Access) -> None:
        self.store: KeyStore | None = KeyStore(path)
        self.access = access

    async def reload(self, *, whole: bool) -> None:
        assert self.store
        self.access.keyring = self.store.load()


class Balancer:
    """The control API with keys, under a clock that stands still."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.registry = new_registry(self.clock)
        self.access = Access(self.clock)
        self.keys = Keys(folder / FILE_NAME, self.access)
        self.written: list[Mapping[str, object]] = []
        audit = AuditTrail(self.clock)
        audit.write = self.written.append
        self.control = ControlApi(
            self.registry,
            RequestQueue(self.clock),
            RequestMetrics(),
            Recent(self.clock),
            History(self.clock),
            self.clock(),
            lambda agent: None,
            access=self.access,
            keys=self.keys,
            audit=audit,
            outward=lambda: "192.0.2.7:8080",
        )

    def call(self, path: str, body: Any, caller: Caller, host: str = "balancer:8080") -> httpx.Response:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[CALLER] = caller
            await self.control.app(scope, receive, send)

        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(app, client=("10.0.0.7", 40000))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.post(path, json=body)

        return asyncio.run(request())

    def code(self, **asked: Any) -> str:
        answer = self.call("/api/join-codes", asked, OPERATOR)
        assert answer.status_code == 201, answer.text
        assert answer.headers["Cache-Control"] == "no-store"
        code: str = answer.json()["code"]
        return code

    def join(self, code: str, name: str = "gpu-1") -> httpx.Response:
        field = (b"authorization", f"Bearer {code}".encode())
        caller = Caller("c", "h", "10.0.0.7", presented=True, credentials=(field,))
        return self.call("/api/join", {"name": name}, caller)

    def with_key(self, secret: str) -> Caller:
        key = self.access.find(secret.encode())
        return Caller("c", "h", "10.0.0.7", key=key, presented=True)


@pytest.fixture
def balancer(tmp_path: Path) -> Balancer:
    return Balancer(tmp_path)


def test_a_code_becomes_a_key_that_reports_for_one_agent_and_closes_no_door(balancer: Balancer) -> None:
    joined = balancer.join(balancer.code())
    assert joined.status_code == 201
    assert joined.headers["Cache-Control"] == "no-store"
    secret = joined.json()["secret"]
    assert joined.json() == {"name": "gpu-1", "key": "host@gpu-1", "secret": secret}
    host = balancer.with_key(secret)
    assert host.key is not None
    assert (set(host.key.rights), host.key.agent) == ({Right.REPORT}, "gpu-1")
    assert not balancer.access.needs_key
    assert balancer.access.refusal(Caller("anybody"), (Right.INFER,)) is None
    assert balancer.access.refusal(host, (Right.OPERATE,), always=True) is not None
    assert balancer.call("/api/agents", {"name": "gpu-1"}, host).status_code == 201
    refused = balancer.call("/api/agents", {"name": "gpu-2"}, host)
    assert (refused.status_code, "gpu-1 only" in refused.json()["error"]) == (409, True)
    again = balancer.call("/api/join", {"name": "other"}, host)
    assert (again.status_code, again.json()) == (200, {"name": "gpu-1", "key": "host@gpu-1", "secret": None})

    # A first client key closes it, and removing the host's key opens nothing.
    assert balancer.keys.store
    balancer.keys.store.add(Key("alice"))
    asyncio.run(balancer.keys.reload(whole=True))
    assert balancer.access.needs_key
    assert balancer.join(balancer.code(), "gpu-3").status_code == 201


def test_a_code_works_once_until_it_expires_and_not_after_a_restart(balancer: Balancer, tmp_path: Path) -> None:
    code = balancer.code(expires_in=60)
    assert balancer.join(code).status_code == 201
    expired = balancer.code(expires_in=60)
    balancer.clock.now += 60
    for each in (code, expired, "join_made-up", "", Balancer(tmp_path).code()):
        refused = balancer.join(each, "gpu-2")
        assert refused.status_code == 401
        assert "ollama-balancer join-code" in refused.json()["error"]
    assert [entry["what"] for entry in balancer.written].count("credential.refused") == 5


def test_a_name_is_joined_under_once_unless_the_code_says_it(balancer: Balancer) -> None:
    first = balancer.join(balancer.code()).json()["secret"]
    code = balancer.code()
    balancer.registry.register("static", address(9))
    for name in ("gpu-1", "static"):
        refused = balancer.join(code, name)
        assert (refused.status_code, f"join-code --name {name}" in refused.json()["error"]) == (409, True)
    for name in ("a:b", "x" * 60, "[::1]", "a."):
        assert balancer.join(code, name).status_code == 400
    assert balancer.join(code, "gpu-2").status_code == 201  # what was refused has not used it up
    second = balancer.join(balancer.code(name="gpu-1"), "whatever").json()
    assert (second["name"], second["key"]) == ("gpu-1", "host@gpu-1")
    assert balancer.access.find(first.encode()) is None
    assert balancer.access.find(second["secret"].encode()) is not None
    what = [(entry["what"], entry["object"]) for entry in balancer.written]
    assert ("join_code.refuse", "any") in what
    assert what.count(("host.join", "gpu-1")) == 2


def test_nobody_joins_while_the_keys_cannot_be_read(balancer: Balancer) -> None:
    code = balancer.code()
    balancer.access.keyring = Keyring(problem="the disk is gone")
    refused = balancer.join(code)
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
    assert "disk" not in refused.text
    balancer.access.keyring = Keyring()
    assert balancer.join(code).status_code == 201


def test_only_operators_make_codes_within_bounds(balancer: Balancer, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = balancer.join(balancer.code()).json()["secret"]
    assert balancer.call("/api/join-codes", {}, balancer.with_key(secret)).status_code == 403
    assert balancer.call("/api/join-codes", {}, Caller("anybody")).status_code == 401
    bodies: list[Any] = [{"expires_in": 59}, {"expires_in": 86_401}, {"name": "a b"}, {"name": "x" * 60}, {"x": 1}, []]
    for body in bodies:
        assert balancer.call("/api/join-codes", body, OPERATOR).status_code == 400
    monkeypatch.setattr(join_codes, "MAX_OPEN", 3)
    made = [balancer.call("/api/join-codes", {}, OPERATOR).status_code for _ in range(5)]
    assert made == [201, 201, 201, 409, 409]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("balancer:8080", "http://balancer:8080"),
        ("llm.example", "http://llm.example:80"),
        ("[2001:db8::1]:9000", "http://[2001:db8::1]:9000"),
        ("127.0.0.1:8080", "http://192.0.2.7:8080"),
        ("localhost:8080", "http://192.0.2.7:8080"),
        ("[::1]:8080", "http://192.0.2.7:8080"),
    ],
)
def test_the_lines_have_the_address_that_other_machines_have(balancer: Balancer, host: str, url: str) -> None:
    made = balancer.call("/api/join-codes", {}, OPERATOR, host).json()
    assert made["command"] == f"curl -fsS {url}/join | sh -s -- {made['code']}"
    assert made["powershell"] == f"& ([scriptblock]::Create((irm {url}/join.ps1))) {made['code']}"


def test_the_powershell_script_is_whole() -> None:
    text = (FOLDER / "join.ps1").read_text()
    assert text.isascii()
    assert text.rstrip().splitlines()[-1] == "Join-Fleet @args"
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    outside = [line for line in code if line and not line.startswith((" ", "}"))]
    assert outside == ["function Join-Fleet {", "Join-Fleet @args"]
    joined = "\n".join(code)
    for opening, closing in ("{}", "()", "[]"):
        assert joined.count(opening) == joined.count(closing)
    assert "Invoke-Expression" not in joined
    for needed in ("Get-FileHash -Algorithm SHA256", "OLLAMA_BALANCER_JOIN_CODE", "'--join'", "'@SHA256@'"):
        assert needed in joined


def test_the_wheel_is_whole_and_comes_out_the_same_each_time() -> None:
    wheel = reporter_wheel()
    reporter_wheel.cache_clear()
    assert reporter_wheel() == wheel
    assert hashlib.sha256(wheel.content).hexdigest() == wheel.sha256
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        info = f"ollama_agent_reporter-{agent_reporter.__version__}.dist-info"
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        recorded = {}
        for line in record:
            name, digest, size = line.split(",")
            recorded[name] = (digest, size)
        assert set(recorded) == set(names)
        for name, (digest, size) in recorded.items():
            content = archive.read(name)
            if name != f"{info}/RECORD":
                plain = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={plain}", str(len(content)))
        metadata = archive.read(f"{info}/METADATA").decode()
        assert "agent_reporter/__main__.py" in names
        assert "agent_reporter.__main__:main" in archive.read(f"{info}/entry_points.txt").decode()
    for line in (f"Version: {agent_reporter.__version__}", "Requires-Dist: psutil<8,>=6", "Provides-Extra: gpu"):
        assert line in metadata.splitlines()
    assert set(importlib.metadata.requires("ollama-agent-reporter") or ()) == {
        line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")
    }


def test_versions_are_compared_by_their_numbers() -> None:
    assert is_older("0.9.9", "0.10.0")
    assert is_older("1.2", "1.2.1")
    assert not is_older("0.10.0", "0.9.9")
    assert not is_older("1.2.0", "1.2")
    assert not is_older("1.0.0rc1", "1.0.0")
    assert not is_older("unknown", "1.0.0")
    assert not is_older("9" * 100, "1.0.0")
