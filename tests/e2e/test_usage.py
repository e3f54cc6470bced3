"""The ledger through a real mitmdump: each request once, whatever becomes of it, and across restarts and kills."""

import csv
import io
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_balancer.core.access import Key, Limits, Right
from ollama_balancer.core.ledger import FIELDS
from ollama_balancer.core.stats import OUTCOMES
from ollama_balancer.core.usage_report import read_query
from ollama_balancer.simulator.timing import Timing
from ollama_balancer.storage.keys import FILE_NAME as KEY_FILE
from ollama_balancer.storage.keys import KeyStore
from ollama_balancer.storage.usage import FILE_NAME, WRITE_SECONDS, UsageFile

from .harness import TOKEN, Hosts, Proxy, running_proxy, wait_until

pytestmark = pytest.mark.e2e

OWNER = {"Authorization": f"Bearer {TOKEN}"}
MODELS = ("llama3.2:latest", "qwen3:8b")


@pytest.fixture(autouse=True)
def within_a_day() -> None:
    now = datetime.now(UTC)
    if now.date() != (now + timedelta(minutes=2)).date():
        pytest.skip("midnight UTC is near, and with it another day")


def key(folder: Path, name: str, *rights: Right, **fields: Any) -> str:
    store = KeyStore(folder / KEY_FILE)
    try:
        return store.add(Key(name, frozenset(rights or (Right.INFER,)), **fields))
    finally:
        store.close()


def usage(proxy: Proxy, secret: str = TOKEN, path: str = "/api/usage", **query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{proxy.url}{path}", params=query, headers={"x-api-key": secret} if secret != TOKEN else OWNER)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows


def chat(proxy: Proxy, secret: str, model: str = "llama3.2", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": False} | fields
    return httpx.post(f"{proxy.url}/api/chat", json=body, headers={"x-api-key": secret}, timeout=20)


def in_file(folder: Path, by: str = "key") -> dict[tuple[str | int, ...], int]:
    """The succeeded requests of each group, by what the file has."""
    file = UsageFile(folder / FILE_NAME)
    try:
        return {group: int(values[0]) for group, values in file.sums(read_query(by, None, None, time.time())).items()}
    finally:
        file.close()


def test_each_key_sees_its_own_and_who_may_read_sees_all(tmp_path: Path, hosts: Hosts) -> None:
    alice, bob, reader = key(tmp_path, "alice"), key(tmp_path, "bob"), key(tmp_path, "reader", Right.READ)
    host = hosts.start("a", *MODELS)
    with running_proxy(tmp_path, "--set", f"balancer_agents=a={host.url}") as proxy:
        assert usage(proxy) == []
        answers = [chat(proxy, alice).json(), chat(proxy, alice, "qwen3:8b").json(), chat(proxy, bob).json()]
        assert chat(proxy, alice, "no-such").status_code == 404
        assert httpx.get(f"{proxy.url}/api/tags", headers={"x-api-key": bob}).status_code == 200
        assert proxy.http.post("/api/show", json={"model": "llama3.2"}, headers=OWNER).status_code == 200
        rows = {(row["key"], row["model"]): row for row in usage(proxy, reader, by="key,model")}
        assert {place: row["requests"] for place, row in rows.items()} == {
            ("alice", "llama3.2:latest"): 1,
            ("alice", "qwen3:8b"): 1,
            ("alice", "other"): 1,
            ("bob", "llama3.2:latest"): 1,
            ("(token)", "llama3.2:latest"): 1,
        }
        assert rows["alice", "other"]["succeeded"] == 0
        mine = rows["alice", "qwen3:8b"]
        used = (answers[1]["prompt_eval_count"], answers[1]["eval_count"])
        assert (mine["prompt_tokens"], mine["output_tokens"]) == used
        assert mine["seconds"] > 0
        own = usage(proxy, alice, "/api/usage/me", by="key")
        assert [(row["key"], row["requests"]) for row in own] == [("alice", 3)]
        assert [row["model"] for row in usage(proxy, bob, "/api/usage/me")] == ["llama3.2:latest"]
        assert [row["agent"] for row in usage(proxy, bob, "/api/usage/me", by="agent")] == ["a"]
        for secret, status in ((alice, 403), (None, 401), ("ob_" + "A" * 43, 401)):
            headers = {"x-api-key": secret} if secret else {}
            assert httpx.get(f"{proxy.url}/api/usage", headers=headers).status_code == status
        assert proxy.http.get("/api/usage/me").status_code == 401
        answer = proxy.http.get("/api/usage", params={"by": "day,key", "format": "csv"}, headers=OWNER)
        assert answer.headers["Content-Type"].startswith("text/csv")
        table = list(csv.DictReader(io.StringIO(answer.text)))
        assert {row["key"]: row["requests"] for row in table} == {"(token)": "1", "alice": "3", "bob": "1"}
        for wrong in ("by=prompt", "from=yesterday", "to=2027-13-01", "format=xml"):
            refused = proxy.http.get(f"/api/usage?{wrong}", headers=OWNER)
            assert refused.status_code == 400
            assert refused.json()["error"].startswith(wrong.partition("=")[0])
        page = proxy.http.get("/metrics", headers=OWNER).text
        assert 'ollama_balancer_key_requests_total{key="alice",outcome="succeeded"} 2.0' in page
        assert alice not in page
        printed = command(tmp_path, "--by", "key")
        assert "alice" in printed
        assert alice not in proxy.log + printed
    assert in_file(tmp_path) == {("alice",): 2, ("bob",): 1, ("(token)",): 1}
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def command(folder: Path, *words: str) -> str:
    program = (sys.executable, "-m", "ollama_balancer.cli.main", "usage", "--confdir", str(folder))
    return subprocess.run([*program, *words], capture_output=True, text=True, check=True).stdout


def test_a_kill_loses_no_more_than_the_last_seconds(tmp_path: Path, hosts: Hosts) -> None:
    assert WRITE_SECONDS <= 5
    arguments = ("--set", f"balancer_agents=a={hosts.start('a').url}")
    with running_proxy(tmp_path, *arguments) as proxy:
        for _ in range(5):
            assert proxy.generate().status_code == 200
        wait_until(lambda: in_file(tmp_path) == {("(none)",): 5}, "all five are in the file")
        proxy.generate()
        proxy.process.send_signal(signal.SIGKILL)
        proxy.process.wait(20)
    assert in_file(tmp_path)["(none)",] in (5, 6)
    before = in_file(tmp_path)["(none)",]
    with running_proxy(tmp_path, *arguments) as proxy:
        assert proxy.generate().status_code == 200
        assert [row["succeeded"] for row in usage(proxy)] == [before + 1]


def test_the_tokens_of_the_day_outlive_a_restart(tmp_path: Path, hosts: Hosts) -> None:
    alice = key(tmp_path, "alice", limits=Limits(tokens_per_day=5_000))
    arguments = ("--set", f"balancer_agents=a={hosts.start('a').url}")
    with running_proxy(tmp_path, *arguments) as proxy:
        answer = chat(proxy, alice).json()
        used = answer["prompt_eval_count"] + answer["eval_count"]
    store = KeyStore(tmp_path / KEY_FILE)
    store.set("alice", limits=Limits(tokens_per_day=used + 1))
    with running_proxy(tmp_path, *arguments) as proxy:
        again = chat(proxy, alice)
        assert (again.status_code, again.headers["x-ratelimit-limit-tokens"]) == (200, str(used + 1))
        refused = chat(proxy, alice)
        assert refused.status_code == 429
        assert "tokens a day" in refused.text
    with running_proxy(tmp_path, *arguments) as proxy:
        assert chat(proxy, alice).status_code == 429
        rows = usage(proxy, alice, "/api/usage/me", by="key")
        assert [(row["requests"], row["succeeded"]) for row in rows] == [(4, 2)]
    store.close()


def test_an_answer_that_is_left_counts_once_and_as_far_as_it_came(tmp_path: Path, hosts: Hosts) -> None:
    alice = key(tmp_path, "alice")
    slow = hosts.start("slow", timing=Timing(load=0, prefill_rate=1e6, decode_rate=50, output_tokens=1_000_000))
    with running_proxy(tmp_path, "--set", f"balancer_agents=a={slow.url}") as proxy:
        body, headers = {"model": "llama3.2", "prompt": "hi"}, {"x-api-key": alice}
        with httpx.stream("POST", f"{proxy.url}/api/generate", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            for _ in range(5):
                next(lines)
        (row,) = wait_until(lambda: usage(proxy, alice, "/api/usage/me", by="key"), "the request is counted")
        assert (row["requests"], row["cancelled"]) == (1, 1)
        assert row["prompt_tokens"] > 0
        assert 5 <= row["output_tokens"] < 1_000_000


def test_a_request_that_failed_over_and_one_to_all_hosts_count_once(tmp_path: Path, hosts: Hosts) -> None:
    first, second = hosts.start("a"), hosts.start("b")
    arguments = ("--set", f"balancer_agents=a={first.url},b={second.url}", "--set", "balancer_mode=roundrobin")
    with running_proxy(tmp_path, *arguments) as proxy:
        proxy.wait_online("a", "b")
        first.faults.status = 503
        answers = [proxy.generate() for _ in range(2)]
        assert {answer.status_code for answer in answers} == {200}
        assert max(int(answer.headers["X-Balancer-Attempts"]) for answer in answers) == 2
        first.faults.status = None
        copied = proxy.http.post("/api/copy", json={"source": "llama3.2", "destination": "copy"}, headers=OWNER)
        assert (copied.status_code, copied.headers["X-Balancer-Attempts"]) == (200, "2")
        rows = {row["key"]: row for row in usage(proxy)}
        assert (rows["(none)"]["requests"], rows["(none)"]["succeeded"]) == (2, 2)
        assert rows["(none)"]["output_tokens"] == sum(answer.json()["eval_count"] for answer in answers)
        assert (rows["(token)"]["requests"], rows["(token)"]["succeeded"]) == (1, 1)


def test_a_damaged_file_is_renamed_and_nothing_stops(tmp_path: Path, hosts: Hosts) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    with running_proxy(tmp_path, "--set", f"balancer_agents=a={hosts.start('a').url}") as proxy:
        assert proxy.generate().status_code == 200
        assert [row["requests"] for row in usage(proxy)] == [1]
        assert proxy.log.count("is damaged") == 1
    assert in_file(tmp_path) == {("(none)",): 1}
    assert [each.read_bytes()[:11] for each in tmp_path.glob(f"{FILE_NAME}.damaged-*")] == [b"no database"]


def test_a_request_that_the_stop_cuts_off_is_counted(tmp_path: Path, hosts: Hosts) -> None:
    slow = hosts.start("slow", timing=Timing(load=0, prefill_rate=1e6, decode_rate=50, output_tokens=1_000_000))
    arguments = ("--set", f"balancer_agents=a={slow.url}", "--set", "balancer_stop_timeout=0")
    with running_proxy(tmp_path, *arguments) as proxy:
        body = {"model": "llama3.2", "prompt": "hi"}
        with httpx.stream("POST", f"{proxy.url}/api/generate", json=body) as answer:
            next(answer.iter_lines())
            proxy.stop()
    file = UsageFile(tmp_path / FILE_NAME)
    ((_, values),) = file.sums(read_query("key", None, None, time.time())).items()
    figures = dict(zip(FIELDS, values, strict=True))
    file.close()
    assert sum(figures[outcome] for outcome in OUTCOMES) == 1
    assert figures["output_tokens"] >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process")
def test_while_no_file_can_grow_requests_go_on_and_are_counted_later(tmp_path: Path, hosts: Hosts) -> None:
    import resource

    with running_proxy(tmp_path, "--set", f"balancer_agents=a={hosts.start('a').url}") as proxy:
        assert proxy.generate().status_code == 200
        wait_until(lambda: in_file(tmp_path) == {("(none)",): 1}, "the file has the first one")
        limit, most = resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (0, most))
        assert {proxy.generate().status_code for _ in range(3)} == {200}
        wait_until(lambda: "Usage cannot be saved" in proxy.log, "the failure is said")
        assert {proxy.generate().status_code for _ in range(3)} == {200}
        resource.prlimit(proxy.process.pid, resource.RLIMIT_FSIZE, (limit, most))
        wait_until(lambda: "Usage is saved to" in proxy.log, "it is written again", 60)
        wait_until(lambda: in_file(tmp_path) == {("(none)",): 7}, "all of them", 60)
        assert proxy.log.count("Usage cannot be saved") == 1
        assert [row["requests"] for row in usage(proxy)] == [7]
