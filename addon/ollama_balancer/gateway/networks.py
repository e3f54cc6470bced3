"""Client addresses that may connect.

Loopback, private, shared and link-local addresses and the networks of the machine's own interfaces, which may be public
in a data centre, are allowed. Others need `balancer_allow_from`.
"""

import ipaddress
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

logger = logging.getLogger(__name__)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ANY = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))

REFRESH_SECONDS = 10.0
"""Seconds between reads of the interfaces, however many unknown clients come."""

MAX_LOGGED = 1_000
"""Addresses remembered as logged."""

MAX_LINES = 20
"""Refusals logged within `LINES_SECONDS`."""

LINES_SECONDS = 60.0


def read_network(entry: str) -> tuple[Network, ...]:
    """The networks of an entry of `balancer_allow_from`. Raises ValueError."""
    if entry == "*":
        return ANY
    try:
        network = ipaddress.ip_network(entry, strict=False)
        if "%" in entry:  # a scope means something on one machine only
            raise ValueError
    except ValueError:
        raise ValueError(f"{entry[:80]!r} is not a network") from None
    return (network,)


def plain_address(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address without its scope, IPv4-mapped ones as IPv4; None if it is not an address."""
    try:
        plain = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return (plain.ipv4_mapped or plain) if isinstance(plain, ipaddress.IPv6Address) else plain


def own_networks() -> list[Network]:
    """The networks of the machine's interfaces, and its own addresses."""
    import psutil  # takes long to load, and only strangers need it

    return [network for cards in psutil.net_if_addrs().values() for network in _networks(cards)]


def _networks(cards: Iterable[Any]) -> Iterator[Network]:
    for card in cards:
        address = plain_address(card.address)
        if address is None:  # of the hardware
            continue
        width = 0
        if card.netmask and (mask := plain_address(card.netmask)) is not None and mask.version == address.version:
            width = int(mask).bit_count()
        # Without a mask, and with one that takes in everybody, the address stands for itself.
        yield ipaddress.ip_network(f"{address}/{width or address.max_prefixlen}", strict=False)


class ClientNetworks:
    """`allowed` are the networks of the option, `own` returns those of the machine."""

    def __init__(self, clock: Callable[[], float], own: Callable[[], Iterable[Network]] = own_networks) -> None:
        self.allowed: tuple[Network, ...] = ()
        self.any_allowed = False
        """Whether any client may connect, as calls need a key."""
        self._clock = clock
        self._read_own = own
        self._own: tuple[Network, ...] = ()
        self._own_until = float("-inf")
        self._logged: dict[str, None] = {}
        self._lines = 0
        self._lines_until = float("-inf")

    def allow(self, address: str) -> bool:
        """Whether a client with that address may connect. A refusal is logged once."""
        plain = plain_address(address)
        if plain is None:
            return False
        if self.any_allowed or not plain.is_global or any(plain in network for network in self.allowed):
            return True
        if any(plain in network for network in self._own_networks()):
            return True
        self._log_refusal(str(plain))
        return False

    def _own_networks(self) -> tuple[Network, ...]:
        now = self._clock()
        if now >= self._own_until:
            self._own_until = now + REFRESH_SECONDS
            try:
                self._own = tuple(self._read_own())
            except OSError as e:
                logger.warning("The networks of this machine's interfaces cannot be read: %s.", e.strerror or e)
        return self._own

    def _log_refusal(self, address: str) -> None:
        now = self._clock()
        if now >= self._lines_until:
            self._lines_until = now + LINES_SECONDS
            self._lines = 0
        if address in self._logged or self._lines > MAX_LINES:
            return
        self._lines += 1
        if self._lines > MAX_LINES:
            logger.warning("More public addresses are refused; they are not logged for a minute.")
            return
        self._logged[address] = None
        if len(self._logged) > MAX_LOGGED:
            del self._logged[next(iter(self._logged))]
        logger.warning(
            "Requests from %s are refused because it is a public address; to allow it: --set balancer_allow_from=%s",
            address,
            address,
        )


MAX_FORWARDED = 64
"""Entries of X-Forwarded-For that are read, from its end."""


def forwarded_address(peer: str, forwarded_for: str | None, trusted: Iterable[Network]) -> str:
    """The client's address. `peer` is who has connected; of X-Forwarded-For, only what trusted proxies have added, at
    its end, counts.
    """
    trusted = tuple(trusted)
    if not trusted or not forwarded_for:
        return peer
    client = peer
    for entry in reversed(["", *forwarded_for.rsplit(",", MAX_FORWARDED)]):
        address = plain_address(client)
        if address is None or not any(address in network for network in trusted):
            break
        if plain_address(entry.strip()) is None:
            break
        client = entry.strip()
    return client
