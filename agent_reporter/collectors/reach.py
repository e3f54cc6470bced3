"""Checks whether balancers can reach the local Ollama, which listens on loopback only by default.

A balancer uses the source address of the reports. That is a loopback address only if the reporter was given one for the
balancer, not if it was given this host's own name or another of its addresses.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable

from ..addresses import is_loopback, resolve
from ..states import StateLog
from ..timeouts import timeout
from .base import Fields, Host

TIMEOUT = 1.0

REMEDIES = {
    "linux": 'run `sudo systemctl edit ollama`, add the lines [Service] and Environment="OLLAMA_HOST=0.0.0.0", and run '
    "`sudo systemctl restart ollama`; or start it as `OLLAMA_HOST=0.0.0.0 ollama serve`",
    "darwin": "run `launchctl setenv OLLAMA_HOST 0.0.0.0` and restart Ollama",
    "win32": "run `setx OLLAMA_HOST 0.0.0.0` and restart Ollama",
}


class ReachCollector:
    """Returns no fields; logs a warning."""

    def __init__(self, host: Host, platform: str = sys.platform) -> None:
        self._port = host.ollama.port
        self._loopback = not host.advertised and (is_loopback(host.ollama.host) or host.ollama.host == "localhost")
        self._balancers = host.balancers
        self._remedy = REMEDIES.get(platform, REMEDIES["linux"])
        self._state = StateLog("reached")

    async def collect(self) -> Fields:
        for name in self._balancers if self._loopback else ():
            with contextlib.suppress(OSError):
                ips = await resolve(name)
                away = [ip for ip in ips if not is_loopback(ip)]
                if away and await on_loopback_only(self._port, local_address_toward(away[0])):
                    self._state.say(
                        "loopback",
                        logging.WARNING,
                        f"Ollama listens on loopback only: the balancer at {name} cannot reach it; {self._remedy}",
                    )
                    return {}
        self._state.say("reached", logging.INFO, "Ollama listens where the balancer can reach it")
        return {}


def local_address_toward(address: str, make: Callable[..., socket.socket] = socket.socket) -> str:
    """This machine's source address toward another. Nothing is sent. Raises OSError without a route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with make(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        own: str = probe.getsockname()[0]
        return own


async def on_loopback_only(port: int, address: str) -> bool:
    """Whether 127.0.0.1 accepts connections while this machine's other address refuses them."""
    return await _refuses(address, port) and not await _refuses("127.0.0.1", port)


async def _refuses(address: str, port: int) -> bool:
    try:
        async with timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False  # inconclusive
    writer.close()
    return False
