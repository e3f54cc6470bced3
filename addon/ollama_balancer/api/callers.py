"""Who calls the control API."""

from __future__ import annotations

from starlette.requests import Request

from ..gateway.callers import Caller
from .paths import CALLER


def caller_of(request: Request) -> Caller:
    caller: Caller | None = request.scope.get(CALLER)
    return caller or Caller("")
