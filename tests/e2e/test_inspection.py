"""What a person does in mitmweb: sees where prompts went, holds and kills them, sends them again, compares answers."""

from __future__ import annotations

import asyncio
import functools
import json
import queue
import re
import shlex
import shutil
import subprocess
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx

from ollama_balancer.simulator import Timing
from tests.e2e.harness import PATIENCE, QUICK, Hosts, Proxy, listing_host, running_proxy, stream_lines, wait_until
from tests.e2e.test_http2_limits import resident
from tests.e2e.web import Web, running_mitmweb

ENDLESS = Timing(load=0, prefill_rate=1e6, decode_rate=50, output_tokens=1_000_000)


def agents(**urls: str) -> tuple[str, str]:
    return "--set", "balancer_agents=" + ",".join(f"{name}={url}" for name, url in urls.items())


def ask(proxy: Proxy, path: str = "/api/generate", prompt: str = "hi", **headers: str) -> httpx.Response:
    return proxy.http.post(path, json={"model": "llama3.2", "prompt": prompt}, headers=headers)


class Asker(threading.Thread):
    """A client that streams an answer in the background and keeps its lines; it ends when the answer does."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(daemon=True)
        self.url = proxy.url
        self.lines: queue.Queue[str] = queue.Queue()
        self.start()

    def run(self) -> None:
        with suppress(httpx.HTTPError), httpx.Client(trust_env=False, verify=False, timeout=30) as client:
            body = {"model": "llama3.2", "prompt": "x"}
            with client.stream("POST", self.url + "/api/generate", json=body) as response:
                for line in response.iter_lines():
                    self.lines.put(line)

    def wait_for_end(self) -> None:
        self.join(PATIENCE)
        assert not self.is_alive(), "its answer has not ended"


def test_the_balancers_own_calls_are_neither_shown_nor_held_nor_saved(tmp_path: Path, hosts: Hosts) -> None:
    saved = tmp_path / "saved"
    arguments = (*agents(one=hosts.start("one").url), "-w", str(saved), "--set", "intercept=~u api/agents")
    with running_mitmweb(tmp_path, *arguments) as (proxy, web):
        proxy.wait_online("one")
        assert proxy.report("one").status_code == 204
        assert ask(proxy).status_code == 200
        assert [flow["request"]["path"] for flow in web.flows("/api")] == ["/api/generate"]
        proxy.stop()
    assert b"api/generate" in saved.read_bytes()
    assert b"api/agents" not in saved.read_bytes()


def test_the_balancers_own_calls_are_shown_where_that_is_wanted(tmp_path: Path, hosts: Hosts) -> None:
    for shown in (True, False):
        option = ("--set", f"balancer_show_control={str(shown).lower()}")
        with running_proxy(tmp_path, *option, *agents(one=hosts.start("one").url)) as proxy:
            proxy.wait_online("one")
            proxy.report("one")
        assert ("/metrics" in proxy.log) is shown


def test_a_killed_prompt_holds_nothing_whether_it_waits_is_held_or_runs(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("one", timing=ENDLESS)
    arguments = (*agents(one=host.url), "--set", "balancer_slots=1")
    with running_mitmweb(tmp_path, *arguments) as (proxy, web):
        proxy.wait_online("one")
        running = Asker(proxy)
        running.lines.get(timeout=30)
        waiting = Asker(proxy)
        [first, second] = wait_until(lambda: f if len(f := web.flows("generate")) == 2 else [], "both are there")
        wait_until(lambda: proxy.http.get("/api/balancer").json()["waiting"] == 1, "the second waits")
        assert web.flows("generate")[1]["comment"] == "waiting for a free agent · llama3.2 · “x” · 127.0.0.1"

        web.act(second["id"], "kill")
        waiting.wait_for_end()
        assert proxy.http.get("/api/balancer").json()["waiting"] == 0
        assert host.in_flight == 1

        web.act(first["id"], "kill")
        running.wait_for_end()
        wait_until(lambda: host.in_flight == 0, "the host works no more for it")
        agent = proxy.agents()["one"]
        assert (agent["in_flight"], agent["strikes"], agent["stats"]["cancelled"]) == (0, 0, 1)
        assert [flow["marked"] for flow in web.flows("generate")] == ["✖", "✖"]
        assert web.flows("generate")[0]["comment"].endswith(" · killed")
        assert b'"response"' in web.content(first["id"])

        web.http.put("/options", json={"intercept": "~u generate"})
        held = Asker(proxy)
        web.act(web.held(), "kill")
        held.wait_for_end()
        assert proxy.introspect()["contexts"] == 0
        assert proxy.agents()["one"]["stats"]["requests"] == 1


def answered(web: Web, count: int) -> bool:
    return sum("TTFT" in flow["comment"] for flow in web.flows("generate")) == count


def test_a_replay_goes_through_the_balancer_with_another_host_in_the_place_of_one_that_fails(
    tmp_path: Path, hosts: Hosts
) -> None:
    one, two = hosts.start("one"), hosts.start("two")
    arguments = (*agents(one=one.url, two=two.url), "--set", "balancer_mode=roundrobin")
    with running_mitmweb(tmp_path, *arguments) as (proxy, web):
        proxy.wait_online("one", "two")
        ask(proxy)
        [flow] = web.flows("generate")
        hosts.kill(one)
        before = web.content(flow["id"])
        for number in (1, 2):
            web.act(flow["id"], "replay")
            wait_until(functools.partial(answered, web, number + 1), "the other host answers")
            copy = web.flows("generate")[number]
            assert copy["comment"].startswith("→ two")
            assert copy["is_replay"] == "request"
        first = web.flows("generate")[0]
        assert (first["id"], first["comment"]) == (flow["id"], flow["comment"]), "the first answer stays"
        assert web.content(flow["id"]) == before
        assert proxy.agents()["two"]["in_flight"] == 0
        assert len(web.flows("generate")) == 3


def test_a_copy_is_sent_to_the_agent_that_a_person_names(tmp_path: Path, hosts: Hosts) -> None:
    with running_mitmweb(tmp_path, *agents(one=hosts.start("one").url, two=hosts.start("two").url)) as (proxy, web):
        proxy.wait_online("one", "two")
        first = ask(proxy).headers["X-Balancer-Agent"]
        other = {"one": "two", "two": "one"}[first]
        web.command("balancer.replay", "~u generate", other)
        [copy] = wait_until(lambda: [f for f in web.flows("generate")[1:] if "TTFT" in f["comment"]], "it is answered")
        assert copy["comment"].startswith(f"→ {other} · llama3.2 · “hi” · 127.0.0.1 · ")
        assert copy["comment"].endswith(" · adaptive: pinned by the request")
        assert copy["is_replay"] == "request"
        assert len(web.flows("generate")) == 2
        assert "there is no agent named" not in web.refused("balancer.replay", "~u nothing", other)
        for command in (("balancer.replay", "~u generate"), ("balancer.drain",), ("balancer.resume",)):
            problem = web.refused(*command, "three")
            assert problem == "there is no agent named 'three'; the agents are: one, two"


def comparison(web: Web, number: int) -> list[list[str]]:
    """The table of comparisons, once it has so many answers."""

    def table() -> list[list[str]] | None:
        rows = web.command("balancer.comparison", "~comment comparison") if web.flows("generate")[number:] else []
        return rows if rows and not any("not finished yet" in row for row in rows) else None

    found = wait_until(table, "all agents have answered")
    assert found
    return found


def test_answers_of_all_agents_that_have_the_model_are_compared(tmp_path: Path, hosts: Hosts) -> None:
    short = Timing(load=0, prefill_rate=1e6, decode_rate=1000, output_tokens=16, num_parallel=8)
    urls = {
        "one": hosts.start("one").url,
        "two": hosts.start("two", timing=short).url,
        "three": hosts.start("three").url,
        "other": hosts.start("other", "qwen3").url,
    }
    with running_mitmweb(tmp_path, *agents(**urls)) as (proxy, web):
        proxy.wait_online(*urls)
        ask(proxy, prompt="the same for all")
        web.command("balancer.compare", "~u generate")
        head, *rows = comparison(web, 3)
        assert head == ["comparison", "agent", "model", "TTFT", "tok/s", "tokens", "total", "text"]
        assert sorted(row[1] for row in rows) == ["one", "three", "two"]
        assert len({row[0] for row in rows}) == 1
        assert {row[7] for row in rows[1:]} <= {"same text", *(row[7] for row in rows if "differs" in row[7])}
        assert sum("differs at character" in row[7] or "characters" in row[7] for row in rows) >= 1
        assert all(row[3].endswith(" ms") and float(row[4]) > 0 and int(row[5]) > 0 for row in rows)
        assert [flow["marked"] for flow in web.flows("generate")] == ["", "⚖", "⚖", "⚖"]
        assert rows[0][0] in web.events(), "the table is in the event log, where it can be read"


def saying(hosts: Hosts, text: str) -> str:
    """The URL of a host that has that answer to everything."""
    answer = json.dumps({"model": "m", "response": text, "done": True, "eval_count": 9}).encode()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(length)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(answer) + answer)

    return listing_host(hosts, receive).url


def test_what_two_agents_said_is_shown_against_each_other(tmp_path: Path, hosts: Hosts) -> None:
    urls = {
        "one": saying(hosts, "The sky is blue. Air scatters short waves of light. At dusk it is red.\nAsk me more."),
        "two": saying(hosts, "The sky is blue. Air scatters short waves of sunlight. Nobody knows why.\nAsk me more."),
    }
    with running_mitmweb(tmp_path, *agents(**urls)) as (proxy, web):
        proxy.wait_online("one", "two")
        proxy.generate(model="m")
        [asked] = web.flows("generate")
        web.command("balancer.compare", "~u generate")
        rows = comparison(web, 2)
        assert "view Comparison" in web.events()
        assert {"ollama", "comparison"} <= set(web.http.get("/state").json()["contentViews"])
        copies = {flow["comment"].split()[1]: flow["id"] for flow in web.flows("generate")[1:]}
        reference, other = rows[1][1], rows[2][1]
        shown = web.view(copies[other])
        assert shown["view_name"] == "Comparison"
        assert f"== Comparison {rows[1][0]} ==\ncomparison  agent" in shown["text"]
        assert f"== {other}'s text (here) against {reference}'s (there) ==" in shown["text"]
        light = "[-light.-]{+sunlight.+}" if other == "two" else "[-sunlight.-]{+light.+}"
        dusk, nobody = ("- At dusk it is red.", "+ Nobody knows why.")
        if other == "one":
            dusk, nobody = ("+ At dusk it is red.", "- Nobody knows why.")
        first, second = sorted((dusk, nobody), key=lambda line: line[0] == "+")
        difference = ["  The sky is blue.", f"~ Air scatters short waves of {light}", first, second, "  Ask me more."]
        assert "\n".join(difference) in shown["text"]
        assert "\n  The sky is blue. Air" in web.view(copies[reference])["text"]
        assert "assistant:" in web.view(copies[other], view="ollama")["text"]
        assert "not in the last comparison" in web.view(asked["id"], view="comparison")["text"]
        assert web.view(asked["id"])["view_name"] == "Ollama"


def test_the_fleet_is_run_by_commands(tmp_path: Path, hosts: Hosts) -> None:
    with running_mitmweb(tmp_path, *agents(one=hosts.start("one").url, two=hosts.start("two").url)) as (proxy, web):
        proxy.wait_online("one", "two")
        assert [row[:2] for row in web.command("balancer.agents")] == [
            ["agent", "status"],
            ["one", "online"],
            ["two", "online"],
        ]
        web.command("balancer.drain", "one")
        assert {ask(proxy).headers["X-Balancer-Agent"] for _ in range(4)} == {"two"}
        assert web.command("balancer.agents")[1][1].startswith("draining")
        web.command("balancer.resume", "one")
        assert proxy.agents()["one"]["status"] == "online"
        assert web.command("balancer.mode", "roundrobin") == "roundrobin"
        assert {ask(proxy).headers["X-Balancer-Agent"] for _ in range(2)} == {"one", "two"}
        problem = web.refused("balancer.mode", "fastest")
        assert all(mode in problem for mode in ("balancer_mode", "'fastest'", "roundrobin", "adaptive")), problem
        assert proxy.http.get("/api/balancer").json()["mode"] == "roundrobin"
        assert web.command("balancer.queue") == [["waiting", "requests"], ["all", "0"]]
        help_of = web.http.get("/commands").json()
        assert all(entry["help"] for name, entry in help_of.items() if name.startswith("balancer."))


def test_the_oldest_finished_flows_are_dropped_and_none_that_runs(tmp_path: Path, hosts: Hosts) -> None:
    urls = {"one": hosts.start("one").url, "slow": hosts.start("slow", timing=ENDLESS).url}
    with running_mitmweb(tmp_path, *agents(**urls), "--set", "balancer_keep_flows=3") as (proxy, web):
        proxy.wait_online("one", "slow")
        with proxy.http.stream(
            "POST", "/api/generate", json={"model": "llama3.2", "prompt": "x"}, headers={"X-Balancer-Agent": "slow"}
        ) as response:
            lines = response.iter_lines()
            next(lines)
            for number in range(6):
                ask(proxy, "/api/chat", prompt=str(number), **{"X-Balancer-Agent": "one"})
            assert len(web.flows("/api/chat")) == 3
            assert len(web.flows("/api/generate")) == 1
            kept = [web.content(flow["id"], "request") for flow in web.flows("/api/chat")]
            assert [b'"prompt":"%d"' % number in body for number, body in enumerate(kept, 3)] == [True, True, True]
        web.http.put("/options", json={"balancer_keep_flows": 0})
        for _ in range(4):
            ask(proxy, "/api/chat")
        assert len(web.flows("/api/chat")) >= 6


def test_of_a_large_streamed_answer_the_flow_has_the_beginning_and_the_end(tmp_path: Path, hosts: Hosts) -> None:
    long = Timing(load=0, prefill_rate=1e6, decode_rate=1e6, output_tokens=400, num_parallel=8)
    arguments = (*agents(one=hosts.start("one", timing=long).url), "--set", "balancer_body_limit=2k")
    with running_mitmweb(tmp_path, *arguments) as (proxy, web):
        proxy.wait_online("one")
        answer = ask(proxy).content
        [flow] = web.flows("generate")
        stored = web.content(flow["id"])
        head, gap, tail = stored.partition(b"\n[... %d bytes are not kept ...]\n" % (len(answer) - 2048))
        assert gap
        assert len(head) + len(tail) == 2048
        assert answer.startswith(head)
        assert answer.endswith(tail)


def test_a_demanding_host_is_slow_in_the_list_only_when_it_is(tmp_path: Path, hosts: Hosts) -> None:
    with running_mitmweb(tmp_path, *agents(one=hosts.start("one", timing=QUICK).url)) as (proxy, web):
        proxy.wait_online("one")
        assert ask(proxy, "/api/nothing").status_code == 404
        assert proxy.generate(model="unknown").status_code == 404
        ask(proxy)
        assert [flow["marked"] for flow in web.flows("/api")] == ["⚠", "⚠", ""]
        assert web.http.get("/options").json()["web_columns"]["value"].count("comment") == 1


def test_a_saved_file_is_read_back_with_all_that_was_known(tmp_path: Path, hosts: Hosts) -> None:
    saved = tmp_path / "saved"
    host = hosts.start("one")
    with running_proxy(tmp_path, *agents(one=host.url), "-w", str(saved)) as proxy:
        proxy.wait_online("one")
        for number in range(4):
            ask(proxy, prompt=f"number {number}")
        proxy.generate(model="nobody-has-it")
    with running_mitmweb(tmp_path, "-r", str(saved), "--set", "balancer_keep_flows=2") as (proxy, web):
        flows = wait_until(lambda: f if len(f := web.flows("generate")) == 5 else [], "the file is read")
        for number, flow in enumerate(flows[:4]):
            assert flow["comment"].startswith(f"→ one · llama3.2 · “number {number}” · 127.0.0.1 · ")
        assert [flow["marked"] for flow in flows] == ["", "", "", "", "⚠"]
        shown = web.view(flows[3]["id"])
        assert shown["view_name"] == "Ollama"
        for part in ("== Decision ==\n→ one (http://127.0.0.1:", "user:\n  number 3", "assistant:", "tokens/s"):
            assert part in shown["text"]
        assert "user:\n  number 3" in web.view(flows[3]["id"], "request")["text"]
        assert web.command("balancer.comparison", "~u generate")[1][1] == "one"
        proxy.generate(prompt="a new one")
        assert len(web.flows("generate")) == 6, "what was read from a file is not dropped"
    assert host.counts["succeeded"] == 4


def test_a_flow_keeps_the_address_that_its_client_asked_and_can_be_sent_there_again(
    tmp_path: Path, hosts: Hosts
) -> None:
    host = hosts.start("one")
    arguments = (*agents(one=host.url), "--set", "balancer_hosts=ollama.example")
    with running_mitmweb(tmp_path, *arguments) as (proxy, web):
        proxy.wait_online("one")
        for headers in ({}, {"Host": "ollama.example:80"}):
            ask(proxy, **headers)
        with httpx.Client(proxy=proxy.url, trust_env=False, timeout=30) as client:
            body = {"model": "llama3.2", "prompt": "hi"}
            assert client.post("http://fleet.example:11434/api/generate?x=1", json=body).status_code == 200
        requests = [flow["request"] for flow in web.flows("generate")]
        assert [(each["pretty_host"], each["port"], each["path"]) for each in requests] == [
            ("127.0.0.1", proxy.port, "/api/generate"),
            ("ollama.example", 80, "/api/generate"),
            ("fleet.example", 11434, "/api/generate?x=1"),
        ]
        assert [dict(each["headers"])["Host"] for each in requests[1:]] == ["ollama.example:80", "fleet.example:11434"]
        got = [dict(request.headers)["Host"] for request in host.requests if "generate" in request.path]
        assert got == [host.url.removeprefix("http://")] * 3, "the host gets its own address"

        exported = tmp_path / "curl"
        web.command("export.file", "curl", "~d 127.0.0.1", str(exported))
        command = shlex.split(exported.read_text())
        assert f"{proxy.url}/api/generate" in command
        if shutil.which("curl"):
            answer = subprocess.run([*command, "-s", "-m", "30"], capture_output=True, check=True)
            assert b'"done":true' in answer.stdout
            assert len(web.flows("generate")) == 4


def test_mitmdumps_own_lines_tell_of_each_request_with_its_client_its_agent_and_the_address_that_was_asked(
    tmp_path: Path, hosts: Hosts
) -> None:
    with running_proxy(tmp_path, "-v", *agents(one=hosts.start("one").url)) as proxy:
        proxy.wait_online("one")
        ask(proxy)
        proxy.generate(model="nobody-has-it")
        address = re.escape(f"{proxy.url}/api/generate")
        client = r"127\.0\.0\.1:\d+"
        wait_until(lambda: re.search(f"{client} → one: POST {address}", proxy.log), "the answer of an agent")
        wait_until(lambda: re.search(f"{client}: POST {address}", proxy.log), "the balancer's own")


def test_a_small_request_that_unpacks_into_much_is_not_unpacked_to_be_seen(tmp_path: Path, hosts: Hosts) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(400)]) + packer.flush()
    host = hosts.start("one", timing=Timing(load=0, prefill_rate=1e6, decode_rate=50, output_tokens=400))
    with running_mitmweb(tmp_path, *agents(one=host.url)) as (proxy, web):
        proxy.wait_online("one")
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        assert proxy.http.post("/api/generate", content=bomb, headers=headers).status_code == 400
        flow = wait_until(lambda: web.flows("/api/generate"), "the flow is there")[0]
        seen: queue.Queue[bytes] = queue.Queue()
        body = {"model": "llama3.2", "prompt": "x", "options": {"num_predict": 400}}
        with ThreadPoolExecutor(1) as pool:
            victim = pool.submit(stream_lines, proxy, "/api/generate", body, seen)
            seen.get(timeout=PATIENCE)
            before = resident(proxy)
            for view in ("auto", "raw", "json", "ollama"):
                assert len(web.view(flow["id"], "request", view)["text"]) < 2_000_000
            assert web.content(flow["id"], "request") == bomb
            assert web.http.get("/flows", params={"filter": "~b hello"}).status_code == 200
            assert resident(proxy) - before < 64 << 20
            assert victim.result(PATIENCE)[-1]["done"] is True
