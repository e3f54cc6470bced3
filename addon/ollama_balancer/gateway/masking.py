"""Masks secrets in the request target: values of query parameters such as `api_key`."""

import re
from urllib.parse import unquote_to_bytes

from ..core.access import SECRET
from ..storage.token import Token

MASK = b"***"

_SECRET = re.compile(
    rb"auth(?!or(?!iz))|(?:api|access|subscription|account|master|private)[-_.]?key|^key$|token(?!s)|secret|passw|^pwd$|"
    rb"credential|cookie|^sig$|signature",
    re.IGNORECASE,
)
_PARAMETER = re.compile(rb"([?&;])([^=&;]*)=([^&;]*)")


def is_ours(data: bytes, token: Token) -> bool:
    """Whether the token is anywhere in there, or what looks like a key."""
    return token.is_in(data) or (b"ob_" in data and SECRET.search(data) is not None)


def mask_target(target: bytes, token: Token) -> tuple[bytes, bytes | None]:
    """The target as shown, and as sent to the agent; None: the same.

    Neither contains the token or a key of the balancer.
    """
    forwarded = target
    if is_ours(target, token) or (b"%" in target and is_ours(unquote_to_bytes(target), token)):
        forwarded = _without(target, token)
    if b"?" not in forwarded:
        return forwarded, None
    path, mark, query = forwarded.partition(b"?")
    masked_target = path + _PARAMETER.sub(_masked, mark + query)
    return masked_target, None if masked_target == forwarded else forwarded


def _masked(found: re.Match[bytes]) -> bytes:
    separator, name, value = found.groups()
    plain = unquote_to_bytes(name) if b"%" in name else name
    return separator + name + b"=" + MASK if value and _SECRET.search(plain) else found[0]


def _without(target: bytes, token: Token) -> bytes:
    """Mask each part of the target that contains the token."""
    parts = re.split(rb"([/?&;=#])", target)
    masked = [MASK if is_ours(part, token) or is_ours(unquote_to_bytes(part), token) else part for part in parts]
    result = b"".join(masked)
    # A token may have a separator in it.
    return b"/" + MASK if is_ours(result, token) or is_ours(unquote_to_bytes(result), token) else result


def without_secrets[T](value: T, token: Token) -> T:
    """The value, with lists and dictionaries in it, where the token and what looks like a key are masked."""
    masked: object = value
    if isinstance(value, dict):
        masked = {key: without_secrets(each, token) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        masked = [without_secrets(each, token) for each in value]
    elif isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        masked = without_secrets(data, token).decode("utf-8", "surrogateescape")
    elif isinstance(value, bytes) and is_ours(value, token):
        masked = SECRET.sub(MASK, value.replace(token.value.encode(), MASK))
    return masked  # type: ignore[return-value]
