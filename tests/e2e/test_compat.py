"""What the balancer changes in mitmproxy is given back; what it misses there is told at the start."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_balancer.mitm import versions
from tests.e2e.harness import PATIENCE, ROOT, Hosts, Proxy, refused_start, running_proxy, stream_lines, wait_until

PATCHED = Path(__file__).with_name("patched.py")
WORKS_WITH = "mitmproxy 12.2.2 to 12.3.1"


def ask(proxy: Proxy, **query: list[str]) -> dict[str, Any]:
    """What `patched.py` says, over a connection of its own."""
    with httpx.Client(proxy=proxy.url, trust_env=False, timeout=PATIENCE) as client:
        value: dict[str, Any] = client.get(f"{proxy.url}/patched", params=query).json()
        return value


def test_a_reload_keeps_all_that_is_changed_in_mitmproxy_and_unloading_takes_all_of_it_back(
    tmp_path: Path, hosts: Hosts
) -> None:
    copy = tmp_path / "addon"
    shutil.copytree(ROOT / "addon", copy, ignore=shutil.ignore_patterns("__pycache__"))
    agents = ("--set", f"balancer_agents=a={hosts.start('a').url}")
    with running_proxy(tmp_path, *agents, addon=copy / "balancer.py", before=PATCHED) as proxy:
        proxy.wait_online("a")
        stream_lines(proxy, "/api/generate", {"model": "llama3.2", "prompt": "x"})
        loaded = ask(proxy)
        changed = loaded["differences"]
        assert len(changed) > 30, changed

        before = proxy.log.count("Loading script")
        (copy / "balancer.py").touch()
        wait_until(lambda: proxy.log.count("Loading script") > before, "the script is loaded again")
        assert proxy.generate().status_code == 200
        assert ask(proxy)["differences"] == changed

        others = [script for script in loaded["scripts"] if not script.endswith("balancer.py")]
        ask(proxy, scripts=others)
        wait_until(lambda: ask(proxy)["scripts"] == others, "the script is unloaded")
        wait_until(lambda: not ask(proxy)["differences"], "all is as before")

        ask(proxy, scripts=loaded["scripts"])
        # The selector comes with the first relayed answer.
        wait_until(lambda: set(changed) - set(ask(proxy)["differences"]) <= {"selector"}, "it is loaded once more")
        with httpx.Client(base_url=proxy.url, trust_env=False, timeout=PATIENCE) as client:
            body = {"model": "llama3.2", "prompt": "hi", "stream": False}
            wait_until(lambda: client.post("/api/generate", json=body).status_code == 200, "it serves")
        assert "Traceback" not in proxy.log


def script(folder: Path, source: str) -> Path:
    path = folder / "before.py"
    path.write_text(source)
    return path


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        (
            "from mitmproxy.proxy.layers.http import _http1\ndel _http1.make_body_reader",
            "mitmproxy.proxy.layers.http._http1:make_body_reader is missing",
        ),
        (
            "from mitmproxy.proxy.server import ConnectionHandler as C\nC.drain_writers = lambda self, more: None",
            "mitmproxy.proxy.server:ConnectionHandler.drain_writers has changed",
        ),
        ("import h11._readers\ndel h11._readers.ChunkedReader", "h11._readers:ChunkedReader is missing"),
        (
            "from mitmproxy.proxy.layers.http import _http_h2\ndel _http_h2.BufferedH2Connection.stream_window_updated",
            "mitmproxy.proxy.layers.http._http2:BufferedH2Connection has changed",
        ),
        ("from mitmproxy.proxy.layers import http\ndel http.DropStream", "cannot import name 'DropStream'"),
    ],
)
def test_without_an_indispensable_name_it_refuses_to_start_and_says_what_it_works_with(
    tmp_path: Path, source: str, missing: str
) -> None:
    status, log = refused_start(tmp_path, before=script(tmp_path, source))
    assert status != 0
    assert missing in log
    assert f"works with {WORKS_WITH}" in log
    assert "is listening" not in log.partition("works with")[0]
    if "cannot import" not in missing:
        assert "Traceback" not in log


OFF = "Disabled: "
UNTESTED = "from mitmproxy import version\nversion.VERSION = '12.9.0'"
NO_PAUSE = "from mitmproxy.proxy.layer import Layer\ndel Layer.__annotations__['_paused']"
OTHER_MANAGER = """
from mitmproxy.addonmanager import AddonManager
register = AddonManager.register
AddonManager.register = lambda self, addon, name=None: register(self, addon)
"""


@pytest.mark.parametrize(
    ("source", "why", "relays", "hooks"),
    [
        (UNTESTED, "not tested with this version (mitmproxy 12.9.0", False, False),
        (NO_PAUSE, "mitmproxy.proxy.layer:Layer has changed", False, True),
        (OTHER_MANAGER, "mitmproxy.addonmanager:AddonManager.register has changed", True, False),
    ],
    ids=["untested", "relay", "hooks"],
)
def test_a_fast_path_that_may_not_work_is_off_and_one_line_says_why(
    tmp_path: Path, hosts: Hosts, source: str, why: str, relays: bool, hooks: bool
) -> None:
    agents = ("--set", f"balancer_agents=a={hosts.start('a').url}")
    with running_proxy(tmp_path, *agents, before=script(tmp_path, source)) as proxy:
        proxy.wait_online("a")
        lines = stream_lines(proxy, "/api/generate", {"model": "llama3.2", "prompt": "x"})
        assert lines[-1]["done"]
        shown = proxy.introspect()
        assert (bool(shown["relayed"]), shown["hooks"]) == (relays, hooks)
        [line] = [line for line in proxy.log.splitlines() if OFF in line]
        assert why in line
        assert ("relay" in line.partition(why)[0]) is not relays
        assert WORKS_WITH in line


def test_the_versions_that_are_named_are_those_that_are_tested() -> None:
    assert versions.is_tested()
    assert versions.tested().startswith(WORKS_WITH)
