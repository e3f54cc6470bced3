"""Prompts and answers in files by day: written by a real mitmdump, and read after it was killed."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader

from tests.e2e.harness import (
    PATIENCE,
    TOKEN,
    Hosts,
    environment,
    mitmproxy_tool,
    running_proxy,
    stream_lines,
    wait_until,
)

COMMAND = mitmproxy_tool("ollama-balancer")


def export(*arguments: str | Path) -> tuple[str, str]:
    """What it prints, and what it says."""
    done = subprocess.run(
        [COMMAND, "export", *arguments], env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return done.stdout, done.stderr


def records(*files: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export("--jsonl", *files)[0].splitlines()]


def whole_flows(folder: Path) -> int:
    """The number of flows in today's file."""
    paths = list(folder.glob("*.flow"))
    if not paths:
        return 0
    with paths[0].open("rb") as file:
        return len(list(FlowReader(file).stream()))


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a balancer that was killed after some requests, and what it has said."""
    path = tmp_path_factory.mktemp("killed")
    confdir, folder, hosts = path / "conf", path / "new" / "flows", Hosts()
    confdir.mkdir()
    arguments = ("--set", f"balancer_store={folder}", "--set", f"balancer_agents=one={hosts.start('one').url}")
    try:
        with running_proxy(confdir, *arguments) as proxy:
            proxy.wait_online("one")
            secret = proxy.control("POST", "/api/keys", {"name": "alice"}).json()["secret"]
            key = {"Authorization": f"Bearer {secret}"}
            wait_until(lambda: proxy.generate().status_code == 401, "a key is needed")
            proxy.http.headers.update(key)
            stream_lines(
                proxy, "/api/chat", {"model": "llama3.2", "messages": [{"role": "user", "content": "Why leeks?"}]}
            )
            assert proxy.generate("missing").status_code == 404
            assert proxy.http.get("/api/tags").status_code == 200
            prompt = f"My keys are {TOKEN} and {secret}."
            answer = proxy.http.post("/v1/completions", json={"model": "llama3.2", "prompt": prompt})
            assert answer.status_code == 200, answer.text
            wait_until(lambda: whole_flows(folder) == 3, "all are written")
            proxy.process.kill()
            proxy.process.wait(PATIENCE)
        assert all(text.encode() not in content for text in (TOKEN, secret) for content in content_of(folder).values())
        yield folder, proxy.log
    finally:
        hosts.stop()


def test_requests_are_kept_with_prompt_answer_and_why_and_without_secrets(killed: tuple[Path, str]) -> None:
    folder, said = killed
    assert f"Prompts and answers are kept in files, in {folder}: those of the last 7 days, at most 10.0g" in said
    [file] = folder.iterdir()
    assert re.fullmatch(r"ollama-\d{4}-\d\d-\d\d\.flow", file.name)
    assert (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    chat, missing, completion = records(folder)
    assert (chat["path"], chat["key"], chat["agent"], chat["outcome"]) == ("/api/chat", "alice", "one", "succeeded")
    assert chat["messages"] == [{"role": "user", "content": "Why leeks?"}]
    assert "simulated" in chat["answer"]
    assert chat["output_tokens"] > 10
    assert chat["mode"] == "adaptive" and chat["why"]
    assert 0 < chat["ttft_seconds"] <= chat["total_seconds"] < PATIENCE
    assert chat["load_seconds"] > 0
    assert (missing["status"], missing["outcome"], missing["agent"]) == (404, "rejected", None)
    assert completion["messages"] == [{"role": "user", "content": "My keys are *** and ***."}]
    assert completion["answer"] and completion["prompt_tokens"]


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(killed: tuple[Path, str], tmp_path: Path) -> None:
    [file] = killed[0].iterdir()
    cut, har = tmp_path / "cut.flow", tmp_path / "cut.har"
    cut.write_bytes(file.read_bytes()[:-10])
    assert export("--har", "-o", har, cut) == (
        "",
        f"{cut}: ends in the middle of a flow, or is damaged there; 2 flows before that were read\n",
    )
    assert stat.S_IMODE(har.stat().st_mode) == 0o600
    log = json.loads(har.read_text())["log"]
    assert (log["version"], len(log["entries"])) == ("1.2", 2)
    assert log["entries"][0]["_balancer"]["agent"] == "one"
    with har.open("rb") as read:  # by mitmproxy, which reads HAR as well
        paths = [each.request.path for each in FlowReader(read).stream() if isinstance(each, HTTPFlow)]
    assert paths == ["/api/chat", "/api/generate"]


@contextmanager
def viewing(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    process = subprocess.Popen(
        [COMMAND, "view", "--no-browser", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    output = process.stdout
    assert output
    try:
        found = next((m for line in output if (m := re.search(r"(http://\S+)/\?token=(\w+)", line))), None)
        assert found, "the page's address is printed"
        headers = {"Authorization": f"Bearer {found[2]}"}
        with httpx.Client(base_url=found[1], headers=headers, trust_env=False, timeout=PATIENCE) as page:
            yield process, page
    finally:
        process.kill()
        process.wait(PATIENCE)
        output.close()


def test_a_viewer_beside_a_running_balancer_shows_the_flows_and_touches_nothing(
    killed: tuple[Path, str], tmp_path: Path
) -> None:
    with running_proxy(tmp_path) as proxy:
        # What only the balancer is to load; the viewer reads nothing but the name of the folder.
        (tmp_path / "config.yaml").write_text(f"balancer_store: {killed[0]}\nscripts: [/nowhere.py]\n")
        proxy.process.send_signal(signal.SIGSTOP)  # which writes files of its own now and then
        try:
            before = content_of(tmp_path)
            with viewing("--confdir", tmp_path) as (process, page):
                wait_until(lambda: len(page.get("/flows").json()) == 3, "all are shown")
                flow = page.get("/flows").json()[0]
                assert flow["comment"].startswith("→ one · llama3.2 · “Why leeks?” · alice · ")
                shown = page.get(f"/flows/{flow['id']}/response/content/auto.json").json()
                assert shown["view_name"] == "Ollama"
                assert "== Decision ==" in shown["text"]
                options = page.get("/options").json()
                assert not [name for name in options if name.startswith("balancer_")]
                assert options["server"]["value"] is False
                folder = Path(options["confdir"]["value"])
                assert folder.is_dir() and folder != tmp_path
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
            assert content_of(tmp_path) == before
            assert not folder.exists()
        finally:
            proxy.process.send_signal(signal.SIGCONT)
        assert proxy.http.get("/api/agents").status_code == 200
