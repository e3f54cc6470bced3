"""What the balancer uses of mitmproxy's insides, and what it replaces there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Protocol

from mitmproxy import contentviews, exceptions
from mitmproxy import flow as flows
from mitmproxy.optmanager import OptManager
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.layers.http import HttpLayer, HttpStream

from .names import Absent, Name, Patches, Replaced, Use, calls, has, lookup, takes

_HTTP = "mitmproxy.proxy.layers.http"

if TYPE_CHECKING:
    from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection as BufferedH2Connection
    from mitmproxy.proxy.layers.http._http_h2 import SendH2Data as SendH2Data
else:
    BufferedH2Connection = lookup(f"{_HTTP}._http_h2:BufferedH2Connection")
    SendH2Data = lookup(f"{_HTTP}._http_h2:SendH2Data")


# Layers


class HttpStreamBase(HttpStream):
    """mitmproxy's layer of one request, which takes an event by `on_event`."""

    if TYPE_CHECKING:

        def on_event(self, event: events.Event) -> layer.CommandGenerator[None]: ...

    else:
        on_event = getattr(HttpStream, "_handle_event", Absent)

    def __init_subclass__(cls) -> None:
        cls._handle_event = cls.on_event  # type: ignore[method-assign]


class HttpLayerBase(HttpLayer):
    """mitmproxy's layer of a client's connection, which takes an event by `on_event`."""

    if TYPE_CHECKING:

        def on_event(self, event: events.Event) -> layer.CommandGenerator[None]: ...

    else:
        on_event = getattr(HttpLayer, "_handle_event", Absent)

    def __init_subclass__(cls) -> None:
        cls._handle_event = cls.on_event  # type: ignore[method-assign, assignment]


def is_waiting(each: layer.Layer) -> bool:
    """Whether the layer waits for a command's reply, or has events to handle that came meanwhile."""
    return bool(each._paused or each._paused_event_queue)


# Options, views and lists


def deferred_problem(options: OptManager, name: str) -> str | None:
    """The error in a value that the command line gave before the option existed; None if there is none."""
    value = options.deferred[name]
    if isinstance(value, _Unconverted):
        try:
            options._parse_setval(options._options[name], value.val)
        except exceptions.OptionsError as e:
            return str(e)
    return None


def is_set(options: OptManager, name: str) -> bool:
    """Whether somebody has given the option a value, be it the default."""
    return options._options[name].value is not _unset


_unset = lookup("mitmproxy.optmanager:unset")
_Unconverted = lookup("mitmproxy.optmanager:_UnconvertedStrings")


def install_view(view: contentviews.Contentview) -> None:
    """Have mitmproxy show contents by that view, without telling its pages, which `register` does."""
    contentviews.registry._by_name[view.name.lower()] = view


def remove_view(name: str) -> None:
    contentviews.registry._by_name.pop(name.lower(), None)


def servers_of(instance: Any) -> list[Any]:
    """What listens for a proxy mode, to be changed in place; nothing where mitmproxy has no such list."""
    servers = getattr(instance, "_servers", None)
    return servers if isinstance(servers, list) else []


def can_filter_view(view: Any) -> bool:
    return hasattr(view, "_store") and hasattr(view, "_refilter")


def filter_view(view: Any, is_kept: Callable[[flows.Flow], bool]) -> None:
    """Drop the other flows from mitmproxy's list of flows."""
    for each in list(view._store.values()):
        if not is_kept(each):
            view._store.pop(each.id)
    view._refilter()
    view.sig_store_refresh.send()


def wrap_client_column(patches: Patches, dumper: Any, wrap: Callable[[Any], Any]) -> None:
    """Change how mitmdump names a flow's client. Without effect where it has no function for that."""
    if hasattr(dumper, "_fmt_client"):
        patches.set(dumper, "_fmt_client", wrap(dumper._fmt_client))


class TerminalHandler(Protocol):
    """Prints log lines."""

    formatter: logging.Formatter | None
    level: int
    file: IO[str]
    has_vt_codes: bool
    """Whether the file is a terminal that shows colours."""

    def setFormatter(self, formatter: logging.Formatter | None) -> None: ...  # noqa: N802 - Python's own name


def terminal_handlers() -> list[TerminalHandler]:
    """mitmproxy's, of which there is one at most; none where it has no such thing."""
    kind = _TERMINAL_HANDLER.value
    if _TERMINAL_HANDLER.problem() is not None:
        return []
    handlers: list[Any] = [each for each in logging.getLogger().handlers if isinstance(each, kind)]
    return handlers


_TERMINAL_HANDLER = Name(
    "mitmproxy.addons.termlog:TermLogHandler", Use.DISPLAY, lambda kind: {"file", "has_vt_codes"} <= vars(kind()).keys()
)


# What is replaced, by `patches`

HANDLE_CONNECTION = Replaced(
    "mitmproxy.proxy.server:ConnectionHandler.handle_connection", fits=takes("self", "connection")
)
DRAIN_WRITERS = Replaced("mitmproxy.proxy.server:ConnectionHandler.drain_writers", fits=takes("self"))
ASYNCIO_OF_SERVER = Replaced("mitmproxy.proxy.server:asyncio", fits=lambda module: callable(module.open_connection))
HEAD_BUFFER = Replaced(f"{_HTTP}._http1:ReceiveBuffer", fits=has("maybe_extract_lines"))
READ_REQUEST = Replaced(f"{_HTTP}._http1:Http1Server.read_headers", fits=takes("self", "event"))
READ_ANSWER = Replaced(f"{_HTTP}._http1:Http1Client.read_headers", fits=takes("self", "event"))
ERROR_RESPONSE = Replaced(f"{_HTTP}._http1:make_error_response", fits=takes("status_code", "message"))
BODY_READER = Replaced(f"{_HTTP}._http1:make_body_reader", fits=takes("expected_size"))
REQUEST_HEAD = Replaced("mitmproxy.net.http.http1:read_request_head", fits=takes("lines"))
ANSWER_HEAD = Replaced("mitmproxy.net.http.http1:read_response_head", fits=takes("lines"))
BODY_SIZE = Replaced("mitmproxy.net.http.http1:expected_http_body_size", fits=takes("request", "response"))
VALIDATE_HEADERS = Replaced(f"{_HTTP}:validate_headers", fits=takes("message"))
H2_REQUEST_HEAD = Replaced(f"{_HTTP}._http2:parse_h2_request_headers", fits=takes("h2_headers"))
H2_EVENT = Replaced(f"{_HTTP}._http2:Http2Connection.handle_h2_event", fits=takes("self", "event"))
H2_CONNECTION = Replaced(
    f"{_HTTP}._http2:BufferedH2Connection",
    fits=has("stream_buffers", "stream_trailers", "connection_window_updated", "stream_window_updated"),
)
KILL = Replaced("mitmproxy.flow:Flow.kill", fits=takes("self"))
REPLAY_HANDLER = Replaced("mitmproxy.addons.clientplayback:ReplayHandler", fits=takes("flow", "options"))
DECODERS = Replaced("mitmproxy.net.encoding:custom_decode", fits=lambda decoders: {"gzip", "br"} <= decoders.keys())
CODECS = Replaced("mitmproxy.net.encoding:codecs", fits=lambda module: callable(module.decode))
ROTATE = Replaced("mitmproxy.addons.save:Save.maybe_rotate_to_new_file", fits=takes("self"))
MARKED = Replaced("mitmproxy.flowfilter:FMarked.__call__", Use.DISPLAY, takes("self", "f"))

WRITERS_OF_FLOWS = [
    Name(f"mitmproxy.addons.{module}", fits=calls("open")) for module in ("save", "savehar", "export", "cut")
]
"""Modules that get another `open`."""

NAMES = [
    *(each for each in list(globals().values()) if isinstance(each, Replaced)),
    *WRITERS_OF_FLOWS,
    Name(f"{_HTTP}._http_h2:SendH2Data", fits=has("data", "end_stream")),
    Name(f"{_HTTP}._http1:Http1Connection", fits=has("buf", "body_reader", "state", "stream_id", "read_body", "done")),
    Name(f"{_HTTP}._http2:Http2Connection", fits=has("h2_conn", "protocol_error")),
    Name(
        f"{_HTTP}:HttpStream",
        fits=has(
            "_handle_event",
            "check_invalid",
            "check_killed",
            "handle_protocol_error",
            "make_server_connection",
            "request_body_buf",
            "response_body_buf",
            "send_response",
            "start_request_stream",
            "start_response_stream",
            "state_consume_request_body",
            "state_consume_response_body",
            "state_done",
            "state_errored",
            "state_stream_response_body",
            "state_wait_for_request_headers",
            "state_wait_for_response_headers",
        ),
    ),
    Name(
        f"{_HTTP}:HttpLayer",
        fits=has(
            "_handle_event", "connections", "event_to_child", "make_stream", "streams", "waiting_for_establishment"
        ),
    ),
    Name("mitmproxy.addons.clientplayback:MockServer", fits=takes("flow", "context")),
    Name(
        "mitmproxy.proxy.server:ConnectionHandler",
        fits=has("max_conns", "server_event", "timeout_watchdog", "transports", "wakeup_timer"),
    ),
    Name("mitmproxy.proxy.server:ConnectionIO", fits=has("handler", "reader", "writer")),
    Name("mitmproxy.options:Options", fits=lambda kind: "tcp_timeout" in kind()),
    Name("mitmproxy.optmanager:_UnconvertedStrings", fits=has("val")),
    Name("mitmproxy.optmanager:unset"),
    Name("mitmproxy.optmanager:_Option", fits=has("value")),
    Name("mitmproxy.optmanager:OptManager._parse_setval", fits=takes("self", "o", "values")),
    Name("mitmproxy.optmanager:OptManager", fits=lambda kind: not kind()._options and not kind().deferred),
    Name("mitmproxy.contentviews:registry", fits=lambda registry: registry._by_name.keys() == set(registry)),
    Name("mitmproxy.addons.view:View._refilter", Use.DISPLAY, takes("self")),
    Name("mitmproxy.addons.view:View", Use.DISPLAY, lambda kind: hasattr(kind(), "_store")),
    _TERMINAL_HANDLER,
    Name("mitmproxy.addons.dumper:Dumper._fmt_client", Use.DISPLAY, takes("self", "flow")),
    Name("mitmproxy.proxy.layer:Layer", Use.RELAY, has("_paused", "_paused_event_queue")),
    Name("mitmproxy.proxy.server:TimeoutWatchdog.register_activity", Use.RELAY, takes("self")),
    Name("mitmproxy.addonmanager:AddonManager.handle_lifecycle", Use.HOOKS, takes("self", "event")),
    Name("mitmproxy.addonmanager:AddonManager.register", Use.HOOKS, takes("self", "addon")),
    Name("mitmproxy.addonmanager:AddonManager.remove", Use.HOOKS, takes("self", "addon")),
    Name("mitmproxy.addonmanager:traverse", Use.HOOKS, takes("chain")),
    Name("mitmproxy.log:LegacyLogEvents", Use.HOOKS),
]
