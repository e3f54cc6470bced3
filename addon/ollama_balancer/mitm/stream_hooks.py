"""Hooks that a stream runs in addition to mitmproxy's."""

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
    """The request is complete, or its body is to be streamed: choose an agent.

    The addon sets the destination in the context, or the response of the flow.
    """

    flow: http.HTTPFlow
    blocking = True


@dataclass
class SendingHook(commands.StartHook):
    """A piece of a large request was sent: wait until the agent has read most of it."""

    flow: http.HTTPFlow
    blocking = True


@dataclass
class LongAnswerHook(commands.StartHook):
    """A buffered answer turns out to be long: the addon sets its `stream`."""

    flow: http.HTTPFlow
    blocking = True


@dataclass
class AdvanceHook(commands.StartHook):
    """Wait for the next part of a combined answer."""

    fan_out: FanOut
    blocking = True


@dataclass(eq=False)
class FailedStream:
    flow: http.HTTPFlow
    reason: str
    body: bytes = b""
    """The buffered part of the answer."""
    whole: bool = False
    """Only the end of the framing is missing."""
    error_trailer: bytes = b""


@dataclass
class StreamFailedHook(commands.StartHook):
    """The agent failed in the middle of its answer.

    The addon sets `whole` if the answer is complete nevertheless, or `error_trailer` to end the stream with.
    """

    failed: FailedStream
    blocking = True
