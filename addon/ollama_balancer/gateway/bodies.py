"""Decompresses request bodies and refuses those that cannot be read.

A body that the balancer cannot read would bypass the queue and the slots, so on routes that run a model it is refused,
unless the server could not read it either: then a host may report the error.
"""

from urllib.parse import parse_qsl

from ..ollama.decompression import DecompressionError, TooLargeError, decompress
from ..ollama.json_scanning import is_json
from ..ollama.requests import ParsedRequest
from ..ollama.routes import Route

ZSTD = "zstd"
"""The only Content-Encoding that the server accepts in requests."""

MAX_DECOMPRESSED = 20 * 1024 * 1024
"""Bytes after decompression: the server's own limit (`maxDecompressedBodySize`)."""

MOST_FIELDS = 100
"""Parameters of a query string."""

_ESCAPES = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r"}


class RefusedBodyError(Exception):
    """`status` and `message` of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def content_of(route: Route, body: bytes | None, encoding: str) -> bytes | None:
    """The decompressed body. `encoding` is the first Content-Encoding, as written. Raises RefusedBodyError."""
    if not route.accepts_zstd or encoding != ZSTD or body is None:
        return body
    try:
        if len(body) > MAX_DECOMPRESSED:
            raise TooLargeError
        return decompress(body, encoding, MAX_DECOMPRESSED)
    except TooLargeError:
        raise RefusedBodyError(413, f"the body decompresses to more than {MAX_DECOMPRESSED} bytes") from None
    except DecompressionError as e:
        raise RefusedBodyError(400, f"failed to decompress request body: {e}") from None


def check_readable(
    route: Route, parsed: ParsedRequest, content: bytes | None, content_type: str, *, compressed: bool
) -> None:
    """Raise RefusedBodyError if the request might run a model that the balancer cannot determine.

    `compressed`: it has a Content-Encoding. The messages are those of the server.
    """
    if parsed.readable or not route.runs or content is None:
        return
    if route.is_form:
        is_form = "multipart/form-data" in content_type.lower()
        why = "malformed MIME" if is_form else "request Content-Type isn't multipart/form-data"
        raise RefusedBodyError(400, f"failed to parse multipart form: {why}")
    begins = content.lstrip(b" \t\r\n")[:1]
    if begins == b"{" and is_json(content):
        raise RefusedBodyError(400, "the body has too many values or is nested too deeply")
    if compressed and begins:
        raise RefusedBodyError(400, f"invalid character {_quoted(begins[0])} looking for beginning of value")


def model_in_query(target: str, model: str | None) -> str | None:
    """The model of a multipart request. As in the server, the query takes precedence over the form."""
    try:
        fields = parse_qsl(target.partition("?")[2], keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        return model
    named = next((value for name, value in fields if name == "model"), model)
    return named or None


def _quoted(byte: int) -> str:
    """A character as Go's messages show it."""
    if byte in _ESCAPES:
        return f"'\\{_ESCAPES[byte]}'"
    character = chr(byte)
    if character in "'\\":
        return f"'\\{character}'"
    if character.isprintable():
        return f"'{character}'"
    return f"'\\x{byte:02x}'" if byte < 0x80 else f"'\\u{byte:04x}'"
