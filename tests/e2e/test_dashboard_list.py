"""The dashboard's list of agents in a real Chromium: none, many, and what is in its address."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.e2e.browser import chromium, console_errors, needs_chromium
from tests.e2e.dashboard import accessibility_problems, confirm, cut_off, resize, row, seen, text_of
from tests.e2e.harness import Hosts, running_proxy

pytestmark = [pytest.mark.browser, needs_chromium]


def test_more_agents_than_a_page_holds_are_paged_sorted_and_found(tmp_path: Path, hosts: Hosts) -> None:
    port = everywhere(hosts)
    agents = ",".join(f"host-{number:04}=http://127.1.0.{number + 1}:{port}" for number in range(120))
    with (
        running_proxy(tmp_path, "--set", f"balancer_agents={agents}") as proxy,
        chromium(tmp_path / "profile", dark=True) as browser,
    ):
        for number in (*range(5), *range(70, 80)):
            assert proxy.report(f"host-{number:04}", cpu=float(number), models=["llama3.2"]).status_code == 204
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        )
        resize(browser, 1280)

        def address() -> str:
            url: str = browser.current_url
            return url.removeprefix(f"{proxy.url}/dashboard")

        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: text_of(browser, "#place") == "Page 1 of 3, 120 agents", "the first page")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#agents tr")) == 50
        on_screen = "[...document.querySelectorAll('#agents tr')].map((row) => row.getBoundingClientRect().bottom)"
        assert sum(bottom <= 900 for bottom in browser.execute_script(f"return {on_screen}")) >= 30
        assert browser.find_elements(By.CSS_SELECTOR, "#agents svg") == []
        browser.find_element(By.ID, "next").click()
        seen(browser, lambda: "host-0050" in row(browser, "host-0050"), "the second page")
        browser.find_element(By.ID, "filter").send_keys("host-007")
        seen(browser, lambda: text_of(browser, "#place") == "10 agents", "what is looked for")
        browser.find_element(By.CSS_SELECTOR, "#sort option[value=cpu]").click()
        seen(browser, lambda: text_of(browser, "#agents tr").startswith("host-0079"), "the busiest first")
        for width in (360, 768, 1001, 1280, 1500, 2560):
            resize(browser, width)
            assert cut_off(browser) == [], width
            for box in ("document.documentElement", "document.getElementById('agents-region')"):
                assert browser.execute_script(f"return {box}.scrollWidth - {box}.clientWidth") == 0, width
        assert accessibility_problems(browser) == []
        browser.find_element(By.ID, "dense").click()
        seen(browser, lambda: "In flight, last 15 min" in browser.page_source, "rows in full")
        link = "?filter=host-007&sort=cpu&rows=full"
        assert address() == link

        for before in ("?filter=host-007&sort=cpu", "?filter=host-007", "?page=2"):
            browser.back()
            seen(browser, lambda before=before: address() == before, before)  # type: ignore[misc]
        seen(browser, lambda: text_of(browser, "#place").startswith("Page 2 of 3"), "the second page again")
        assert browser.find_element(By.ID, "filter").get_attribute("value") == ""
        browser.get(f"{proxy.url}/dashboard{link}")
        seen(browser, lambda: text_of(browser, "#place") == "10 agents", "what the link shows")
        assert text_of(browser, "#agents tr").startswith("host-0079")
        assert browser.find_elements(By.CSS_SELECTOR, "#agents svg") != []
        assert browser.find_element(By.ID, "filter").get_attribute("value") == "host-007"
        assert browser.find_element(By.ID, "sort").get_attribute("value") == "cpu"
        assert address() == link
        of_thousand = "document.querySelector('#tiles div:last-child dd').textContent = '1,998 of 2,000'"
        for width in (360, 768, 1001, 1280, 1500, 2560):
            resize(browser, width)
            browser.execute_script(of_thousand)
            assert cut_off(browser) == [], width
        assert console_errors(browser) == []
        data = proxy.http.get("/dashboard/data?page=2&size=50&sort=name&filter=")
        assert data.headers["content-encoding"] == "gzip"
        assert data.json()["agents"][0]["name"] == "host-0050"
        assert "join" not in {name for name, value in data.json().items() if value is not None}
        without = proxy.http.get("/dashboard/data?curves=no").json()["agents"]
        assert {agent["curve"] for agent in without} == {None}


def test_an_empty_fleet_shows_how_a_host_joins_and_the_dialog_where_the_token_is(tmp_path: Path) -> None:
    with running_proxy(tmp_path, token=None) as proxy, chromium(tmp_path / "profile") as browser:
        file = tmp_path / "ollama-balancer-token"
        line = f"curl -fsS {proxy.url}/join | sh -s --"
        browser.get(f"{proxy.url}/dashboard")
        seen(browser, lambda: text_of(browser, "#welcome-line") == f"{line} CODE", "the line that joins a host")
        sections = [each for each in browser.find_elements(By.CSS_SELECTOR, "main > section") if each.is_displayed()]
        assert [section.get_attribute("class") for section in sections] == ["agents"]
        assert accessibility_problems(browser) == []
        browser.find_element(By.CSS_SELECTOR, "#welcome .make-code").click()
        assert text_of(browser, "#token-place") == f"The token is in the file {file} on the balancer's machine."
        token = file.read_text().strip()
        assert token not in browser.page_source + proxy.http.get("/dashboard").text
        assert accessibility_problems(browser) == []
        confirm(browser, "not-the-token")
        seen(browser, lambda: "not the balancer's token" in text_of(browser, "#refusal"), "the refusal")
        confirm(browser, token)
        seen(browser, lambda: text_of(browser, "#join-shell").startswith(f"{line} "), "the line with its code")
        code = text_of(browser, "#join-shell").rsplit(" ", 1)[1]
        joined = proxy.http.post("/api/join", json={"name": "b"}, headers={"Authorization": f"Bearer {code}"})
        key = {"Authorization": f"Bearer {joined.json()['secret']}"}
        registered = proxy.http.post("/api/agents", json={"name": "b", "url": "http://127.0.0.1:9"}, headers=key)
        assert registered.status_code == 201
        seen(browser, lambda: row(browser, "b"), "the host")
        assert not browser.find_element(By.ID, "welcome").is_displayed()
        browser.find_element(By.ID, "join-close").click()
        assert not browser.find_element(By.ID, "join-lines").is_displayed()
        assert browser.switch_to.active_element.get_attribute("id") == "agents-region"
        assert [problem for problem in console_errors(browser) if "401" not in problem] == []


def everywhere(hosts: Hosts) -> int:
    """The port of a host that answers to probes at all addresses of this machine: 127.0.0.0/8 has many."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = (
                    b'{"version":"0.33.0"}' if b"/api/version" in head else b'{"models":[{"name":"llama3.2:latest"}]}'
                )
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = hosts.run(asyncio.start_server(serve, "0.0.0.0", 0))
    hosts.servers.append(server)
    port: int = server.sockets[0].getsockname()[1]
    return port


def test_agents_are_sorted_by_what_is_asked_for_and_those_alike_by_name(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        busy: dict[str, tuple[float, float, list[float | None]]] = {
            "c": (10.0, 70.0, [20.0, 90.0]),
            "a": (50.0, 30.0, [40.0]),
            "d": (10.0, 70.0, [None]),
            "b": (10.0, 90.0, []),
        }
        for number, (name, (cpu, memory, gpus)) in enumerate(busy.items(), 1):
            proxy.register(name, f"http://127.0.0.1:{number}")
            listed = [{"name": "gpu", "utilization": each} for each in gpus]
            assert proxy.report(name, cpu=cpu, memory=memory, gpus=listed).status_code == 204
        proxy.register("e", "http://127.0.0.1:9")

        def order(sort: str) -> str:
            return "".join(agent["name"] for agent in proxy.http.get(f"/dashboard/data?sort={sort}").json()["agents"])

        assert order("name") == "abcde"
        assert order("cpu") == "abcde"
        assert order("memory") == "bcdae"
        assert order("gpu") == "cabde"
        assert order("in_flight") == "abcde"


def test_a_query_of_any_kind_is_answered(tmp_path: Path) -> None:
    with running_proxy(tmp_path) as proxy:
        for query in ("page=-1", "page=99999999999", "size=0", "sort=%00", "filter=" + "x" * 3000, "page=a"):
            answer = proxy.http.get(f"/dashboard/data?{query}")
            assert answer.status_code == 200
            assert json.loads(answer.content)["page"] == 1
