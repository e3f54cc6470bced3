"""HTTP messages as plain data.

Header fields are pairs of bytes in their original order and spelling.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from typing import NamedTuple

type Fields = tuple[tuple[bytes, bytes], ...]

JSON_TYPE = b"application/json; charset=utf-8"

RETRY_AFTER = "5"
"""Seconds: by then every agent that was away has been probed again."""


class ClientRequest(NamedTuple):
    """The request to be sent now; a user may have edited it."""

    method: str
    target: str
    """Path and query."""
    body: bytes | None = None
    """None while the body is still to come."""
    content_type: str = ""
    encoding: str = ""
    """The first Content-Encoding, as it is written."""
    websocket: bool = False
    """Whether it asks for its connection to become a WebSocket."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class AgentRequest(NamedTuple):
    """A request as several agents get it, each with its own Host in place of the one here."""

    method: str
    target: str
    fields: Fields
    body: bytes | None
    """None where it is fed while it comes."""
    http10: bool = False
    """Whether the client speaks HTTP/1.0, to which no chunks can be sent."""


@dataclass(frozen=True)
class Response:
    """A response: of a host, of the balancer, or combined; without a body if it streams."""

    status: int
    fields: Fields = ()
    body: bytes = b""

    def header(self, name: bytes) -> str | None:
        """All values of a header, with commas between; None if there is none. The name is in lower case."""
        return header(self.fields, name)


def header(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """All values of a header, with commas between; None if there is none. The name is in lower case."""
    found = [value for written, value in fields if len(written) == len(name) and written.lower() == name]
    return b", ".join(found).decode("utf-8", "surrogateescape") if found else None


def date() -> tuple[bytes, bytes]:
    """The Date header of an answer that is made now."""
    return b"Date", formatdate(usegmt=True).encode()


def json_response(status: int, body: bytes, *more: tuple[bytes, bytes]) -> Response:
    length = b"%d" % len(body)
    return Response(status, ((b"Content-Type", JSON_TYPE), date(), (b"Content-Length", length), *more), body)
