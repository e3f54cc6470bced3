"""What the options' values may be: pure functions from mitmproxy's raw value to the setting."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mitmproxy.utils.human import parse_size

from agent_reporter.limits import NAME_PATTERN

from ..core.address import Address, without_password
from ..core.policies import POLICIES
from ..gateway.access import AccessMode
from ..gateway.memory_budget import PART, machine_memory
from ..gateway.networks import Network, read_network
from ..ollama.origins import check_host_pattern, check_pattern
from ..storage.token import MAX_LENGTH as MAX_TOKEN_LENGTH
from ..storage.token import check as check_token

MAX_BODY_LIMIT = 1024**3

MIN_MEMORY, MAX_MEMORY = 1024**2, 1024**4

_STATIC = re.compile(r"(?:(?P<name>[^=/]+)=)?(?P<url>[a-z][a-z0-9+.-]*://.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Kind[T]:
    """A kind of values."""

    raw: Any
    """The type that mitmproxy gives them."""
    accepts: str
    """Which of them, to follow "it takes"."""
    parse: Callable[[Any], T]
    """ValueError says what is wrong with a value, but not what is accepted."""


def whole_number(low: int, high: int) -> Kind[int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is not accepted")
        return value

    return Kind(int, f"a whole number from {low} to {high}", parse)


def _mode(value: object) -> str:
    if value not in POLICIES:
        raise ValueError(f"{str(value)[:80]!r} is not a mode")
    return str(value)


def _token(value: object) -> str:
    """Empty: none is set. A bad one is not shown."""
    token = str(value)
    if token:
        try:
            check_token(token)
        except ValueError:
            raise ValueError("the value is not a usable token") from None
    return token


def _size(value: object, low: int, high: int) -> int:
    text = str(value).strip().lower()
    try:
        size = parse_size(text)
    except ValueError:
        size = None
    if size is None or not low <= size <= high:
        raise ValueError(f"{text[:40]!r} is not accepted")
    return size


def _memory(value: object) -> int:
    if not str(value).strip():
        return max(machine_memory() // PART, MIN_MEMORY)
    return _size(value, MIN_MEMORY, MAX_MEMORY)


def _entries(value: object) -> Iterator[str]:
    """mitmproxy hands a sequence option given once as one entry: let that hold several, as people expect."""
    for text in value if isinstance(value, Sequence) else ():
        yield from (part.strip() for part in text.split(",") if part.strip())


def static_agents(value: object) -> tuple[tuple[str, Address], ...]:
    """Read `balancer_agents`. ValueError says which entry is wrong and why."""
    agents: dict[str, Address] = {}
    for entry in _entries(value):
        match = _STATIC.fullmatch(entry)
        if match is None:
            raise ValueError(f"{without_password(entry)[:100]!r} is not an agent")
        address = Address.parse(match["url"])
        name = match["name"] or str(address)
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(
                f"{without_password(name)[:80]!r} is not a name: letters, digits and . _ : [ ] -, at most 64"
            )
        if name in agents:
            raise ValueError(f"there are two agents called {name!r}")
        agents[name] = address
    return tuple(agents.items())


def _networks(value: object) -> tuple[Network, ...]:
    return tuple(network for entry in _entries(value) for network in read_network(entry))


def _access(value: object) -> AccessMode:
    try:
        return AccessMode(str(value).strip().lower())
    except ValueError:
        raise ValueError(f"{str(value)[:40]!r} is not accepted") from None


def _proxies(value: object) -> tuple[Network, ...]:
    networks = _networks(value)
    if any(network.prefixlen == 0 for network in networks):
        raise ValueError("not everybody can be trusted to say who they are")
    return networks


ACCESS = Kind(str, f"one of {', '.join(AccessMode)}", _access)
PROXIES = Kind(Sequence[str], "addresses and networks such as 127.0.0.1 or 10.0.0.0/24", _proxies)
MODE = Kind(str, f"one of {', '.join(POLICIES)}", _mode)
TOKEN = Kind(str, f"8 to {MAX_TOKEN_LENGTH} visible ASCII characters without spaces", _token)
SWITCH = Kind(bool, "true or false", bool)
SIZE = Kind(str, "a size from 0 to 1g, such as 500k or 4m", lambda value: _size(value, 0, MAX_BODY_LIMIT))
MEMORY = Kind(str, "a size from 1m to 1t, such as 512m or 4g", _memory)
AGENTS = Kind(Sequence[str], "http://host:port or name=http://host:port", static_agents)
ORIGINS = Kind(
    Sequence[str],
    "scheme://host, scheme://host:port or *, with * for any",
    lambda value: tuple(check_pattern(entry) for entry in _entries(value)),
)
HOST_NAMES = Kind(
    Sequence[str],
    "names without a port, with * for any",
    lambda value: tuple(check_host_pattern(entry) for entry in _entries(value)),
)
NETWORKS = Kind(Sequence[str], "addresses and networks such as 203.0.113.7 or 2001:db8::/32, or *", _networks)
