"""Connections by way of mitmproxy's handlers: a client's, and that on which an agent's answer comes."""

import asyncio
import contextlib

from mitmproxy import ctx, http
from mitmproxy.connection import Client
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

from . import http2


def handlers() -> dict[str, ProxyConnectionHandler]:
    """What serves each client's connection, by the client's id; replays are among them."""
    proxyserver = ctx.master.addons.get("proxyserver")
    return proxyserver.connections if proxyserver is not None else {}


def handler_of(client: Client) -> ProxyConnectionHandler | None:
    """None: it has no connection, as in a replay."""
    return handlers().get(client.id)


def writer_of(client_id: str) -> asyncio.StreamWriter | None:
    handler = handlers().get(client_id)
    io = handler.transports.get(handler.client) if handler is not None else None
    return io.writer if io is not None and isinstance(io.writer, asyncio.StreamWriter) else None


def unsent_to(client_id: str) -> int:
    """Bytes that the client has yet to take from the balancer's own buffer."""
    writer = writer_of(client_id)
    return writer.transport.get_write_buffer_size() if writer is not None else 0


def abort_client(client_id: str) -> None:
    """Cut the connection, whatever the client still has to take."""
    writer = writer_of(client_id)
    if writer is not None:
        writer.transport.abort()


def read_client(client_id: str, on: bool) -> None:
    """Go on reading from a client, or let it wait."""
    writer = writer_of(client_id)
    if writer is None or writer.transport.is_closing():
        return
    transport = writer.transport
    assert isinstance(transport, asyncio.ReadTransport)
    if on:
        transport.resume_reading()
    else:
        transport.pause_reading()


async def drain_client(client_id: str) -> None:
    """Wait until the client has taken most of what was sent to it."""
    writer = writer_of(client_id)
    if writer is not None:
        with contextlib.suppress(OSError):
            await writer.drain()


async def empty_client(client_id: str) -> None:
    """Wait until nothing is left in the balancer's own buffer of what was sent to the client."""
    writer = writer_of(client_id)
    if writer is None or not unsent_to(client_id):
        return
    transport = writer.transport
    low, high = transport.get_write_buffer_limits()
    transport.set_write_buffer_limits(high=1, low=0)
    try:
        await drain_client(client_id)
    finally:
        transport.set_write_buffer_limits(high=high, low=low)


def is_slow(flow: http.HTTPFlow) -> bool:
    """Whether there is something that the flow's client has yet to take."""
    client_id = flow.client_conn.id
    return http2.is_backlogged(client_id, flow.server_conn) or unsent_to(client_id) > 0


async def drain_agent(flow: http.HTTPFlow) -> None:
    """Wait until the agent has taken most of what was sent to it, and in any case until others have had a turn."""
    await asyncio.sleep(0)
    handler = handler_of(flow.client_conn)
    io = handler.transports.get(flow.server_conn) if handler is not None else None
    if io is not None and io.writer is not None:
        with contextlib.suppress(OSError):
            await io.writer.drain()


def cut_agent(flow: http.HTTPFlow) -> None:
    """Close the connection on which the flow's answer is waited for. The layer hears of it as of any failure.

    One that is still being connected has its own, shorter limit, and the layer looks at `timed_out` after it.
    """
    close_server(flow.client_conn, flow.server_conn.id)


def close_server(client: Client, server_id: str) -> None:
    """Cancel the connection to an agent, or the attempt at one."""
    handler = handler_of(client)
    for connection, io in list(handler.transports.items()) if handler is not None else ():
        if connection.id == server_id and io.handler is not None:
            io.handler.cancel("timeout")
