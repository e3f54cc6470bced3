"""Who makes a call of the control API."""

from starlette.requests import Request

from ..gateway.callers import Caller
from .paths import CALLER


def caller_of(request: Request) -> Caller:
    """As the proxy says in the scope; nobody known, where it says nothing."""
    caller: Caller | None = request.scope.get(CALLER)
    return caller or Caller("")
