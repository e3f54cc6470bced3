"""What the log says once at the start: who is there, where to send prompts, and what to do next."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence

from ..core.agent import NOT_HEARD_OF, Agent, Source, Status
from ..storage import token as credentials
from ..text import first_names, one_line
from .listening import Reach

MAX_AGENTS = 20
MAX_MODELS = 6
LABEL = len("Dashboard:  ")
DEFAULT_PORT = "8080"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.:/-]{0,99}")


def overview(at: Reach | None, agents: Sequence[Agent], *, looks_here: bool) -> list[str]:
    """Where the balancer is and who is behind it. `looks_here`: an Ollama on this machine is added where it answers."""
    if at is None:
        return _agents(agents, looks_here=looks_here)
    clients = [f"set OLLAMA_HOST={at.url}, or use it as the base URL"]
    if at.local:
        clients = [
            f"on this machine, set OLLAMA_HOST={at.url}, or use it as the base URL",
            "mitmproxy listens on this machine only: clients and reporters on other machines cannot reach it; use "
            "--listen-host 0.0.0.0 to listen on all addresses",
        ]
    return [
        *_labelled("Clients", clients),
        *_agents(agents, looks_here=looks_here),
        *_labelled("Dashboard", [f"{at.url}/dashboard"]),
    ]


def access_line(at: Reach | None, *, needs_key: bool, keys: int) -> str:
    """Who may come in, and how to change that."""
    if needs_key:
        added = f"{keys} client key{'' if keys == 1 else 's'}" if keys else "no client key yet"
        text = f"calls need a key or the token ({added}); ollama-balancer keys adds and lists them"
    elif at is None or at.local:
        text = "open to all programs on this machine"
    else:
        text = "open: whoever can reach it can run and manage models; ollama-balancer keys add NAME closes it"
    [line] = _labelled("Access", [text])
    return line


def add_host_step(at: Reach, token: credentials.Token) -> str:
    """How an Ollama host joins; where nobody else reaches the balancer, how this machine's own one reports."""
    if at.local:
        hint = (
            f"--token-file {token.file}"
            if token.file
            else f"with ${credentials.ENVIRONMENT} set to the balancer's token"
        )
        return f"this machine's own Ollama reports with: ollama-agent-reporter --balancer {at.url} {hint}"
    port = at.url.rpartition(":")[2]
    balancer = "" if port == DEFAULT_PORT else f" --balancer http://127.0.0.1:{port}"
    return f"ollama-balancer join-code{balancer} prints the line to run on an Ollama host"


def _labelled(label: str, lines: Iterable[str]) -> list[str]:
    """The lines behind the label, under each other."""
    return [(f"{label}:" if i == 0 else "").ljust(LABEL) + line for i, line in enumerate(lines)]


def _agents(agents: Sequence[Agent], *, looks_here: bool) -> list[str]:
    if not agents:
        here = "; an Ollama on this machine is added when it answers" if looks_here else ""
        return _labelled("Agents", [f"none yet{here}"])
    shown = agents[:MAX_AGENTS]
    width = max(len(agent.name) for agent in shown)
    state = max(len(_state(agent)) for agent in shown)
    lines = [f"{agent.name.ljust(width)}  {_state(agent).ljust(state)}  {_models(agent)}".rstrip() for agent in shown]
    if len(agents) > len(shown):
        online = sum(agent.online for agent in agents)
        lines.append(f"and {len(agents) - len(shown)} more; {online} of {len(agents)} are online")
    return _labelled("Agents", lines)


def _state(agent: Agent) -> str:
    if agent.status is not Status.OFFLINE or agent.was_online:
        return str(agent.status)
    return "no answer yet" if agent.offline_reason == NOT_HEARD_OF else "not reachable"


def _models(agent: Agent) -> str:
    if agent.models is None:
        return ""
    names = [one_line(name.removesuffix(":latest"), 60) for name in sorted(agent.models)]
    simulated = " (simulated)" if agent.source is Source.DEMO else ""
    return (", ".join(first_names(names, MAX_MODELS)) or "no models") + simulated


def next_steps(at: Reach | None, token: credentials.Token, agents: Sequence[Agent], *, needs_key: bool) -> list[str]:
    """What to do now: send a prompt, or add a host."""
    if at is None:
        problem = "mitmproxy listens on no port, so nobody can reach the balancer: start it without --no-server"
        return _labelled("Next", [problem])
    add_host = add_host_step(at, token)
    if not agents:
        ways = [
            add_host,
            "or name hosts: --set balancer_agents=http://HOST:11434",
            "or try it out with three simulated hosts: --set balancer_demo=3",
        ]
        return _labelled("Next", ways)
    key = ' -H "Authorization: Bearer KEY"' if needs_key else ""
    online = [agent for agent in agents if agent.online]
    model = _model_to_try(online)
    if model is not None:
        prompt = json.dumps({"model": model, "prompt": "Why is the sky blue?"})
        step = f"curl {at.url}/api/generate{key} -d {shlex.quote(prompt)}"
    elif any(agent.models is not None and not agent.models for agent in online):
        step = f"pull a model to all hosts: OLLAMA_HOST={at.url} ollama pull llama3.2"
    elif online:
        step = f"see which models there are: curl {at.url}/api/tags{key}"
    else:
        step = "start Ollama on these hosts, or see on the dashboard what is wrong with them"
    return [*_labelled("Next", [step]), *_labelled("More hosts", [add_host])]


def _model_to_try(agents: Iterable[Agent]) -> str | None:
    """One that a shell takes as it is, of those that are there; not one for embeddings, as far as its name tells."""
    names = {name for agent in agents for name in agent.models or () if _PLAIN_NAME.fullmatch(name)}
    return min((name.removesuffix(":latest") for name in names if "embed" not in name), default=None)
