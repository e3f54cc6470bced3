"""Client keys through a real mitmdump: who gets in, with which models, and how much."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from ollama_balancer.api.calls import CALLS
from ollama_balancer.api.reporter_wheel import wheel_name
from ollama_balancer.core.access import ALL_RIGHTS, Key, Limits, Right
from ollama_balancer.ollama.routes import ROUTES, Kind
from ollama_balancer.simulator.host import SimulatedOllama
from ollama_balancer.simulator.timing import Timing
from ollama_balancer.storage.keys import FILE_NAME, KeyStore
from tests.reporter.stubs import Program

from .harness import TOKEN, Hosts, Proxy, report, running_proxy, wait_until

pytestmark = pytest.mark.e2e

MODELS = ("llama3.2:latest", "qwen3:8b")


class Keys:
    """A balancer with two hosts, and the key file beside it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.store = KeyStore(proxy.confdir / FILE_NAME)
        self.http = httpx.Client(base_url=proxy.url, timeout=20, trust_env=False)

    def add(self, name: str, *rights: Right, **fields: Any) -> str:
        """A new key's secret, once the balancer knows it."""
        secret = self.store.add(Key(name, frozenset(rights or (Right.INFER,)), **fields))
        self.wait_known()
        return secret

    def wait_known(self) -> None:
        """Until the balancer has read as many keys as there are."""
        count = len(self.store.list_keys())
        wait_until(lambda: self.get("/api/balancer", TOKEN).json()["access"]["keys"] == count, "the keys are known")

    def get(self, path: str, secret: str | None = None) -> httpx.Response:
        return self.call("GET", path, secret)

    def call(
        self, method: str, path: str, secret: str | None = None, body: object = None, origin: str = ""
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        headers |= {"Origin": origin} if origin else {}
        return self.http.request(method, path, headers=headers, json=body)

    def chat(self, secret: str | None, model: str = "llama3.2", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": False} | fields
        return self.call("POST", "/api/chat", secret, body)


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    hosts = Hosts()
    first, second = hosts.start("a", *MODELS), hosts.start("b", *MODELS)
    try:
        with running_proxy(tmp_path, "--set", f"balancer_agents=a={first.url},b={second.url}") as proxy:
            proxy.wait_online("a", "b")
            yield Keys(proxy)
    finally:
        hosts.stop()


@pytest.fixture
def slow_host() -> Iterator[SimulatedOllama]:
    hosts = Hosts()
    try:
        yield hosts.start("slow", timing=Timing(load=0, prefill_rate=1e6, decode_rate=20, output_tokens=1_000_000))
    finally:
        hosts.stop()


def names(answer: httpx.Response) -> set[str]:
    value = answer.json()
    return {each.get("name") or each["id"] for each in value.get("models", value.get("data"))}


def test_the_first_key_closes_the_door_and_removing_it_does_not_open_it(keys: Keys) -> None:
    assert keys.chat(None).status_code == 200
    secret = keys.add("alice")
    wait_until(lambda: keys.chat(None).status_code == 401, "the door is closed")
    assert keys.chat(secret).status_code == 200
    assert keys.chat(TOKEN).status_code == 200
    assert keys.chat("ob_" + "A" * 43).status_code == 401
    keys.store.remove("alice")
    wait_until(lambda: keys.chat(secret).status_code == 401, "the key is gone")
    assert keys.chat(None).status_code == 401
    assert secret not in keys.proxy.log
    assert stat.S_IMODE((keys.proxy.confdir / FILE_NAME).stat().st_mode) == 0o600


def test_a_key_is_accepted_in_each_way_that_tools_have(keys: Keys) -> None:
    secret = keys.add("alice")
    for headers in ({"x-api-key": secret}, {"Authorization": f"bearer {secret}"}):
        assert httpx.get(f"{keys.proxy.url}/api/tags", headers=headers).status_code == 200
    assert httpx.get(f"{keys.proxy.url}/api/tags", auth=("anybody", secret)).status_code == 200
    assert httpx.get(f"{keys.proxy.url}/api/tags?api_key={secret}").status_code == 401
    assert httpx.get(f"{keys.proxy.url}/api/tags", auth=(secret, "")).status_code == 401
    assert secret not in keys.proxy.log


def test_no_route_goes_around_the_keys(keys: Keys) -> None:
    """Each route with each kind of key: what lets a caller in is its right, and nothing else."""
    now = time.time()
    secrets = {
        "infer": keys.add("infer", Right.INFER),
        "manage": keys.add("manage", Right.MANAGE),
        "read": keys.add("read", Right.READ),
        "operate": keys.add("operate", Right.OPERATE),
        "report": keys.add("report", Right.REPORT),
    }
    expired, disabled = (
        keys.store.add(Key("expired", ALL_RIGHTS, expires=now - 1)),
        keys.store.add(Key("disabled", ALL_RIGHTS, disabled=True)),
    )
    keys.wait_known()
    for route in ROUTES:
        path = route.path.replace("{}", "sha256:" + "0" * 64 if "blobs" in route.path else "no-such")
        for method in route.methods:
            for name, secret in {**secrets, "none": None, "expired": expired, "disabled": disabled}.items():
                body = {"model": "no-such", "source": "no-such", "destination": "x"} if method != "GET" else None
                status = keys.call(method, path, secret, body).status_code
                if path in ("/", "/api/version"):
                    assert status not in (401, 403), (method, path, name)
                elif name in ("none", "expired", "disabled"):
                    assert status == 401, (method, path, name)
                else:
                    lists = route.kind is Kind.MERGED and name in ("read", "operate")
                    manages = route.kind in (Kind.EVERY, Kind.NAMED)
                    needed = {"manage"} if manages else {"infer", "manage"} if route.kind is Kind.MERGED else {"infer"}
                    assert (status == 403) is not (lists or name in needed), (method, path, name, status)
    other = keys.add("other", Right.INFER, Right.MANAGE, models=("nothing*",))
    for route in ROUTES:
        about_a_model = route.kind is Kind.MODEL or route.path in (
            "/api/pull",
            "/api/create",
            "/api/copy",
            "/api/delete",
        )
        if about_a_model and not route.is_form:
            path = route.path.replace("{}", "llama3.2")
            body = {"model": "llama3.2", "source": "llama3.2", "destination": "nothing"}
            answer = keys.call(route.methods[-1], path, other, None if route.methods == ("GET",) else body)
            assert answer.status_code == 404, (path, answer.text)
    for path in ("/no-such", "/api/chat/", "//api/chat", "/v1/", "/api/ch%61t"):
        assert keys.call("POST", path, None, {"model": "llama3.2"}).status_code == 401, path
    assert keys.call("CONNECT", "/api/chat").status_code in (400, 401, 403, 405)
    assert keys.get("/health").status_code == 200


def test_no_control_call_goes_around_the_keys(keys: Keys) -> None:
    secrets = {right: keys.add(right.value, right) for right in Right}
    for call in CALLS:
        path = call.path.replace("{id}", "no-such").replace("{name}", "no-such").replace("{file}", wheel_name())
        kinds: list[tuple[Right | None, str | None]] = [*secrets.items(), (None, None)]
        for right, secret in kinds:
            body = {"name": "new", "overlap": 1} if call.body else None
            status = keys.call(call.method, path, secret, body).status_code
            has = right in call.rights or (right is Right.OPERATE and Right.READ in call.rights)
            if call.operation == "join":
                assert status == 401, call  # none of these is a join code
            elif not call.rights:
                assert status == 200, call
            elif right is None:
                assert status == 401, call
            else:
                assert (status == 403) is not has, (call.method, path, right, status)


def test_refusals_speak_the_callers_protocol(keys: Keys) -> None:
    secret = keys.add("alice", models=("llama3*",))
    for origin in ("", "http://localhost:3000"):
        body = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        answer = keys.call("POST", "/v1/chat/completions", "ob_" + "A" * 43, body, origin)
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert ("access-control-allow-origin" in answer.headers) is bool(origin)
        assert keys.call("POST", "/v1/messages", None, body, origin).json()["error"]["type"] == "authentication_error"
        assert isinstance(keys.call("POST", "/api/chat", None, body, origin).json()["error"], str)
    url = keys.proxy.url
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="ob_" + "B" * 43, max_retries=0).models.list()
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0).messages.create(
            model="llama3.2", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
        )
    with pytest.raises(ollama.ResponseError) as raised:
        ollama.Client(url, headers={"Authorization": f"Bearer {secret}"}).chat("qwen3:8b", [])
    assert raised.value.status_code == 404
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
    assert [model.id for model in client.models.list()] == ["llama3.2:latest"]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="qwen3:8b", messages=[{"role": "user", "content": "hi"}])


def test_a_key_sees_and_uses_only_its_models(keys: Keys) -> None:
    secret = keys.add("alice", Right.INFER, Right.MANAGE, models=("qwen3*",))
    every = {"llama3.2:latest", "qwen3:8b"}
    assert keys.chat(TOKEN).status_code == 200
    assert keys.chat(secret, "qwen3:8b").status_code == 200
    for path in ("/api/tags", "/v1/models", "/api/ps"):
        assert (names(keys.get(path, TOKEN)), names(keys.get(path, secret))) == (every, {"qwen3:8b"}), path
    assert keys.chat(secret).status_code == 404
    assert keys.call("POST", "/api/show", secret, {"model": "llama3.2"}).status_code == 404
    assert keys.get("/v1/models/llama3.2", secret).status_code == 404
    assert keys.call("DELETE", "/api/delete", secret, {"model": "llama3.2"}).status_code == 404
    for copy in ({"source": "llama3.2", "destination": "qwen3x"}, {"source": "qwen3:8b", "destination": "other"}):
        assert keys.call("POST", "/api/copy", secret, copy).status_code == 404
    assert keys.call("POST", "/api/create", secret, {"model": "qwen3-mine", "from": "llama3.2"}).status_code == 404
    assert names(keys.get("/api/tags", TOKEN)) == every
    unreadable = httpx.post(f"{keys.proxy.url}/api/chat", headers={"x-api-key": secret}, content=b'{"x":' + b"[" * 9)
    assert unreadable.status_code == 400


def test_no_body_hides_a_model_from_a_key(keys: Keys) -> None:
    secret = keys.add("alice", Right.INFER, Right.MANAGE, models=("llama3*",))
    many = '{"a":0,' + '"a":0,' * 13_000 + '"model":"qwen3:8b","source":"qwen3:8b","destination":"stolen"}'
    null = '"from":null,"destination":null}'
    bodies = [
        ("DELETE", "/api/delete", many, 400),
        ("POST", "/api/pull", many, 400),
        ("POST", "/api/copy", many, 400),
        ("POST", "/api/create", many, 400),
        ("POST", "/api/show", many, 400),
        ("POST", "/api/create", '{"model":"llama3-x","from":"qwen3:8b",' + null, 404),
        ("POST", "/api/copy", '{"source":"llama3.2","destination":"qwen3-x",' + null, 404),
        ("POST", "/api/create", '{"model":"llama3-x","modelfile":"FROM qwen3:8b"}', 403),
        ("POST", "/api/pull", "{}", 400),
    ]
    for method, path, body, status in bodies:
        answer = httpx.request(method, f"{keys.proxy.url}{path}", content=body, headers={"x-api-key": secret})
        assert answer.status_code == status, (path, body[:60], answer.text)
    form = {"file": ("a.wav", b"RIFF")}
    url = f"{keys.proxy.url}/v1/audio/transcriptions?{'a&' * 100}model=qwen3:8b"
    assert httpx.post(url, data={"model": "llama3.2"}, files=form, headers={"x-api-key": secret}).status_code == 400
    assert "qwen3" not in keys.chat(secret, "qwen3:8").text.replace("'qwen3:8'", "")
    assert names(keys.get("/api/tags", TOKEN)) == {"llama3.2:latest", "qwen3:8b"}


def test_unloading_needs_the_right_to_manage(keys: Keys) -> None:
    infer, manage = keys.add("infer"), keys.add("manage", Right.INFER, Right.MANAGE)
    unload = {"model": "llama3.2", "keep_alive": 0}
    assert keys.call("POST", "/api/generate", infer, unload).status_code == 403
    assert keys.call("POST", "/api/generate", manage, unload).status_code == 200


def test_over_its_limits_a_key_waits_for_the_next_minute(keys: Keys) -> None:
    secret = keys.add("alice", limits=Limits(requests_per_minute=2))
    other = keys.add("bob")
    first = keys.chat(secret)
    assert (first.status_code, first.headers["x-ratelimit-limit-requests"]) == (200, "2")
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert keys.chat(secret).status_code == 200
    refused = keys.chat(secret)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert keys.chat(other).status_code == 200
    url = keys.proxy.url
    with pytest.raises(openai.RateLimitError):
        openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0).chat.completions.create(
            model="llama3.2", messages=[{"role": "user", "content": "hi"}]
        )
    with pytest.raises(anthropic.RateLimitError):
        anthropic.Anthropic(base_url=url, api_key=secret, max_retries=0).messages.create(
            model="llama3.2", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
        )
    with pytest.raises(ollama.ResponseError) as raised:
        ollama.Client(url, headers={"x-api-key": secret}).chat("llama3.2", [{"role": "user", "content": "hi"}])
    assert raised.value.status_code == 429
    keys.store.set("alice", limits=Limits(requests_per_minute=100))
    wait_until(lambda: keys.chat(secret).status_code == 200, "the new limit")


def test_the_clients_back_off_as_long_as_they_are_told_and_then_succeed(keys: Keys) -> None:
    secret = keys.add("alice", limits=Limits(requests_per_minute=60))
    url, hi = keys.proxy.url, "hi"

    def use_up() -> None:
        wait_until(lambda: keys.chat(secret, options={"num_predict": 1}).status_code == 429, "the limit")

    use_up()
    answer = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=3).chat.completions.create(
        model="llama3.2", messages=[{"role": "user", "content": hi}]
    )
    assert answer.choices
    use_up()
    reply = anthropic.Anthropic(base_url=url, api_key=secret, max_retries=3).messages.create(
        model="llama3.2", max_tokens=5, messages=[{"role": "user", "content": hi}]
    )
    assert reply.content


def test_a_key_has_so_many_requests_at_once_and_gives_each_back(tmp_path: Path, slow_host: SimulatedOllama) -> None:
    with running_proxy(tmp_path, "--set", f"balancer_agents=a={slow_host.url}") as proxy:
        proxy.wait_online("a")
        keys = Keys(proxy)
        secret = keys.add("alice", limits=Limits(parallel=1))
        headers, body = {"x-api-key": secret}, {"model": "llama3.2", "prompt": "hi"}
        with httpx.stream("POST", f"{proxy.url}/api/generate", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert keys.chat(secret).status_code == 429
        limited = {"num_predict": 1}
        wait_until(lambda: keys.chat(secret, options=limited).status_code == 200, "the request that was left is over")


def test_tokens_are_counted_as_they_are_used(keys: Keys) -> None:
    secret = keys.add("alice", limits=Limits(tokens_per_day=100_000))
    answer = keys.chat(secret, options={"num_predict": 20})
    used = answer.json()["prompt_eval_count"] + answer.json()["eval_count"]
    left = keys.chat(secret, options={"num_predict": 20}).headers["x-ratelimit-remaining-tokens"]
    reserved = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert 100_000 - reserved >= 20
    assert 100_000 - int(left) == used + (100_000 - reserved)


def test_a_reporters_key_reports_for_its_own_agent_and_for_no_other(keys: Keys) -> None:
    one, other = keys.add("one", Right.REPORT), keys.add("other", Right.REPORT)
    registration = {"name": "gpu-1", "url": "http://127.0.0.1:1", "instance": "first"}
    assert keys.call("POST", "/api/agents", one, registration).status_code == 201
    metrics = report()
    assert keys.call("POST", "/api/agents/gpu-1/metrics", one, metrics).status_code == 204
    assert keys.call("POST", "/api/agents/gpu-1/metrics", other, metrics).status_code == 404
    assert keys.call("POST", "/api/agents/gpu-1/drain", other).status_code == 404
    assert keys.call("POST", "/api/agents", other, registration).status_code == 409
    for agent in ("a", "b"):
        assert keys.call("POST", f"/api/agents/{agent}/drain", one).status_code == 404
        stolen = {"name": agent, "url": "http://10.9.9.9:11434"}
        assert keys.call("POST", "/api/agents", one, stolen).status_code == 409
    assert keys.call("POST", "/api/agents/gpu-1/drain", one).status_code == 200
    assert keys.call("POST", "/api/agents/gpu-1/resume", one).status_code == 200
    assert keys.get("/api/agents/gpu-1", one).status_code == 403
    assert keys.call("DELETE", "/api/agents/gpu-1", one).status_code == 403
    assert keys.chat(one).status_code == 403


def test_a_reporters_key_gets_no_hold_of_a_host_under_another_name(keys: Keys) -> None:
    secret = keys.add("one", Right.REPORT)
    port = keys.get("/api/agents/a", TOKEN).json()["url"].rsplit(":", 1)[1]
    alias = {"name": "alias", "url": f"http://localhost:{port}"}
    assert keys.call("POST", "/api/agents", secret, alias).status_code == 201
    wait_until(lambda: keys.get("/api/agents/alias", TOKEN).json()["alias_of"] == "a", "they are known as one host")
    assert keys.call("POST", "/api/agents/alias/metrics", secret, report(models=[])).status_code == 204
    assert keys.call("POST", "/api/agents/alias/drain", secret).status_code == 409
    assert keys.get("/api/agents/a", TOKEN).json()["status"] == "online"
    assert keys.call("POST", "/api/agents", TOKEN, {"name": "manual", "url": "http://10.9.9.9:1"}).status_code == 201
    moved = {"name": "manual", "url": "http://127.0.0.1:1"}
    assert keys.call("POST", "/api/agents", secret, moved).status_code == 409


def test_a_file_that_is_gone_opens_nothing(keys: Keys) -> None:
    secret = keys.add("alice")
    keys.store.close()
    path = keys.proxy.confdir / FILE_NAME
    path.rename(path.with_name("moved"))
    wait_until(lambda: keys.get("/api/tags", secret).status_code == 503, "nobody gets in")
    assert keys.get("/api/tags").status_code == 503
    assert keys.get("/api/tags", TOKEN).status_code == 200
    path.with_name("moved").rename(path)
    wait_until(lambda: keys.get("/api/tags", secret).status_code == 200, "the file is back")


def test_keys_are_managed_over_the_api(keys: Keys) -> None:
    added = keys.call("POST", "/api/keys", TOKEN, {"name": "alice", "requests_per_minute": 5, "models": ["qwen3*"]})
    assert added.status_code == 201
    secret = added.json()["secret"]
    assert keys.chat(secret, "qwen3:8b").status_code == 200, "at once"
    assert keys.call("POST", "/api/keys", TOKEN, {"name": "alice"}).status_code == 409
    listed = keys.get("/api/keys", TOKEN).json()["keys"]
    assert [(key["name"], key["requests_per_minute"], key["rights"]) for key in listed] == [("alice", 5, ["infer"])]
    assert secret not in json.dumps(listed)
    rotated = keys.call("POST", "/api/keys/alice/rotate", TOKEN, {"overlap": 0}).json()["secret"]
    assert (keys.chat(secret, "qwen3:8b").status_code, keys.chat(rotated, "qwen3:8b").status_code) == (401, 200)
    assert keys.call("PATCH", "/api/keys/alice", TOKEN, {"disabled": True}).json()["problem"]
    assert keys.chat(rotated, "qwen3:8b").status_code == 401
    assert keys.call("PATCH", "/api/keys/alice", TOKEN, {"rights": ["all"]}).status_code == 400
    assert keys.call("DELETE", "/api/keys/alice", TOKEN).status_code == 204
    assert keys.get("/api/keys/alice", TOKEN).status_code == 404


def test_a_damaged_file_lets_nobody_in_but_the_token(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    store = KeyStore(path)
    secret = store.add(Key("alice"))
    store.close()
    path.write_bytes(b"no database" * 1000)
    for _ in range(2):  # also once it was set aside
        with running_proxy(tmp_path) as proxy:
            keys = Keys(proxy)
            assert {keys.get("/api/tags", each).status_code for each in (secret, None)} == {503}
            assert keys.get("/api/agents", secret).status_code == 503
            assert keys.get("/api/agents", TOKEN).status_code == 200
            assert "is damaged" in proxy.log
    assert [each.read_bytes()[:11] for each in tmp_path.glob(f"{FILE_NAME}.damaged-*")] == [b"no database"]
    with running_proxy(tmp_path) as proxy:
        keys = Keys(proxy)
        again = keys.add("bob", Right.READ)
        assert keys.get("/api/agents", again).status_code == 200
        assert keys.get("/api/agents", secret).status_code == 401


def test_wrong_keys_are_slowed_by_address_and_right_ones_are_not(keys: Keys) -> None:
    secret = keys.add("alice")
    statuses = {keys.chat("ob_" + "A" * 43).status_code for _ in range(12)}
    assert statuses == {401, 429}
    assert keys.chat(secret).status_code == 200


def test_who_runs_it_can_leave_it_open_or_close_it_without_a_key(tmp_path: Path) -> None:
    KeyStore(tmp_path / FILE_NAME).add(Key("alice"))
    with running_proxy(tmp_path, "--set", "balancer_access=open") as proxy:
        assert proxy.http.get("/api/tags").status_code != 401
    other = tmp_path / "other"
    other.mkdir()
    with running_proxy(other, "--set", "balancer_access=keys") as proxy:
        assert httpx.get(f"{proxy.url}/api/tags").status_code == 401
        assert httpx.get(f"{proxy.url}/").status_code != 401


def test_the_command_line_and_the_balancer_share_the_keys(keys: Keys) -> None:
    def command(*arguments: str) -> str:
        program = (sys.executable, "-m", "ollama_balancer.cli.main", "keys")
        run = subprocess.run(
            [*program, *arguments, "--confdir", str(keys.proxy.confdir)],
            capture_output=True,
            text=True,
            check=True,
        )
        return run.stdout

    secret = command("add", "carol", "--rpm", "50").strip()
    wait_until(lambda: keys.chat(secret).status_code == 200, "the key is known")
    assert secret not in command("list") + command("show", "carol")
    command("disable", "carol")
    wait_until(lambda: keys.chat(secret).status_code == 401, "the key is disabled")


def test_a_trusted_proxy_says_who_the_client_is(tmp_path: Path) -> None:
    with running_proxy(
        tmp_path, "--set", "balancer_trusted_proxies=127.0.0.1", "--set", "balancer_access=keys"
    ) as proxy:

        def wrong(address: str) -> int:
            headers = {"X-Forwarded-For": f"6.6.6.6, {address}", "x-api-key": "ob_" + "A" * 43}
            return httpx.get(f"{proxy.url}/api/tags", headers=headers).status_code

        assert {wrong("203.0.113.7") for _ in range(12)} == {401, 429}
        assert wrong("203.0.113.8") == 401


def test_a_reporter_works_with_a_key_of_its_own_which_a_restart_does_not_forget(tmp_path: Path) -> None:
    hosts, confdir = Hosts(), tmp_path / "conf"
    confdir.mkdir()
    secret = KeyStore(confdir / FILE_NAME).add(Key("hosts", frozenset((Right.REPORT,))))
    try:
        host = hosts.start("h", "llama3.2")
        with running_proxy(confdir) as proxy:
            keys = Keys(proxy)
            own = ("--name", "h", "--ollama", host.url, "--advertise", host.url, "--interval", "1")
            reporter = Program(["--balancer", proxy.url, "--token", secret, *own], tmp_path)
            try:
                wait_until(lambda: keys.chat(TOKEN).status_code == 200, "the host reports and serves")
                assert reporter.terminate() == 0
            finally:
                reporter.close()
            assert keys.get("/api/agents/h", TOKEN).json()["status"] == "draining"
            assert secret not in proxy.log + reporter.out + reporter.err
        with running_proxy(confdir) as proxy:
            keys = Keys(proxy)
            assert keys.call("POST", "/api/agents/h/resume", secret).status_code == 200
            assert keys.get("/api/agents/h", TOKEN).json()["source"] == "registered"
    finally:
        hosts.stop()
