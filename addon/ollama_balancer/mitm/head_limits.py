"""Limits on message heads, enforced while they are read: what exceeds them is never buffered or parsed.

This module covers HTTP/1 requests and answers, trailers and chunk lines. HTTP/2 has the limits of its library: 64 KiB
of headers (SETTINGS_MAX_HEADER_LIST_SIZE).
"""

import re

import h11

from ..gateway.headers import has_control_characters
from .compat.h11_names import ReceiveBuffer, bytes_of

MAX_LINE = 64 * 1024
"""Bytes of a request line."""

MAX_HEAD = 1024 * 1024
"""Bytes of a head, as in Ollama."""

MAX_FIELDS = 1000

MAX_NAME = 256
"""Bytes of a field's name."""

MAX_HOST = 512
"""Bytes of a Host header or an authority: a name has at most 255, and what is longer takes long to look at."""

MAX_CHUNK_LINE = 4 * 1024
"""Bytes of the line before a chunk: its size, and extensions that nobody uses."""

VERSIONS = frozenset((b"HTTP/1.1", b"HTTP/1.0"))

_BLANK_LINE = re.compile(rb"\n\r?\n")

_VERSION = re.compile(rb"HTTP/[0-9]{1,3}(\.[0-9]{1,3})?")

SMALL = 3 * MAX_FIELDS
"""Bytes of a head that cannot have more than MAX_FIELDS non-blank lines."""


class HeadError(h11.RemoteProtocolError):
    """A rejected head. `line` is the start of its first line."""

    def __init__(self, status: int, message: str, line: bytes = b"") -> None:
        super().__init__(message, error_status_hint=status)
        self.status = status
        self.message = message
        self.line = line


class LimitedBuffer(ReceiveBuffer):
    """h11's buffer, which rejects heads beyond the limits as soon as possible."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = 0
        """Lines counted so far in an incomplete head."""
        self._counted = 0
        self._searched = 0
        """Bytes searched without finding the end of the head."""
        self.ahead = False
        """Whether it holds a pipelined request that waits for its turn."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a complete head; None if more is to come. Raises HeadError beyond the limits."""
        if len(self) > SMALL:
            self._check_size()
        lines = super().maybe_extract_lines()
        if lines is not None:
            self._lines = self._counted = self._searched = 0
            if lines:
                _check_lines(lines)
        return lines

    def _check_size(self) -> None:
        data = bytes_of(self)
        found = _BLANK_LINE.search(data, self._searched)
        end = len(data) if found is None else found.end()
        self._searched = max(0, len(data) - 2)
        self._lines += data.count(b"\n", self._counted, end)
        self._counted = end
        if end > MAX_LINE and data.find(b"\n", 0, MAX_LINE) < 0:
            raise HeadError(414, f"the request line is longer than {MAX_LINE} bytes", bytes(data[:1024]))
        if end > MAX_HEAD:
            raise HeadError(431, f"the headers are larger than {MAX_HEAD} bytes", bytes(data[:1024]))
        if self._lines > MAX_FIELDS + 2:
            raise HeadError(431, f"there are more than {MAX_FIELDS} header fields", bytes(data[:1024]))


def _check_lines(lines: list[bytearray]) -> None:
    first = bytes(lines[0][:1024])
    if len(lines) > MAX_FIELDS + 1:
        raise HeadError(431, f"there are more than {MAX_FIELDS} header fields", first)
    for line in lines:
        if len(line) > MAX_NAME and line is not lines[0] and line.find(b":", 0, MAX_NAME + 1) < 0:
            raise HeadError(431, f"the name of a header field is longer than {MAX_NAME} bytes", first)
        if line[0] in b" \t":
            raise HeadError(400, "a header field is folded over two lines, which HTTP no longer allows", first)


def check_authority(lines: list[bytes]) -> None:
    """Reject a request head with an excessively long host. Raises ValueError."""
    target = lines[0].partition(b" ")[2]
    if not target.startswith((b"/", b"*")):
        authority = target.partition(b"://")[2] or target
        if len(authority) > MAX_HOST and not 0 <= authority.find(b"/") <= MAX_HOST:
            raise ValueError(f"the target's host is longer than {MAX_HOST} bytes")
    for line in lines:
        if len(line) > MAX_HOST and line[:5].lower() == b"host:":
            raise ValueError(f"the Host header is longer than {MAX_HOST} bytes")


def check_request(lines: list[bytes]) -> None:
    """Reject a request head with another HTTP version, or with bytes that RFC 9110 forbids.

    Raises ValueError, or HeadError for the version.
    """
    version = lines[0].rpartition(b" ")[2]
    if version.startswith(b"HTTP/") and version not in VERSIONS:
        version_text = _printable(version) if _VERSION.fullmatch(version) else "this"
        raise HeadError(505, f"{version_text} is not a supported HTTP version", lines[0][:1024])
    _check_bytes(lines)


def check_answer(lines: list[bytes]) -> None:
    """Reject a response head that is not HTTP/1.x or has forbidden bytes in its fields (RFC 9110).

    Raises ValueError. The reason phrase is not checked, as it is not forwarded.
    """
    version, _, rest = lines[0].partition(b" ")
    status = rest[:4].strip()
    if version not in VERSIONS:
        raise ValueError(f"{_printable(version)} is not a supported HTTP version")
    if not (status.isdigit() and 100 <= int(status) <= 599):
        raise ValueError(f"{_printable(status)} is not an HTTP status")
    _check_bytes(lines[1:])


def _check_bytes(lines: list[bytes]) -> None:
    if has_control_characters(lines):
        raise ValueError("the headers contain control characters")


def _printable(data: bytes) -> str:
    return repr(data[:40])[2:-1]


def check_chunk_line(waiting: int) -> None:
    """Reject a chunk whose size line is longer than allowed."""
    if waiting > MAX_CHUNK_LINE:
        raise h11.RemoteProtocolError(f"the chunk header is longer than {MAX_CHUNK_LINE} bytes")
