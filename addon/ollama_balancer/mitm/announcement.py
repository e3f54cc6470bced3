"""Announces the balancer on the local network while the option says so."""

import asyncio
import logging

from ..gateway.tasks import run_in_background
from ..storage.token import Token
from .listening import listening, port

logger = logging.getLogger(__name__)


class Announcement:
    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._announced: tuple[str, int, tuple[str, ...]] | None = None
        """The announced token, port and addresses."""

    def update(self, token: Token, *, wanted: bool) -> None:
        """Start or stop the announcement."""
        announced = self._parameters(token) if wanted else None
        if announced == self._announced:
            return
        self.stop()
        self._announced = announced
        if announced is not None:
            from ..hosts.announcing import announce

            self._task = run_in_background(announce(*announced), "announcement")

    def _parameters(self, token: Token) -> tuple[str, int, tuple[str, ...]] | None:
        from ..hosts.announcing import addresses_of

        first = port()
        if first is None:
            return None
        addresses = addresses_of(host for host, each in listening() if each == first)
        if addresses:
            return token.value, first, addresses
        logger.warning(
            "balancer_announce: mitmproxy listens on this machine only, so it is not announced; use --listen-host "
            "0.0.0.0 to listen on all addresses."
        )
        return None

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = self._announced = None
