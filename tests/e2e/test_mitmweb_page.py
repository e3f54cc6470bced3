"""What a person sees and does on mitmweb's own page, in a real Chromium."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.e2e.browser import chromium, console_errors, needs_chromium
from tests.e2e.harness import ROOT, Hosts, Proxy, wait_until
from tests.e2e.web import PASSWORD, Web, running_mitmweb

pytestmark = [pytest.mark.browser, needs_chromium]

PAGE = ROOT / "addon" / "docs" / "inspection.md"


def errors(browser: Any) -> list[str]:
    """What went wrong on the page, but for a file that mitmweb itself names and does not have."""
    return [message for message in console_errors(browser) if "vendor.less" not in message]


def rows(browser: Any) -> list[str]:
    texts = (row.text for row in browser.find_elements(By.CSS_SELECTOR, ".flow-table tbody tr"))
    return [text for text in texts if text.strip()]


def seen(browser: Any, what: Callable[[], Any], say: str) -> Any:
    """Wait until the page shows it; React replaces elements while they are read."""

    def look() -> Any:
        try:
            return what()
        except Exception as e:
            if "stale" in type(e).__name__.lower() or "nosuch" in type(e).__name__.lower():
                return None
            raise

    return wait_until(look, say)


def in_background(proxy: Proxy, prompt: str) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: proxy.http.post("/api/chat", json={"model": "llama3.2", "messages": messages(prompt)})
    )
    thread.start()
    return thread


def messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]


def test_prompts_appear_by_themselves_with_where_they_went_and_a_click_shows_all(tmp_path: Path, hosts: Hosts) -> None:
    urls = {"gpu-1": hosts.start("gpu-1").url, "gpu-2": hosts.start("gpu-2", "qwen3").url}
    agents = ",".join(f"{name}={url}" for name, url in urls.items())
    with (
        running_mitmweb(tmp_path, "--set", f"balancer_agents={agents}") as (proxy, web),
        chromium(tmp_path / "profile") as browser,
    ):
        proxy.wait_online(*urls)
        browser.get(f"{web.url}/?token={PASSWORD}")
        proxy.http.post("/api/chat", json={"model": "llama3.2", "messages": messages("Why is the sky blue?")})
        proxy.generate(model="nobody-has-it")
        shown = seen(browser, lambda: r if len(r := rows(browser)) == 2 and "TTFT" in r[0] else None, "both rows")
        assert "→ gpu-1 · llama3.2 · “Why is the sky blue?” · 127.0.0.1 · " in shown[0]
        assert all(re.search(r"\b\d\d:\d\d:\d\d\b", row) for row in shown), "the time of day"
        assert all(f"{proxy.url}/api/" in row for row in shown), "the path that the client asked for"
        assert "⚠" in shown[1]
        assert "→ balancer · nobody-has-it · “hi” · 127.0.0.1" in shown[1]
        assert "rejected with 404: model 'nobody-has-it' not found" in shown[1]
        assert browser.find_element(By.CSS_SELECTOR, ".flow-table td.col-timestamp").size["width"] >= 200
        comment = browser.find_element(By.CSS_SELECTOR, ".flow-table td.col-comment")
        assert comment.size["width"] > 500, "there is room to read it"

        browser.find_element(By.CSS_SELECTOR, ".flow-table td.col-comment").click()
        text = seen(browser, lambda: detail(browser, "Request"), "the request")
        assert "system:\n  Be brief.\nuser:\n  Why is the sky blue?" in text
        text = seen(browser, lambda: detail(browser, "Response"), "the answer")
        for part in ("→ gpu-1", "TTFT s", "assistant:", "tokens/s"):
            assert part in text
        assert errors(browser) == []


def detail(browser: Any, tab: str) -> str:
    """What the tab shows in the view that the page has chosen."""
    browser.find_element(By.XPATH, f"//nav//a[normalize-space()='{tab}']").click()
    view = browser.find_element(By.CSS_SELECTOR, ".contentview")
    if "Ollama" not in [name.text for name in view.find_elements(By.CSS_SELECTOR, "h5")]:
        return ""
    return "\n".join(line.text for line in view.find_elements(By.CSS_SELECTOR, "pre"))


def test_a_prompt_is_held_changed_and_sent_on(tmp_path: Path, hosts: Hosts) -> None:
    urls = {"gpu-1": hosts.start("gpu-1").url, "gpu-2": hosts.start("gpu-2", "qwen3").url}
    agents = ",".join(f"{name}={url}" for name, url in urls.items())
    arguments = ("--set", f"balancer_agents={agents}", "--set", "intercept=~u api/chat & ~q")
    with (
        running_mitmweb(tmp_path, *arguments) as (proxy, web),
        chromium(tmp_path / "profile") as browser,
    ):
        proxy.wait_online(*urls)
        browser.get(f"{web.url}/?token={PASSWORD}")
        asker = in_background(proxy, "an original prompt")
        seen(browser, lambda: browser.find_element(By.CSS_SELECTOR, ".flow-table tr.intercepted"), "it is held").click()
        seen(browser, lambda: browser.find_element(By.XPATH, "//button[contains(., 'Edit')]"), "the button").click()
        editor = seen(browser, lambda: browser.find_element(By.CSS_SELECTOR, ".cm-content"), "the editor")
        editor.click()
        ActionChains(browser).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).send_keys(
            Keys.DELETE
        ).perform()
        edited = '{"model": "qwen3", "messages": [{"role": "user", "content": "an edited prompt"}]}'
        ActionChains(browser).send_keys(edited).perform()
        browser.find_element(By.XPATH, "//button[contains(., 'Done')]").click()
        seen(browser, lambda: browser.find_element(By.XPATH, "//button[contains(., 'Resume')]"), "resume").click()
        asker.join(30)
        shown = seen(browser, lambda: r if "TTFT" in (r := rows(browser) or [""])[0] else None, "the answer")
        assert "→ gpu-2 · qwen3" in shown[0]
        assert any(b"an edited prompt" in request.body for request in hosts.all[1].requests)
        assert errors(browser) == []


def type_command(browser: Any, command: str) -> str:
    """Type it into the command bar; what the bar then tells, which of a command without a result is nothing."""
    if not browser.find_elements(By.CSS_SELECTOR, ".command input"):
        browser.find_element(By.LINK_TEXT, "Options").click()
        seen(browser, lambda: browser.find_element(By.XPATH, "//label[contains(., 'ommand')]"), "the box").click()
    bar = seen(browser, lambda: browser.find_element(By.CSS_SELECTOR, ".command input"), "the command bar")
    bar.send_keys(command, Keys.ENTER)

    def told() -> str:
        text: str = browser.find_element(By.CSS_SELECTOR, ".command-result").text
        return text if text.rpartition("$ ")[2].startswith(command) else ""

    return str(seen(browser, told, f"the result of {command}")).rpartition(f"$ {command}")[2].strip()


def test_the_commands_work_as_they_are_printed(tmp_path: Path, hosts: Hosts) -> None:
    agents = ",".join(f"{name}={hosts.start(name).url}" for name in ("gpu-1", "gpu-2"))
    printed = re.findall(r"`(balancer\.(?:compare|comparison|replay|drain|resume|mode)\b[^`]*)`", PAGE.read_text())
    assert {command.split()[0] for command in printed} >= {"balancer.compare", "balancer.comparison", "balancer.replay"}
    with (
        running_mitmweb(tmp_path, "--set", f"balancer_agents={agents}") as (proxy, web),
        chromium(tmp_path / "profile") as browser,
    ):
        proxy.wait_online("gpu-1", "gpu-2")
        proxy.generate(prompt="marked by a person")
        proxy.generate(prompt="not marked")
        proxy.generate(model="no-such-model")
        first, _, wrong = web.flows("generate")
        assert wrong["marked"] == "⚠"
        web.http.put(f"/flows/{first['id']}", json={"marked": ":default:"})
        browser.get(f"{web.url}/?token={PASSWORD}")
        seen(browser, lambda: len(rows(browser)) == 3, "the flows")
        for command in printed:
            result = type_command(browser, command)
            if command.startswith("balancer.comparison"):
                assert result.startswith('[["comparison","agent"'), (command, result)
            else:
                assert result in ("", '"roundrobin"'), (command, result)
            if command.startswith("balancer.compare "):
                wait_until(lambda: len(copies(web)) >= 2, "both hosts have answered the flow that is marked")
                hint = re.findall(r"balancer\.comparison .*", web.events())[-1]
                assert "gpu-1" in type_command(browser, hint)
        assert all(b"marked by a person" in web.content(flow["id"], "request") for flow in copies(web))


def copies(web: Web) -> list[dict[str, Any]]:
    """Those that were answered."""
    return [flow for flow in web.flows("generate") if flow.get("is_replay") and flow.get("response")]
