"""How a balancer is announced on the local network (DNS-SD over multicast DNS), and how one knows the right one.

Anybody there can announce anything, and a reporter sends its token to whom it reports to. So an announcement carries a
proof that whoever made it knows the token, made for these addresses and this port: a copy of it leads nowhere else. It
is slow to make, so that a token that people chose is not guessed from it quickly.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .addresses import Endpoint, is_loopback, plain_ip

SERVICE = "_ollama-balancer._tcp.local."

PROOF = "proof"
"""The name of the record's field."""

MAX_ADDRESSES = 16

ROUNDS = 200_000
"""Of PBKDF2: tens of milliseconds."""


@dataclass(frozen=True)
class Announcement:
    """What stands in one: addresses (IPv4 and IPv6), port, and the proof."""

    addresses: tuple[str, ...]
    port: int
    proof: str

    @property
    def urls(self) -> list[str]:
        """Where the balancer is to be reached, IPv4 first."""
        ordered = sorted(self.addresses, key=lambda address: ":" in address)
        return [Endpoint("http", address, self.port).url for address in ordered]

    def proven(self, token: str) -> bool:
        """Whether whoever made it knows the token. Takes tens of milliseconds."""
        return hmac.compare_digest(self.proof.encode(), prove(token, self.port, self.addresses).encode())


def prove(token: str, port: int, addresses: Iterable[str]) -> str:
    """The proof for that port and these addresses, in whatever order."""
    what = " ".join([SERVICE, str(port), *sorted(set(addresses))])
    return hashlib.pbkdf2_hmac("sha256", token.encode(), what.encode(), ROUNDS).hex()


def usable(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those by which others can reach this machine, each once, in `plain_ip`'s spelling; at most MAX_ADDRESSES."""
    found = dict.fromkeys(plain_ip(address) for address in addresses)
    return tuple(address for address in found if _is_usable(address))[:MAX_ADDRESSES]


def _is_usable(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (is_loopback(address) or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified)


def read(addresses: Sequence[str], port: int | None, properties: Mapping[bytes, bytes | None]) -> Announcement:
    """An announcement as it came. Raises ValueError where it is none of a balancer's."""
    proof = properties.get(PROOF.encode()) or b""
    if not port or len(proof) != 64 or not proof.isalnum() or not 0 < len(addresses) <= MAX_ADDRESSES:
        raise ValueError("it is no balancer's announcement")
    plain = tuple(dict.fromkeys(plain_ip(address) for address in addresses))
    return Announcement(plain, port, proof.decode("ascii", "replace"))
