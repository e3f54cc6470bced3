"""Clients of addresses that the balancer does not let in by itself."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from ollama_balancer.core.access import Key
from ollama_balancer.storage.keys import FILE_NAME, KeyStore
from tests.e2e.harness import ADDON, PATIENCE, TOKEN, Hosts, Proxy, free_port, running_proxy, wait_until

ADDRESSES = {
    "127.0.0.2": "8.8.8.8",
    "127.0.0.3": "::ffff:8.8.4.4",
    "127.0.0.4": "192.168.7.7",
    "127.0.0.5": "2001:4860:4860::8888",
}
"""Who connects from the one is taken to have connected from the other."""

SCRIPT = """
import importlib.util
from mitmproxy.connection import Client

class Elsewhere:
    def client_connected(self, client: Client) -> None:
        address, *rest = client.peername
        client.peername = ({addresses!r}.get(address, address), *rest)

spec = importlib.util.spec_from_file_location("balancer_script", {addon!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
addons = [Elsewhere(), *script.addons]
"""


@pytest.fixture
def addon(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere.py"
    path.write_text(SCRIPT.format(addresses=ADDRESSES, addon=str(ADDON)))
    return path


def client(proxy: Proxy, address: str) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=proxy.url, transport=transport, timeout=PATIENCE)


def test_public_addresses_get_a_403_in_their_protocol_and_one_line_of_the_log(
    tmp_path: Path, addon: Path, hosts: Hosts
) -> None:
    host = hosts.start("a")
    with running_proxy(tmp_path, "--set", f"balancer_agents=a={host.url}", addon=addon) as proxy:
        proxy.wait_online("a")
        chat = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        with client(proxy, "127.0.0.2") as stranger:
            for path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/api/blobs/sha256:" + "0" * 64):
                answer = stranger.post(path, json=chat)
                assert answer.status_code == 403
                error = answer.json()["error"]
                assert isinstance(error, dict) == path.startswith("/v1/")
                assert "balancer_allow_from" in (error if isinstance(error, str) else error["message"])
            for path in ("/", "/health", "/metrics", "/dashboard", "/api/agents", "/nope"):
                assert stranger.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 403
            assert stranger.request("CONNECT", "/").status_code in (400, 403)
        with client(proxy, "127.0.0.3") as mapped, client(proxy, "127.0.0.5") as six:
            assert (mapped.get("/").status_code, six.get("/").status_code) == (403, 403)
        with client(proxy, "127.0.0.4") as private:
            assert private.post("/api/chat", json=chat).status_code == 200
        named = [line for line in proxy.log.splitlines() if "balancer_allow_from" in line]
        assert [line.partition("balancer_allow_from=")[2].split()[0] for line in named] == [
            "8.8.8.8",
            "8.8.4.4",
            "2001:4860:4860::8888",
        ]
        assert "block_global" not in proxy.log
        assert "8.8.8.8:" not in "".join(line for line in proxy.log.splitlines() if "CONNECT" in line)
        assert proxy.introspect()["contexts"] == 0


def test_the_option_lets_them_in(tmp_path: Path, addon: Path, hosts: Hosts) -> None:
    host = hosts.start("a")
    arguments = ("--set", f"balancer_agents=a={host.url}", "--set", "balancer_allow_from=8.8.0.0/16, 2001:4860::/32")
    with running_proxy(tmp_path, *arguments, addon=addon) as proxy:
        proxy.wait_online("a")
        for address in ("127.0.0.2", "127.0.0.3", "127.0.0.5"):
            with client(proxy, address) as allowed:
                answer = allowed.post("/api/generate", json={"model": "llama3.2", "prompt": "x", "stream": False})
                assert answer.status_code == 200, answer.text
        assert "refused" not in proxy.log


def test_where_calls_need_a_key_any_address_may_connect_and_plain_http_is_warned_of_once(
    tmp_path: Path, addon: Path, hosts: Hosts
) -> None:
    secret = KeyStore(tmp_path / FILE_NAME).add(Key("alice"))
    with running_proxy(tmp_path, addon=addon) as proxy:
        proxy.http.get("/api/tags", headers={"x-api-key": secret})
        assert "unencrypted" not in proxy.log, "over loopback nobody listens"
        for address in ("127.0.0.2", "127.0.0.5", "127.0.0.4", "127.0.0.2"):
            with client(proxy, address) as stranger:
                assert stranger.get("/api/tags").status_code == 401
                assert stranger.get("/api/tags", headers={"x-api-key": secret}).status_code == 503, "no host is online"
        wait_until(lambda: "8.8.8.8 sends its key unencrypted" in proxy.log, "the warning")
        assert proxy.log.count("unencrypted") == 1
        assert secret not in proxy.log


def test_block_private_of_mitmproxy_still_holds(tmp_path: Path, addon: Path) -> None:
    with running_proxy(tmp_path, "--set", "block_private=true", addon=addon) as proxy:
        with client(proxy, "127.0.0.2") as stranger:
            assert stranger.get("/").status_code == 403
        assert proxy.http.get("/health").status_code == 503  # loopback is never blocked


def test_strangers_are_not_among_the_flows(tmp_path: Path, addon: Path) -> None:
    web_port = free_port()
    web = ("--no-web-open-browser", "--web-port", str(web_port), "--set", "web_password=x")
    with running_proxy(tmp_path, *web, tool="mitmweb", addon=addon) as proxy:
        with client(proxy, "127.0.0.2") as stranger:
            assert stranger.get("/api/version").status_code == 403
        with client(proxy, "127.0.0.4") as known:
            assert known.get("/api/tags").status_code == 503
        flows = httpx.get(f"http://127.0.0.1:{web_port}/flows?token=x", timeout=PATIENCE, follow_redirects=True)
        assert flows.status_code == 200, flows.text
        assert [flow["request"]["path"] for flow in json.loads(flows.text)] == ["/api/tags"]
