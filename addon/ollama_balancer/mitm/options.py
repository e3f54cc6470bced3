"""The balancer's mitmproxy options: names, defaults, help, and the checks behind `OptionsError`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mitmproxy.addonmanager import Loader
from mitmproxy.optmanager import OptManager
from mitmproxy.utils.human import parse_size

from agent_reporter.limits import NAME_PATTERN

from ..core.address import Address, without_password
from ..core.policies import DEFAULT_POLICY, POLICIES
from ..gateway.memory_budget import PART, machine_memory
from ..gateway.networks import Network, read_network
from ..ollama.origins import check_host_pattern, check_pattern
from ..storage.token import check as check_token
from .compat.mitmproxy_names import deferred_problem

PREFIX = "balancer_"

MAX_BODY_LIMIT = 1024**3

LEAST_MEMORY, MOST_MEMORY = 1024**2, 1024**4

MODE_ENVIRONMENT = "LOAD_BALANCER_MODE"

_STATIC = re.compile(r"(?:(?P<name>[^=/]+)=)?(?P<url>[a-z][a-z0-9+.-]*://.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """The options, checked. Times are in seconds."""

    mode: str
    agents: tuple[tuple[str, Address], ...]
    token: str
    demo: int
    stale_after: int
    connect_timeout: int
    response_timeout: int
    stream_idle_timeout: int
    retries: int
    slots: int
    queue_size: int
    queue_timeout: int
    stop_timeout: int
    keep_flows: int
    body_limit: int
    """Bytes."""
    show_control: bool
    announce: bool
    relay: bool
    relay_selector: bool
    lean: bool
    origins: tuple[str, ...]
    """Patterns for `ollama.origins.allowed_origin`."""
    hosts: tuple[str, ...]
    """Patterns for `ollama.origins.allowed_host`."""
    allow_from: tuple[Network, ...]
    memory: int
    """Bytes that bodies and kept answers may take together."""


def add_options(loader: Loader) -> None:
    """Tell mitmproxy of the options. The environment gives a default, so that `--set` and config.yaml win over it."""
    modes = ", ".join(POLICIES)
    loader.add_option(
        "balancer_mode",
        str,
        os.environ.get(MODE_ENVIRONMENT) or DEFAULT_POLICY,
        f"How an agent is chosen: one of {modes}. The default is ${MODE_ENVIRONMENT} where that is set.",
    )
    loader.add_option(
        "balancer_agents",
        Sequence[str],
        [],
        "Static agents, each as http://host:port or name=http://host:port.",
    )
    loader.add_option(
        "balancer_token",
        str,
        "",
        "The token that agents and operators present. Default: $OLLAMA_BALANCER_TOKEN, else one made at first start "
        "and kept in the confdir.",
    )
    loader.add_option("balancer_demo", int, 0, "Simulated Ollama hosts to start inside the balancer, to try it out.")
    loader.add_option("balancer_stale_after", int, 30, "Seconds after which an agent's metrics no longer count.")
    loader.add_option("balancer_connect_timeout", int, 5, "Seconds to reach an agent before the next one is tried.")
    loader.add_option(
        "balancer_response_timeout",
        int,
        600,
        "Seconds until the first byte of an answer, over all attempts. Queueing, loading a model and reading a long "
        "prompt are silent, so be generous.",
    )
    loader.add_option(
        "balancer_stream_idle_timeout",
        int,
        120,
        "Seconds for which an answer that has begun may be silent; then its agent has failed. What an agent that is "
        "offline has begun fails at once.",
    )
    loader.add_option(
        "balancer_retries", int, 2, "Other agents to try when one fails before the first byte of its answer."
    )
    loader.add_option(
        "balancer_slots",
        int,
        0,
        "Requests that one agent may run at once per model; more wait in the balancer. 0: what the agent's report "
        "says, else it is learned.",
    )
    loader.add_option("balancer_queue_size", int, 1000, "Requests that may wait in the balancer.")
    loader.add_option("balancer_queue_timeout", int, 300, "Seconds that a request may wait in the balancer.")
    loader.add_option(
        "balancer_stop_timeout",
        int,
        30,
        "Seconds that running requests get to finish when the balancer is told to end.",
    )
    loader.add_option(
        "balancer_keep_flows",
        int,
        1000,
        "Finished flows that mitmweb and mitmproxy keep in their list; the oldest are dropped. 0: all are kept.",
    )
    loader.add_option(
        "balancer_body_limit",
        str,
        "4m",
        "Up to which size a streamed answer is stored whole in its flow, in bytes or as 500k or 4m; of a larger one "
        "the beginning and the end are stored. Clients get all of it in any case.",
    )
    loader.add_option(
        "balancer_show_control",
        bool,
        False,
        "Whether the balancer's own calls (reports, the control API, the dashboard) are shown and saved as flows.",
    )
    loader.add_option(
        "balancer_memory",
        str,
        "",
        "How much memory bodies of requests and kept answers may take together, such as 512m or 4g; beyond it requests "
        "with a body get 503. Default: a quarter of the machine's.",
    )
    loader.add_option(
        "balancer_announce",
        bool,
        False,
        "Whether the balancer is announced on the local network (multicast DNS), for reporters with --discover.",
    )
    loader.add_option(
        "balancer_relay",
        bool,
        True,
        "Whether the chunks of streamed answers go straight from the agent's connection to the client's where both are "
        "plain HTTP/1.1, which costs a fraction of mitmproxy's own way. Takes effect for new answers.",
    )
    loader.add_option(
        "balancer_relay_selector",
        bool,
        True,
        "Whether the relay also goes past asyncio, on Linux, which saves a sixth to a quarter of what it takes for a "
        "chunk. Takes effect for new answers.",
    )
    loader.add_option(
        "balancer_lean",
        bool,
        True,
        "Whether mitmproxy's own addons that do nothing under the current options are left out, and hooks that need "
        "not wait are run at once. An option that needs an addon brings it back.",
    )
    loader.add_option(
        "balancer_origins",
        Sequence[str],
        [],
        "Origins of web pages that may call, beside those that Ollama allows by default (localhost and apps), each as "
        "https://host:port; * stands for anything.",
    )
    loader.add_option(
        "balancer_allow_from",
        Sequence[str],
        [],
        "Networks and addresses that may connect, beside those that are not public (loopback, private, link-local) and "
        "the networks of this machine's own interfaces; * stands for any. Takes the place of block_global.",
    )

    loader.add_option(
        "balancer_hosts",
        Sequence[str],
        [],
        "Names by which requests that come over loopback may address the balancer (their Host header), beside "
        "addresses, localhost, this machine's name and names without a dot; * stands for anything. A web server on "
        "this machine that passes requests on under a name of its own needs it here.",
    )


def drop_unreadable(options: OptManager) -> list[str]:
    """Take values that are not even of their option's type out of what the command line set, and say what is wrong.

    mitmproxy would fail on them after the addon's `load`, without a word, and run on without the addon: an open proxy.
    """
    problems = []
    for name in list(options.deferred):
        problem = deferred_problem(options, name) if name in options and name.startswith(PREFIX) else None
        if problem is not None:
            del options.deferred[name]
            problems.append(f"{name}: {problem}")
    return problems


class Overrides:
    """mitmproxy's own options that have other values as long as the balancer is loaded."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}
        self._before: dict[str, object] = {}

    def set(self, options: OptManager, name: str, value: object) -> None:
        """Without effect where mitmproxy has no such option."""
        if name not in options or (before := getattr(options, name)) == value:
            return
        if name not in self._values or before != self._values[name]:
            self._before[name] = before
        self._values[name] = value
        options.update(**{name: value})

    def restore(self, options: OptManager) -> None:
        """Give back what was there, where nobody has changed it since."""
        back = {name: self._before[name] for name, value in self._values.items() if getattr(options, name) == value}
        self._values.clear()
        options.update(**back)


def misplaced(options: OptManager) -> list[str]:
    """What is wrong with options that look like the balancer's and are not, and with arguments that look like a part of
    one; to be asked at the start, when all addons are loaded.
    """
    ours = sorted(name for name in options.keys() if name.startswith(PREFIX))  # noqa: SIM118 - no mapping
    wrong = [name for name in options.deferred if name.startswith(PREFIX)]
    known = ", ".join(ours)
    return [f"{name}: there is no such option; the balancer's are {known}" for name in wrong] + _cut_off(options, ours)


def _cut_off(options: OptManager, ours: Sequence[str]) -> list[str]:
    """mitmdump takes an argument that belongs to no option for a filter of flows, without a word. After a blank in a
    list, as in `--set balancer_agents=a=http://x, b=http://y`, that is the rest of the list.
    """
    words = str(getattr(options, "dumper_filter", None) or "").split()
    stray = [word for before, word in zip(["", *words], words, strict=False) if not before.startswith("~")]
    advice = "write the list without blanks, or in quotes: --set 'NAME=ONE, TWO'"
    for word in stray:
        try:
            static_agents([word])
        except ValueError:
            continue
        return [f"balancer_agents: {without_password(word)[:200]!r} stands outside of the option; {advice}"]
    for name in ours:
        value = getattr(options, name)
        if stray and not isinstance(value, str) and isinstance(value, Sequence):
            last = str(value[-1]) if value else ""
            if last.rstrip().endswith(","):
                return [
                    f"{name}: {without_password(stray[0])[:200]!r} stands outside of the option, "
                    f"after a comma; {advice}"
                ]
    return []


def read(options: object) -> Settings:
    """Check all options. ValueError names the option and what it accepts."""

    def get(name: str) -> object:
        return getattr(options, name)

    def number(name: str, low: int, high: int) -> int:
        value = get(name)
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name}: {value!r} is not accepted; it takes a whole number from {low} to {high}")
        return value

    mode = get("balancer_mode")
    if mode not in POLICIES:
        raise ValueError(
            f"balancer_mode (or ${MODE_ENVIRONMENT}): {str(mode)[:80]!r} is not a mode; "
            f"it takes one of {', '.join(POLICIES)}"
        )
    if get("stream_large_bodies"):
        raise ValueError(
            "stream_large_bodies cannot be used with the balancer: it must see a whole request to choose an agent and "
            "to send it elsewhere when that one fails; answers are streamed anyway. Remove that option"
        )
    token = str(get("balancer_token"))
    if token:
        try:
            check_token(token)
        except ValueError as e:
            raise ValueError(f"balancer_token: {e}") from e
    agents = get("balancer_agents")
    return Settings(
        mode=str(mode),
        agents=static_agents(agents if isinstance(agents, Sequence) else ()),
        token=token,
        demo=number("balancer_demo", 0, 100),
        stale_after=number("balancer_stale_after", 1, 86_400),
        connect_timeout=number("balancer_connect_timeout", 1, 3600),
        response_timeout=number("balancer_response_timeout", 1, 86_400),
        stream_idle_timeout=number("balancer_stream_idle_timeout", 1, 86_400),
        retries=number("balancer_retries", 0, 100),
        slots=number("balancer_slots", 0, 10_000),
        queue_size=number("balancer_queue_size", 0, 100_000),
        queue_timeout=number("balancer_queue_timeout", 1, 86_400),
        stop_timeout=number("balancer_stop_timeout", 0, 86_400),
        keep_flows=number("balancer_keep_flows", 0, 1_000_000),
        body_limit=_size("balancer_body_limit", get("balancer_body_limit")),
        show_control=bool(get("balancer_show_control")),
        announce=bool(get("balancer_announce")),
        relay=bool(get("balancer_relay")),
        relay_selector=bool(get("balancer_relay_selector")),
        lean=bool(get("balancer_lean")),
        origins=_patterns("balancer_origins", get("balancer_origins"), check_pattern),
        hosts=_patterns("balancer_hosts", get("balancer_hosts"), check_host_pattern),
        allow_from=_networks(get("balancer_allow_from")),
        memory=_memory(get("balancer_memory")),
    )


def _size(name: str, value: object) -> int:
    try:
        size = parse_size(str(value).strip().lower())
    except ValueError:
        size = None
    if size is None or not 0 <= size <= MAX_BODY_LIMIT:
        raise ValueError(
            f"{name}: {str(value)[:40]!r} is not accepted; it takes a size from 0 to 1g, such as 500k or 4m"
        )
    return size


def _memory(value: object) -> int:
    text = str(value).strip().lower()
    if not text:
        return max(machine_memory() // PART, LEAST_MEMORY)
    try:
        size = parse_size(text)
    except ValueError:
        size = None
    if size is None or not LEAST_MEMORY <= size <= MOST_MEMORY:
        raise ValueError(
            f"balancer_memory: {text[:40]!r} is not accepted; it takes a size from 1m to 1t, such as 512m or 4g"
        )
    return size


def _patterns(name: str, entries: object, check: Callable[[str], str]) -> tuple[str, ...]:
    try:
        return tuple(check(entry) for entry in _split(entries if isinstance(entries, Sequence) else ()))
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e


def _networks(entries: object) -> tuple[Network, ...]:
    try:
        return tuple(
            network
            for entry in _split(entries if isinstance(entries, Sequence) else ())
            for network in read_network(entry)
        )
    except ValueError as e:
        raise ValueError(f"balancer_allow_from: {e}") from e


def _split(entries: Sequence[str]) -> Iterator[str]:
    """mitmproxy hands a sequence option given once as one entry: let that hold several, as people expect."""
    for whole in entries:
        yield from (part.strip() for part in whole.split(",") if part.strip())


def static_agents(entries: Sequence[str]) -> tuple[tuple[str, Address], ...]:
    """Read `balancer_agents`. ValueError says which entry is wrong and why."""
    agents: dict[str, Address] = {}
    accepts = "it takes http://host:port or name=http://host:port"
    for entry in _split(entries):
        match = _STATIC.fullmatch(entry)
        if match is None:
            raise ValueError(f"balancer_agents: {without_password(entry)[:100]!r} is not an agent; {accepts}")
        try:
            address = Address.parse(match["url"])
        except ValueError as e:
            raise ValueError(f"balancer_agents: {e}; {accepts}") from e
        name = match["name"] or str(address)
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(
                f"balancer_agents: {without_password(name)[:80]!r} is not a name: "
                "letters, digits and . _ : [ ] -, at most 64"
            )
        if name in agents:
            raise ValueError(f"balancer_agents: there are two agents called {name!r}; {accepts}")
        agents[name] = address
    return tuple(agents.items())
