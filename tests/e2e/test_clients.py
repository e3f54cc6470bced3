"""The real client packages, and the ways to reach the balancer."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import ollama
import openai
import pytest

from tests.e2e.harness import Hosts, Proxy, running_proxy


def two_hosts(hosts: Hosts) -> list[str]:
    agents = ",".join(f"{name}={hosts.start(name, 'llama3.2', 'qwen3').url}" for name in ("one", "two"))
    return ["--set", f"balancer_agents={agents}"]


def served(hosts: Hosts) -> list[int]:
    return [host.counts["succeeded"] for host in hosts.all]


def test_the_ollama_client_chats_streamed_and_not(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, *two_hosts(hosts)) as proxy:
        proxy.wait_online("one", "two")
        client = ollama.Client(proxy.url, trust_env=False)
        messages = [{"role": "user", "content": "hello"}]
        whole = client.chat("llama3.2", messages)
        assert whole.done
        assert whole.message.content
        parts = list(client.chat("llama3.2", messages, stream=True))
        assert parts[-1].done
        assert "".join(part.message.content or "" for part in parts)
        assert client.generate("qwen3", "hello").response
        assert {model.model for model in client.list().models} == {"llama3.2:latest", "qwen3:latest"}
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
            client.chat("nope", messages)
        assert caught.value.status_code == 404
        assert sum(served(hosts)) == 3
        assert min(served(hosts)) >= 1


def test_the_openai_client_chats_streamed_and_not(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, *two_hosts(hosts)) as proxy:
        proxy.wait_online("one", "two")
        with openai.OpenAI(
            base_url=f"{proxy.url}/v1",
            api_key="unused",
            http_client=openai.DefaultHttpxClient(trust_env=False),
            max_retries=0,
        ) as client:
            whole = client.chat.completions.create(model="llama3.2", messages=[{"role": "user", "content": "hello"}])
            assert whole.choices[0].message.content
            stream = client.chat.completions.create(
                model="llama3.2", messages=[{"role": "user", "content": "hello"}], stream=True
            )
            chunks = list(stream)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert chunks[-1].choices[0].finish_reason
            assert {model.id for model in client.models.list()} == {"llama3.2:latest", "qwen3:latest"}
            with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
                client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hello"}])
        assert sorted(served(hosts)) == [1, 1]


def test_a_stream_that_breaks_off_is_the_clients_own_error(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
        proxy.wait_online("one")
        host.faults.cut_after_chunks = 2
        with pytest.raises(ollama.ResponseError, match="failed in the middle of its answer"):
            list(ollama.Client(proxy.url, trust_env=False).generate("llama3.2", "hi", stream=True))
        with openai.OpenAI(
            base_url=f"{proxy.url}/v1",
            api_key="unused",
            http_client=openai.DefaultHttpxClient(trust_env=False),
            max_retries=0,
        ) as client:
            stream = client.chat.completions.create(
                model="llama3.2", messages=[{"role": "user", "content": "hello"}], stream=True
            )
            with pytest.raises(openai.APIError, match="failed in the middle of its answer"):
                list(stream)


def test_an_explicit_proxy_client_reaches_the_fleet_whatever_host_it_names(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, *two_hosts(hosts)) as proxy:
        proxy.wait_online("one", "two")
        with httpx.Client(proxy=proxy.url, trust_env=False, timeout=30) as client:
            response = client.post("http://ollama.test:11434/api/generate", json={"model": "qwen3", "prompt": "x"})
            assert response.status_code == 200
            assert response.headers["X-Balancer-Agent"] in ("one", "two")
            stray = client.get("http://ollama.test:11434/index.html")
            assert stray.status_code == 404
            assert "index.html" in stray.json()["error"]


def test_the_reverse_mode_to_anything_reaches_the_fleet(tmp_path: Path, hosts: Hosts) -> None:
    with running_proxy(tmp_path, *two_hosts(hosts), "--mode", "reverse:http://anything.test") as proxy:
        proxy.wait_online("one", "two")
        assert proxy.generate().status_code == 200
        assert proxy.http.get("/api/version").json() == {"version": "0.33.0"}


def connect(proxy: Proxy, target: str) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as s:
        s.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        return s.recv(65536)


def test_it_is_no_open_proxy(tmp_path: Path, hosts: Hosts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as secret, running_proxy(tmp_path, *two_hosts(hosts)) as proxy:
        proxy.wait_online("one", "two")
        secret.setblocking(False)
        target = f"127.0.0.1:{secret.getsockname()[1]}"
        assert b" 403 " in connect(proxy, target).split(b"\r\n")[0]
        with httpx.Client(proxy=proxy.url, trust_env=False, timeout=30) as client:
            for path in ("/", "/api/generate", "/secret", "/api/version"):
                response = client.request("GET", f"http://{target}{path}")
                assert response.status_code in (200, 404, 405)
                assert "secret" not in response.text or response.status_code == 404
        with pytest.raises(BlockingIOError):
            secret.accept()


def test_the_first_request_after_the_start_is_served(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one")
    for _ in range(2):
        with running_proxy(tmp_path, "--set", f"balancer_agents=one={host.url}") as proxy:
            assert proxy.generate().status_code == 200
