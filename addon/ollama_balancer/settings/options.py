"""The balancer's mitmproxy options in one table: the fields of `Settings`.

mitmproxy's options, the checks of their values, the fleet file's options and the table in docs/options.md are made from
it; `python -m ollama_balancer.settings.options` prints the latter.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from ..core.address import Address, DnsName, without_password
from ..core.policies import DEFAULT_POLICY
from ..gateway.networks import Network
from ..storage.token import ENVIRONMENT as TOKEN_ENVIRONMENT
from ..storage.token import FILE_NAME as TOKEN_FILE
from .option_values import (
    ACCESS,
    ACCESS_LOG,
    AGENTS,
    CONFIG,
    FOLDER,
    HOST_NAMES,
    MEMORY,
    MODE,
    NETWORKS,
    ORIGINS,
    PROXIES,
    SIZE,
    STORE_SIZE,
    SWITCH,
    TOKEN,
    Kind,
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
    at_start: bool
    """Whether it is read at the start only."""
    not_in_file: str
    """Why the fleet file cannot give it, and what to do instead; empty: it can."""


def option[T](
    kind: Kind[T],
    default: object,
    help: str,
    *,
    default_text: str = "",
    environment: str = "",
    at_start: bool = False,
    not_in_file: str = "",
) -> T:
    row: T = field(metadata={"option": Option(kind, default, help, default_text, environment, at_start, not_in_file)})
    return row


@dataclass(frozen=True)
class Settings:
    """The options, checked. Times are in seconds, sizes in bytes."""

    mode: str = option(MODE, DEFAULT_POLICY, "How an agent is chosen for a request.", environment=MODE_ENVIRONMENT)
    agents: tuple[tuple[str, Address | DnsName], ...] = option(
        AGENTS,
        [],
        "Static agents, separated by commas; quote the list if it contains spaces. With dns+http:// each address of "
        "the host name is an agent, and the name is resolved again every 5 s.",
        not_in_file="give them as agents of the file",
    )
    config: str = option(
        CONFIG,
        "",
        "The fleet file: agents and options in YAML, applied again whenever the file changes.",
        default_text="none",
        not_in_file="it names the file itself: give it with --set",
    )
    token: str = option(
        TOKEN,
        "",
        "The token that reporters and operators present.",
        default_text=f"${TOKEN_ENVIRONMENT}, else made at the first start and kept in `~/.mitmproxy/{TOKEN_FILE}` "
        "(mode 0600)",
        not_in_file=f"the file holds no secrets: set ${TOKEN_ENVIRONMENT} instead",
    )
    demo: int = option(
        whole_number(0, 100),
        0,
        "Simulated Ollama hosts to start inside the balancer; read at the start only.",
        at_start=True,
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
    preload: bool = option(
        SWITCH,
        True,
        "In the mode adaptive, have a model loaded on one more agent that has room for it while all its slots are in "
        "use, or in place of models that are needed less there.",
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
    access_log: str = option(
        ACCESS_LOG,
        "",
        "Where one JSON line for each request is written, without prompts and secrets. A file is followed by a new one "
        "at 64 MiB; five older ones are kept.",
        default_text="none",
    )
    store: str = option(
        FOLDER,
        "",
        "A folder in which prompts and answers are kept in files, one a day (UTC), that only their owner can read. It "
        "is made if need be.",
        default_text="none",
    )
    store_days: int = option(
        whole_number(1, 3650), 7, "Days of which balancer_store keeps files, today among them; older ones are removed."
    )
    store_size: int = option(
        STORE_SIZE,
        "10g",
        "What the files of balancer_store may take together. The oldest are removed first; a day has several files if "
        "it has more than an eighth of that.",
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


def read(options: object, from_file: Mapping[str, object] = MappingProxyType({})) -> Settings:
    """Check all options, of which the fleet file gives some. ValueError names the option and what it accepts."""
    values: dict[str, Any] = {}
    for name, row in TABLE.items():
        try:
            value = from_file[name] if name in from_file else getattr(options, name)
            values[name.removeprefix(PREFIX)] = row.kind.parse(value)
        except ValueError as e:
            raise ValueError(refusal(name, str(e))) from e
    if getattr(options, "stream_large_bodies"):  # noqa: B009 - an option of mitmproxy's
        raise ValueError(
            "stream_large_bodies cannot be used with the balancer: it must see a whole request to choose an agent and "
            "to send it elsewhere when that one fails; answers are streamed anyway. Remove that option"
        )
    return Settings(**values)


def refusal(name: str, problem: str) -> str:
    """What is wrong with an option, and what it takes."""
    row = TABLE[name]
    source = f" (or ${row.environment})" if row.environment else ""
    return f"{name}{source}: {problem}; it takes {row.kind.accepts}"


def shown(name: str, value: object) -> str | None:
    """An option's value as anybody may see it; None for the token."""
    if TABLE[name].kind is TOKEN:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join([without_password(str(each)) for each in value])
    return without_password(str(value))


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


if __name__ == "__main__":
    print(*markdown(), sep="\n")
