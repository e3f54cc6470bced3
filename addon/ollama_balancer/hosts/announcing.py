"""Announces the balancer on the local network (DNS-SD over multicast DNS) for reporters with --discover."""

import asyncio
import logging
import socket
from collections.abc import Iterable

import psutil

from agent_reporter.announcement import PROOF, SERVICE, prove, usable
from agent_reporter.collectors.network import external_interfaces

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30.0

LONGEST_LABEL = 63
"""Bytes of a name in DNS."""


def addresses_of(listening: Iterable[str]) -> tuple[str, ...]:
    """The addresses under which others reach this machine, given the hosts that mitmproxy listens on; none if only
    loopback.
    """
    hosts = list(listening)
    if any(host in ("", "0.0.0.0", "::") for host in hosts):
        interfaces = psutil.net_if_addrs()
        hosts = [entry.address for name in external_interfaces(interfaces) for entry in interfaces[name]]
    return usable(hosts)


async def announce(token: str, port: int, addresses: tuple[str, ...]) -> None:
    """Announce until cancelled, then withdraw."""
    from zeroconf import Error  # only here: nobody else pays for its import

    while True:
        try:
            await _announce(token, port, addresses)
        except (OSError, Error) as e:
            logger.warning(
                "balancer_announce: cannot announce the balancer on the local network (%s); trying again.", e
            )
        await asyncio.sleep(RETRY_SECONDS)


async def _announce(token: str, port: int, addresses: tuple[str, ...]) -> None:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

    proof = await asyncio.to_thread(prove, token, port, addresses)
    host = socket.gethostname().partition(".")[0] or "ollama-balancer"
    name = f"{host}-{port}".encode()[-LONGEST_LABEL:].decode(errors="ignore")
    info = ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=port,
        parsed_addresses=list(addresses),
        properties={PROOF: proof},
        server=f"{name}.local.",
    )
    async with AsyncZeroconf() as network:
        await network.async_register_service(info, allow_name_change=True)
        logger.info("Announced on the local network as %s, for ollama-agent-reporter --discover.", name)
        try:
            await asyncio.Event().wait()
        finally:
            await network.async_unregister_all_services()
