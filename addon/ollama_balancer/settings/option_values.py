"""What the options' values may be: pure functions from mitmproxy's raw value to the setting."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_reporter.limits import NAME_PATTERN

from ..core.address import MAX_DNS_PREFIX, Address, DnsName, without_password
from ..core.policies import POLICIES
from ..gateway.access import AccessMode
from ..gateway.memory_budget import PART, machine_memory
from ..gateway.networks import Network, read_network
from ..ollama.origins import check_host_pattern, check_pattern
from ..storage.token import MAX_LENGTH as MAX_TOKEN_LENGTH
from ..storage.token import check as check_token

MAX_BODY_LIMIT = 1024**3

MIN_MEMORY, MAX_MEMORY = 1024**2, 1024**4

MAX_STORE = 1024**4 * 64

MAX_PATH = 4096

_SIZE = re.compile(r"(\d{1,18})([bkmgt]?)", re.ASCII)
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}

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
    schema: Mapping[str, object] = field(default_factory=dict)
    """What JSON Schema can say of them, besides their type."""

    def raw_from(self, value: object) -> Any:
        """A value of the fleet file as mitmproxy's option has it. ValueError as with `parse`, which is done."""
        raw = self._as_raw(value)
        self.parse(raw)
        return raw

    def _as_raw(self, value: object) -> Any:
        if type(value) is self.raw:
            return value
        if type(value) is int and "integer" in str(self.schema.get("type")):
            return str(value)
        if self.raw == Sequence[str]:
            entries = [value] if isinstance(value, str) else value
            if isinstance(entries, list):
                if all(isinstance(entry, str) for entry in entries):
                    return entries
                raise ValueError("an entry of the list is no text: put it in quotes")
        raise ValueError("no value is given" if value is None else f"{shown_value(value)} is not accepted")


def shown_value(value: object) -> str:
    """A value of the fleet file in an error: short, and without passwords."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = without_password(str(value))
    text = text if len(text) <= 80 else text[:80] + "…"
    return repr(text) if isinstance(value, str) else text


def whole_number(low: int, high: int) -> Kind[int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is not accepted")
        return value

    return Kind(int, f"a whole number from {low} to {high}", parse, {"minimum": low, "maximum": high})


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
    match = _SIZE.fullmatch(text)
    size = None if match is None else int(match[1]) * _UNITS[match[2]]
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


def agent_url(name: str | None, url: str) -> tuple[str, Address | DnsName]:
    """The name and the address of a static agent, or of agents that are found in DNS. ValueError says what is wrong."""
    where: Address | DnsName
    if url.lower().startswith("dns+"):
        where = DnsName.parse(url)
        name = where.prefix if name is None else name
        most = MAX_DNS_PREFIX
    else:
        where = Address.parse(url)
        name = str(where) if name is None else name
        most = 64
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > most:
        raise ValueError(
            f"{without_password(name)[:80]!r} is not a name: letters, digits and . _ : [ ] -, at most {most}"
            + (", as each address is added to it" if most != 64 else "")
        )
    return name, where


def static_agents(value: object) -> tuple[tuple[str, Address | DnsName], ...]:
    """Read `balancer_agents`. ValueError says which entry is wrong and why."""
    agents: dict[str, Address | DnsName] = {}
    for entry in _entries(value):
        match = _STATIC.fullmatch(entry)
        if match is None:
            raise ValueError(f"{without_password(entry)[:100]!r} is not an agent")
        name, where = agent_url(match["name"], match["url"])
        if name in agents:
            raise ValueError(f"there are two agents called {name!r}")
        agents[name] = where
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


def _path(value: object) -> str:
    target = str(value).strip()
    if not target.isprintable() or len(target) > MAX_PATH:
        raise ValueError("this is no path")
    return target


_SIZES = {"type": ["string", "integer"]}

CONFIG = Kind(str, "a file's path", _path)
ACCESS_LOG = Kind(str, "a file's path, or - for standard output", _path)
ACCESS = Kind(str, f"one of {', '.join(AccessMode)}", _access, {"enum": [str(mode) for mode in AccessMode]})
PROXIES = Kind(Sequence[str], "addresses and networks such as 127.0.0.1 or 10.0.0.0/24", _proxies)
MODE = Kind(str, f"one of {', '.join(POLICIES)}", _mode, {"enum": list(POLICIES)})
TOKEN = Kind(str, f"8 to {MAX_TOKEN_LENGTH} visible ASCII characters without spaces", _token)
SWITCH = Kind(bool, "true or false", bool)
SIZE = Kind(str, "a size from 0 to 1g, such as 500k or 4m", lambda value: _size(value, 0, MAX_BODY_LIMIT), _SIZES)
MEMORY = Kind(str, "a size from 1m to 1t, such as 512m or 4g", _memory, _SIZES)
FOLDER = Kind(str, "a folder's path", _path)
STORE_SIZE = Kind(
    str, "a size from 1m to 64t, such as 500m or 10g", lambda value: _size(value, MIN_MEMORY, MAX_STORE), _SIZES
)
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
