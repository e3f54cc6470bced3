"""Finds balancers on the local network by what they announce there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import announcement
from .addresses import parse_endpoint
from .announcement import SERVICE, Announcement
from .states import StateLog, log, printable
from .timeouts import timeout

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncZeroconf

MAX_FOUND = 16
"""Balancers that are reported to."""

MAX_HEARD = 32
"""Announcements queued for verification; further ones are dropped until repeated."""

ASK_SECONDS = 3.0
"""For what stands in an announcement."""

CONNECT_SECONDS = 2.0
"""For each of a balancer's addresses."""

BETWEEN_SECONDS = 1.0
"""Between two looks: each costs some CPU, and anybody on the network can ask for one."""

RETRY_SECONDS = 30.0

ALONE_SECONDS = 10.0
"""Seconds after which a log line says that no balancer was found."""


class Discovery:
    """`found` is called with the URL of each balancer that announces itself and knows the token, once."""

    def __init__(self, token: str, found: Callable[[str], None]) -> None:
        self._token = token
        self._found = found
        self._urls: set[str] = set()
        self._refused: set[Announcement] = set()
        self._unreached: set[Announcement] = set()
        """Announcements whose unreachability was logged."""
        self._heard: asyncio.Queue[str] = asyncio.Queue(MAX_HEARD)

    async def run(self) -> None:
        """Go on until cancelled."""
        state = StateLog("listening")
        while True:
            try:
                await self._listen()
            except OSError as error:
                state.say("deaf", logging.WARNING, f"cannot listen on the local network ({error}); trying again")
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        from zeroconf import ServiceStateChange  # its import takes a tenth of a second and some megabytes
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        def heard(name: str, state_change: ServiceStateChange, **_: Any) -> None:
            if state_change is not ServiceStateChange.Removed:
                self._hear(name)

        async with AsyncZeroconf() as network:
            browser = AsyncServiceBrowser(network.zeroconf, SERVICE, handlers=[heard])
            alone = asyncio.get_running_loop().call_later(ALONE_SECONDS, self._log_nobody_found)
            try:
                while True:
                    name = await self._heard.get()
                    if not await self._inspect(network, name):
                        # It is heard of again only if it changes.
                        asyncio.get_running_loop().call_later(RETRY_SECONDS, self._hear, name)
                    await asyncio.sleep(BETWEEN_SECONDS)
            finally:
                alone.cancel()
                await browser.async_cancel()

    def _hear(self, name: str) -> None:
        if not self._heard.full():
            self._heard.put_nowait(name)

    async def _inspect(self, network: AsyncZeroconf, name: str) -> bool:
        """Query and verify an announcement; False if it is worth another try."""
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(network.zeroconf, ASK_SECONDS * 1000):
                return False
            candidate = announcement.read(info.parsed_addresses(IPVersion.All), info.port, info.properties)
        except OSError:
            raise
        except Exception:  # whatever a hostile announcement does to the library
            return True
        return await self.verify(candidate, name)

    async def verify(self, candidate: Announcement, name: str) -> bool:
        """Report the balancer if the announcement is genuine; False if it could not be reached."""
        if candidate in self._refused or self._urls.intersection(candidate.urls) or len(self._urls) >= MAX_FOUND:
            return True
        who = printable(name.removesuffix(f".{SERVICE}"))
        if not await asyncio.to_thread(candidate.proven, self._token):
            if len(self._refused) < MAX_HEARD:
                self._refused.add(candidate)
                log.warning(
                    "%s at %s announces itself as a balancer with a different token: ignored", who, candidate.urls[0]
                )
            return True
        url = await reachable(candidate.urls)
        if url is None:
            if candidate not in self._unreached and len(self._unreached) < MAX_HEARD:
                self._unreached.add(candidate)
                log.warning(
                    "cannot reach balancer %s at the address that it announces, %s", who, ", ".join(candidate.urls[:3])
                )
            return False
        log.info("found balancer %s at %s", who, url)
        self._urls.add(url)
        self._found(url)
        return True

    def _log_nobody_found(self) -> None:
        if not self._urls:
            log.warning(
                "no balancer has announced itself on this network yet (it does with --set balancer_announce=true); "
                "waiting for one, or give --balancer URL",
            )


async def reachable(urls: list[str]) -> str | None:
    """The first that takes a connection."""
    for url in urls:
        endpoint = parse_endpoint(url, default_port=80)
        try:
            async with timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return url
    return None
