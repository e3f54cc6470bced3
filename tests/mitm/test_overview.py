"""What the log says at the start."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ollama_balancer.core.agent import Agent, Source
from ollama_balancer.mitm.listening import Reach
from ollama_balancer.mitm.overview import MAX_AGENTS, access_line, next_steps, overview
from ollama_balancer.storage.token import Token
from tests.core.fakes import Clock, address, entries, fleet, new_registry

KEPT, GIVEN = Token("x" * 8, Path("/home/me/.mitmproxy/ollama-balancer-token")), Token("x" * 8)
LOCAL, EVERYWHERE = Reach("http://127.0.0.1:8080", local=True), Reach("http://192.0.2.2:8080", local=False)


def agents(models: dict[str, list[str]], *, simulated: bool = False) -> list[Agent]:
    """Agents that are online and have these models; one without a list has not answered."""
    registry = new_registry(Clock())
    for number, (name, names) in enumerate(models.items(), 1):
        agent, _ = registry.register(name, address(number), Source.DEMO if simulated else Source.STATIC)
        registry.inventory.update_models(agent, entries(*names))
        registry.liveness.reached(agent)
    return list(registry)


def test_the_fleet_is_shown_with_its_states_and_models() -> None:
    found = agents({"gpu": ["qwen3:latest", "llama3.2:latest"], "rack_2": []})
    registry = new_registry(Clock())
    found += [registry.register(name, address(number))[0] for number, name in enumerate(("silent", "gone"), 8)]
    registry.liveness.unreachable(found[-1], "connection refused")
    assert overview(EVERYWHERE, found, looks_here=False) == [
        "Clients:    set OLLAMA_HOST=http://192.0.2.2:8080, or use it as the base URL",
        "Agents:     gpu     online         llama3.2, qwen3",
        "            rack_2  online         no models",
        "            silent  no answer yet",
        "            gone    not reachable",
        "Dashboard:  http://192.0.2.2:8080/dashboard",
    ]
    assert "m (simulated)" in overview(EVERYWHERE, agents({"a": ["m"]}, simulated=True), looks_here=False)[1]


def test_a_large_fleet_is_cut_short() -> None:
    found = fleet(new_registry(Clock()), *[f"gpu-{i}" for i in range(200)])
    lines = overview(EVERYWHERE, found, looks_here=False)
    assert len(lines) == MAX_AGENTS + 3
    assert lines[-2].strip() == "and 180 more; 200 of 200 are online"


def test_the_next_step_is_a_command_that_a_shell_takes_as_it_is() -> None:
    hostile = "$(reboot)'; rm -rf /"
    line, more = next_steps(EVERYWHERE, KEPT, agents({"gpu": [hostile, "embed-a:1", "qwen3:8b"]}), needs_key=True)
    label, *command = shlex.split(line)
    assert (label, command[:2]) == ("Next:", ["curl", "http://192.0.2.2:8080/api/generate"])
    assert json.loads(command[-1])["model"] == "qwen3:8b"
    assert "Authorization: Bearer KEY" in command
    assert more.startswith("More hosts: ollama-balancer join-code")
    [pull, _] = next_steps(EVERYWHERE, KEPT, agents({"gpu": []}), needs_key=False)
    assert pull.endswith("OLLAMA_HOST=http://192.0.2.2:8080 ollama pull llama3.2")


def test_without_a_host_it_says_how_to_add_one() -> None:
    assert "Agents:     none yet; an Ollama on this machine is added when it answers" in overview(
        EVERYWHERE, [], looks_here=True
    )
    join, option, demo = next_steps(EVERYWHERE, KEPT, [], needs_key=False)
    assert join == "Next:       ollama-balancer join-code prints the line to run on an Ollama host"
    elsewhere = next_steps(Reach("http://192.0.2.2:9090", local=False), KEPT, [], needs_key=False)[0]
    assert "join-code --balancer http://127.0.0.1:9090 prints" in elsewhere
    assert "--set balancer_agents=http://HOST:11434" in option
    assert "--set balancer_demo=3" in demo


def test_who_listens_on_loopback_offers_nothing_to_other_machines() -> None:
    clients, elsewhere = overview(LOCAL, [], looks_here=False)[:2]
    assert clients == "Clients:    on this machine, set OLLAMA_HOST=http://127.0.0.1:8080, or use it as the base URL"
    assert "--listen-host 0.0.0.0" in elsewhere
    for token, report in (
        (KEPT, f"ollama-agent-reporter --balancer http://127.0.0.1:8080 --token-file {KEPT.file}"),
        (GIVEN, "ollama-agent-reporter --balancer http://127.0.0.1:8080 with $OLLAMA_BALANCER_TOKEN set"),
    ):
        assert report in next_steps(LOCAL, token, [], needs_key=False)[0]
    [line] = next_steps(None, KEPT, [], needs_key=False)
    assert "--no-server" in line


def test_who_may_come_in_is_one_line_and_says_how_to_change_it() -> None:
    opened = access_line(EVERYWHERE, needs_key=False, keys=0)
    assert "whoever can reach it" in opened
    assert "keys add" in opened
    assert "on this machine" in access_line(LOCAL, needs_key=False, keys=0)
    assert "(1 client key)" in access_line(EVERYWHERE, needs_key=True, keys=1)
    assert "no client key yet" in access_line(None, needs_key=True, keys=0)
