"""The balancer's mitmproxy options in one table: the fields of `Settings`.

mitmproxy's options, the checks of their values and the table in docs/options.md are made from it;
`python -m ollama_balancer.mitm.options` prints the latter.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mitmproxy.addonmanager import Loader
from mitmproxy.optmanager import OptManager

from ..core.address import Address, without_password
from ..core.policies import DEFAULT_POLICY
from ..gateway.networks import Network
from ..storage.token import ENVIRONMENT as TOKEN_ENVIRONMENT
from ..storage.token import FILE_NAME as TOKEN_FILE
from .compat.mitmproxy_names import deferred_problem
from .option_values import (
    ACCESS,
    AGENTS,
    HOST_NAMES,
    MEMORY,
    MODE,
    NETWORKS,
    ORIGINS,
    PROXIES,
    SIZE,
    SWITCH,
    TOKEN,
    Kind,
    static_agents,
    whole_number,
)

PREFIX = "balancer_"

MODE_ENVIRONMENT = "LOAD_BALANCER_MODE"

_SECONDS = whole_number(1, 86_400)

_CODE = re.compile(r"(?<!\S)(?:\$\w+|--[\w-]+|[^\s`]*(?:://|[*_])[^\s`]*?)(?=[,;.]?(?:\s|$))")
"""Words that Markdown shows as code: URLs, patterns, options and variables."""


@dataclass(frozen=True)
class Option:
    """A row of the table."""

    kind: Kind[Any]
    default: Any
    help: str
    default_text: str
    """What the documentation says instead of an empty default."""
    environment: str
    """The variable that gives the default, where it is set."""


def option[T](kind: Kind[T], default: object, help: str, *, default_text: str = "", environment: str = "") -> T:
    row: T = field(metadata={"option": Option(kind, default, help, default_text, environment)})
    return row


@dataclass(frozen=True)
class Settings:
    """The options, checked. Times are in seconds, sizes in bytes."""

    mode: str = option(MODE, DEFAULT_POLICY, "How an agent is chosen for a request.", environment=MODE_ENVIRONMENT)
    agents: tuple[tuple[str, Address], ...] = option(
        AGENTS,
        [],
        "Static agents, separated by commas; quote the list if it contains spaces.",
    )
    token: str = option(
        TOKEN,
        "",
        "The token that reporters and operators present.",
        default_text=f"${TOKEN_ENVIRONMENT}, else made at the first start and kept in `~/.mitmproxy/{TOKEN_FILE}` "
        "(mode 0600)",
    )
    demo: int = option(
        whole_number(0, 100), 0, "Simulated Ollama hosts to start inside the balancer; read at the start only."
    )
    stale_after: int = option(_SECONDS, 30, "Seconds after which an agent's metrics no longer count.")
    connect_timeout: int = option(
        whole_number(1, 3600), 5, "Seconds to connect to an agent before the next one is tried."
    )
    response_timeout: int = option(
        _SECONDS,
        600,
        "Seconds until the first byte of an answer, over all attempts. The time in an agent's own queue, for loading a "
        "model and for reading a long prompt counts too, so be generous.",
    )
    stream_idle_timeout: int = option(
        _SECONDS,
        120,
        "Seconds without data in the middle of an answer after which its agent has failed. What runs on an agent that "
        "is found offline fails at once. A call that runs no model (pull, push, create) has "
        "balancer_response_timeout.",
    )
    retries: int = option(
        whole_number(0, 100), 2, "Other agents to try when one fails before the first byte of its answer."
    )
    slots: int = option(
        whole_number(0, 10_000),
        0,
        "Requests that one agent may run at once per model; more wait in the balancer's queue. 0: what the agent's "
        "report says, else learned.",
    )
    queue_size: int = option(whole_number(0, 100_000), 1000, "Requests that may wait in the queue.")
    queue_timeout: int = option(_SECONDS, 300, "Seconds that one request may wait in the queue.")
    stop_timeout: int = option(
        whole_number(0, 86_400), 30, "Seconds that running requests get to finish when the balancer is stopped."
    )
    keep_flows: int = option(
        whole_number(0, 1_000_000),
        1000,
        "Finished flows that mitmweb and mitmproxy keep in their list; the oldest are dropped. 0: all are kept.",
    )
    body_limit: int = option(
        SIZE,
        "4m",
        "Up to which size a streamed answer is stored whole in its flow; of a larger one the beginning and the end are "
        "stored. Clients always get all of it. While it runs, an answer may take one and a half times as much, within "
        "balancer_memory.",
    )
    memory: int = option(
        MEMORY,
        "",
        "Memory that request bodies and stored answers may take together. Beyond it finished flows are dropped first, "
        "then less of each answer is stored, then requests with a body get 503 with Retry-After.",
        default_text="a quarter of the machine's memory",
    )
    show_control: bool = option(
        SWITCH, False, "Show and save the balancer's own calls (reports, control API, dashboard) as flows."
    )
    relay: bool = option(
        SWITCH,
        True,
        "Relay streamed answers past mitmproxy's layers where both sides are plain HTTP/1.1 with chunks; only the "
        "speed differs. Takes effect for new answers.",
    )
    relay_selector: bool = option(
        SWITCH,
        True,
        "On Linux, relay past asyncio as well, which saves 7 µs of CPU a chunk; only the speed differs. Takes effect "
        "for new answers.",
    )
    lean: bool = option(
        SWITCH,
        True,
        "Skip mitmproxy's own addons that do nothing under the current options, and run hooks that need not wait at "
        "once. An option that needs an addon brings it back, live.",
    )
    announce: bool = option(
        SWITCH, False, "Announce the balancer on the local network (multicast DNS), for reporters with --discover."
    )
    hosts: tuple[str, ...] = option(
        HOST_NAMES,
        [],
        "Names that requests over loopback may have in their Host header, besides addresses, localhost, this machine's "
        "names and names without a dot. A web server on the same machine that passes on its own name needs it here.",
    )
    allow_from: tuple[Network, ...] = option(
        NETWORKS,
        [],
        "Public addresses and networks that may connect. Loopback, private and link-local addresses and the networks "
        "of the balancer's own interfaces always may. Where calls need a key, any may. Replaces mitmproxy's "
        "block_global.",
    )
    access: str = option(
        ACCESS,
        "auto",
        "Who may come in. open: anybody who can connect. keys: whoever has a key or the token. auto: open until the "
        "first key is added, then keys.",
    )
    trusted_proxies: tuple[Network, ...] = option(
        PROXIES,
        [],
        "Reverse proxies whose X-Forwarded-For says who the client is.",
    )
    origins: tuple[str, ...] = option(
        ORIGINS,
        [],
        "Origins of web pages that may call, besides those that Ollama allows (localhost and apps); separate several "
        "by commas.",
    )


TABLE: dict[str, Option] = {PREFIX + each.name: each.metadata["option"] for each in fields(Settings)}
"""The rows by the options' full names."""


def add_options(loader: Loader) -> None:
    """Tell mitmproxy of the options. The environment gives a default, so that `--set` and config.yaml win over it."""
    for name, row in TABLE.items():
        default = (row.environment and os.environ.get(row.environment)) or row.default
        loader.add_option(name, row.kind.raw, default, f"{row.help} It takes {row.kind.accepts}.")


def read(options: object) -> Settings:
    """Check all options. ValueError names the option and what it accepts."""
    values: dict[str, Any] = {}
    for name, row in TABLE.items():
        try:
            values[name.removeprefix(PREFIX)] = row.kind.parse(getattr(options, name))
        except ValueError as e:
            raise ValueError(_refusal(name, str(e))) from e
    if getattr(options, "stream_large_bodies"):  # noqa: B009 - an option of mitmproxy's
        raise ValueError(
            "stream_large_bodies cannot be used with the balancer: it must see a whole request to choose an agent and "
            "to send it elsewhere when that one fails; answers are streamed anyway. Remove that option"
        )
    return Settings(**values)


def _refusal(name: str, problem: str) -> str:
    row = TABLE[name]
    source = f" (or ${row.environment})" if row.environment else ""
    return f"{name}{source}: {problem}; it takes {row.kind.accepts}"


def markdown() -> Iterator[str]:
    """The lines of the table in the documentation."""
    yield "| option | default | takes | meaning |"
    yield "|---|---|---|---|"
    for name, row in TABLE.items():
        cells = (_default_text(row), row.kind.accepts, row.help)
        yield f"| `{name}` | {' | '.join(_CODE.sub(r'`\g<0>`', cell) for cell in cells)} |"


def _default_text(row: Option) -> str:
    if row.default_text or row.default == []:
        return row.default_text or "none"
    text = f"`{row.default}`" if isinstance(row.default, str) else str(row.default).lower()
    return f"${row.environment}, else {text}" if row.environment else text


def drop_unreadable(options: OptManager) -> list[str]:
    """Take values that are not even of their option's type out of what the command line set, and say what is wrong.

    mitmproxy would fail on them after the addon's `load`, without a word, and run on without the addon: an open proxy.
    """
    problems = []
    for name in list(options.deferred):
        problem = deferred_problem(options, name) if name in options and name.startswith(PREFIX) else None
        if problem is not None:
            del options.deferred[name]
            problems.append(_refusal(name, problem) if name in TABLE else f"{name}: {problem}")
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
    own_names = sorted(name for name in options.keys() if name.startswith(PREFIX))  # noqa: SIM118 - no mapping
    unknown = [name for name in options.deferred if name.startswith(PREFIX)]
    known = ", ".join(own_names)
    return [
        f"{name}: there is no such option; the balancer's options are {known}" for name in unknown
    ] + _find_stray_value(options, own_names)


def _find_stray_value(options: OptManager, own_names: Sequence[str]) -> list[str]:
    """mitmdump takes an argument that belongs to no option for a filter of flows, without a word. After a blank in a
    list, as in `--set balancer_agents=a=http://x, b=http://y`, that is the rest of the list.
    """
    words = str(getattr(options, "dumper_filter", None) or "").split()
    stray = [word for before, word in zip(["", *words], words, strict=False) if not before.startswith("~")]
    advice = "write the list without spaces, or quote it: --set 'NAME=ONE, TWO'"
    for word in stray:
        try:
            static_agents([word])
        except ValueError:
            continue
        return [f"balancer_agents: {without_password(word)[:200]!r} is not part of the option; {advice}"]
    for name in own_names:
        value = getattr(options, name)
        if stray and not isinstance(value, str) and isinstance(value, Sequence):
            last = str(value[-1]) if value else ""
            if last.rstrip().endswith(","):
                return [
                    f"{name}: {without_password(stray[0])[:200]!r} is not part of the option, whose value ends with a "
                    f"comma; {advice}"
                ]
    return []


if __name__ == "__main__":
    print(*markdown(), sep="\n")
