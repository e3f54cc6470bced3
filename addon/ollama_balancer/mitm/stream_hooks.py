"""The hooks of one request that a stream runs beside mitmproxy's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.proxy import commands

if TYPE_CHECKING:
    from ..gateway.fanout import FanOut


def continue_later(chunk: bytes) -> bytes:
    """The `stream` of a request whose client waits for 100-continue: it is sent when an agent asks for the body."""
    return chunk


@dataclass
class RouteRequestHook(commands.StartHook):
    """The request is complete (or its body is to be streamed) and about to be sent: to which agent?

    The addon has the flow's context say where it goes, or sets the flow's response.
    """

    flow: http.HTTPFlow
    blocking = True


@dataclass
class SendingHook(commands.StartHook):
    """A piece of a large request has been sent: the next one follows when the agent has taken most of it."""

    flow: http.HTTPFlow
    blocking = True


@dataclass
class LongAnswerHook(commands.StartHook):
    """An answer that was to be held turns out to be long: the addon sets its `stream`."""

    flow: http.HTTPFlow
    blocking = True


@dataclass
class AdvanceHook(commands.StartHook):
    """Wait for the next part of several agents' answer."""

    fan_out: FanOut
    blocking = True


@dataclass(eq=False)
class FailedStream:
    flow: http.HTTPFlow
    reason: str
    body: bytes = b""
    """What has come of an answer that was to be held until it is whole."""
    whole: bool = False
    """All has come but the end of the body's framing."""
    last_words: bytes = b""


@dataclass
class StreamFailedHook(commands.StartHook):
    """The agent failed in the middle of its answer.

    The addon says whether the answer is `whole` nevertheless, or may give the client last words in `last_words`.
    """

    failed: FailedStream
    blocking = True
