"""Startup after mitmproxy is running: restores the fleet and starts the probes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from mitmproxy.net.local_ip import get_local_ip

from .. import __version__
from ..gateway import descriptors
from ..gateway.tasks import run_in_background
from ..storage.usage import FILE_NAME as USAGE_FILE
from .balancer import Balancer
from .listening import listening, port, reach
from .overview import access_line, next_steps, overview

if TYPE_CHECKING:
    from ..hosts.demo import Demo
    from ..storage.persistence import Persistence

logger = logging.getLogger(__name__)

START_SECONDS = 10.0
"""Seconds that an early request waits for the demo fleet and the first round of probes."""

OVERVIEW_SECONDS = 3.0
"""Seconds after which the log names the agents that have not answered until then as such."""

LIVENESS = "ollama_balancer.core.liveness"
"""The logger that tells who has come online: at the start the overview does."""

LOADING_SECONDS = 0.2
"""Seconds until the remaining modules are imported unless needed earlier, so that /health is answered first."""


class Startup:
    """Imports what is slow to import, then starts the probes."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self.demo: Demo | None = None
        self.persistence: Persistence | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self._wanted = asyncio.Event()
        """Set when a request needs the remaining modules."""
        self._ready = asyncio.Event()
        """Set when registered hosts are restored and the prober is started."""
        self._demo_ready = asyncio.Event()
        self._probed = False
        """Whether the fleet has been probed once."""

    def begin(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        """Run it until shutdown."""
        self.tasks.append(run_in_background(coroutine, name))

    def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.tasks.clear()
        if self.persistence is not None:
            self.persistence.save()
            self.persistence = None

    async def run(self, confdir: Path, demo: int) -> None:
        """Restore registered agents and start the prober."""
        balancer = self.balancer
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOADING_SECONDS):
                    await self._wanted.wait()
            await asyncio.to_thread(_import_remaining)
            from ..hosts.prober import Prober
            from ..storage.persistence import Persistence

            self.persistence = Persistence(confdir, balancer.registry, balancer.accounting.history, balancer.events)
            self.persistence.restore_agents()
            await self.persistence.restore_learned()
            await asyncio.to_thread(balancer.usage.open, confdir / USAGE_FILE)
            await self.persistence.begin_events(f"version {__version__}, mode {balancer.registry.mode}")
            # What is loaded now stays: collecting garbage would go through all of it, and hold up every stream.
            gc.freeze()
            self.begin(self.persistence.persist_agents(), "state file")
            self.begin(self.persistence.persist_history(), "history file")
            self.begin(self.persistence.persist_events(), "event file")
            self.begin(self.persistence.persist_learned(), "file of what was learned")
            balancer.prober = balancer.gateway.prober = Prober(
                balancer.registry,
                wants_local=lambda: balancer.has_nothing_configured,
                via=balancer.via,
                at_once=descriptors.most_probes(descriptors.raise_limit()),
            )
            self.begin(balancer.prober.run(), "agent prober")
            balancer.dns_agents.on_new = balancer.prober.probe_now
            self.begin(balancer.dns_agents.run(), "names of agents")
            if demo:
                self.begin(self._run_demo(demo), "demo fleet")
            else:
                self._demo_ready.set()
        finally:
            self._ready.set()

    async def log_overview(self) -> None:
        """Log who is there and what to do next, when the hosts have been probed once."""
        liveness = logging.getLogger(LIVENESS)
        liveness.addFilter(_is_warning)
        try:
            await self._ready.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(START_SECONDS):
                    await self._demo_ready.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OVERVIEW_SECONDS):
                    if self.balancer.prober is not None:
                        await self.balancer.prober.first_round.wait()
            self._log_overview()
        finally:
            liveness.removeFilter(_is_warning)

    def _log_overview(self) -> None:
        balancer, access = self.balancer, self.balancer.access
        assert balancer.token
        at, agents = reach(listening(), get_local_ip()), list(balancer.registry)
        line = access_line(at, needs_key=access.needs_key, keys=access.keyring.clients)
        closed = access.needs_key or at is None or at.local
        for each in overview(at, agents, looks_here=balancer.has_nothing_configured):
            logger.info("%s", each)
        logger.log(logging.INFO if closed else logging.WARNING, "%s", line)
        for each in next_steps(at, balancer.token, agents, needs_key=access.needs_key):
            logger.info("%s", each)

    async def _run_demo(self, count: int) -> None:
        from ..hosts.demo import Demo  # only here: nobody else pays for the simulator's imports

        token, own_port = self.balancer.token, port()
        assert token
        if own_port is None:
            logger.error("balancer_demo: mitmproxy listens on no port, so the demo fleet has nobody to report to.")
            self._demo_ready.set()
            return
        url = f"http://127.0.0.1:{own_port}"
        self.demo = Demo(self.balancer.registry, count, url, token.value, self._demo_ready)
        await self.demo.run()

    async def wait_until_loaded(self) -> None:
        """Wait until the fleet is restored and the control API is imported."""
        self._wanted.set()
        await self._ready.wait()

    async def wait_until_probed(self) -> None:
        """Wait, with a limit, until the hosts have been probed once."""
        if self._probed:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self.wait_until_loaded()
                await self._demo_ready.wait()
                assert self.balancer.prober
                await self.balancer.prober.first_round.wait()
                await self.balancer.dns_agents.first_round.wait()
        self._probed = True


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO


def _import_remaining() -> None:
    """Import what is used right after the start, in a thread, so that the first answers do not wait for it."""
    from ..api import app, reports  # noqa: F401
    from ..gateway import fanout  # noqa: F401
    from ..hosts import prober  # noqa: F401
    from ..ollama import answer_watcher  # noqa: F401
    from ..storage import persistence  # noqa: F401
