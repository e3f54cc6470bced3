"""The id of a request, by which client, balancer and host find it in their logs."""

from __future__ import annotations

import re
import secrets

from .messages import Fields, header

REQUEST_ID_HEADER = "X-Request-Id"

_FIELD = REQUEST_ID_HEADER.lower().encode()
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_of(fields: Fields) -> str:
    """The id that the request has, if it is one of 1 to 128 letters, digits and . _ -; else a new one."""
    given = header(fields, _FIELD)
    return given if given is not None and _VALID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    return secrets.token_hex(12)
