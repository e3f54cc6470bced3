"""Starts and stops the balancer with mitmproxy, and runs the periodic work."""

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

from . import accepting, compat, patches
from .access_log import run_in_thread
from .announcement import Announcement
from .balancer import Balancer
from .compat.names import Use
from .configuration import Configuration
from .connections import Connections
from .fastpath import selector
from .fastpath.hooks import HookFastPath
from .inspection.saved_files import make_stream_private
from .mitmproxy_options import misplaced_options
from .replay import replay_as_before, replay_through
from .startup import Startup
from .terminal import Terminal

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables that say where traces go. Without one, nothing of OpenTelemetry is imported."""

WATCH_SECONDS = 0.5
"""Seconds between two runs of the periodic work."""


class Lifecycle:
    """`own` are the classes of all addons of the balancer."""

    name = "ollama-balancer-lifecycle"

    def __init__(
        self,
        balancer: Balancer,
        startup: Startup,
        configuration: Configuration,
        connections: Connections,
        announcement: Announcement,
        terminal: Terminal,
    ) -> None:
        self.balancer = balancer
        self.startup = startup
        self.configuration = configuration
        self.connections = connections
        self.announcement = announcement
        self.terminal = terminal
        self.own: tuple[type, ...] = ()

    def load(self, loader: Loader) -> None:
        balancer = self.balancer
        try:
            unsupported = patches.apply()
        except compat.IncompatibleError as e:
            logger.error("%s", e)  # mitmproxy ends itself on an error that is logged at the start
            balancer.unsupported = None
            return
        if unsupported != balancer.unsupported and unsupported.uses:
            logger.warning("%s", unsupported)
        balancer.unsupported = unsupported
        if balancer.hooks is None and Use.HOOKS not in unsupported:
            balancer.hooks = HookFastPath(loader.master.addons, loader.master.options, self.own)
        accepting.attach(loader.master.addons.get("proxyserver"))
        replay_through(self.connections.http_layer)  # here, as mitmproxy begins with -C before all addons run

    def running(self) -> None:
        balancer, settings = self.balancer, self.balancer.settings
        misplaced = misplaced_options(ctx.options)
        for problem in misplaced:
            logger.error("%s", problem)
        if misplaced or settings is None:
            return
        assert balancer.token
        balancer.running = True
        self.configuration.log_mode()
        self.configuration.log_fleet()
        balancer.stored.log()
        make_stream_private(ctx.master.addons.get("save"))  # it was opened before this was loaded
        self._install_signal_handlers()
        balancer.flows.attach()
        if balancer.hooks is not None:
            balancer.hooks.forget()
        if hasattr(ctx.master, "app"):
            from .inspection.web_page import show_comments

            show_comments()
        if self.startup.tasks:
            return  # the script was loaded again: everything goes on
        self.connections.limit()
        self.startup.begin(self.startup.log_overview(), "overview")
        if any(os.environ.get(name) for name in ENDPOINTS):
            from ..gateway import tracing

            balancer.tracing = tracing.start()
        self.startup.begin(self.startup.run(Path(ctx.options.confdir).expanduser(), settings.demo), "start")
        self.startup.begin(self._watch(), "watchdog")
        self.startup.begin(self.configuration.keys.follow(), "key file")
        self.startup.begin(self.configuration.fleet_file.follow(self.configuration.use_fleet), "fleet file")
        self.announcement.update(balancer.token, wanted=settings.announce)

    def done(self) -> None:
        # A reload calls `running` again before the loop goes on; then nothing is to be stopped.
        self.balancer.running = False
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        balancer = self.balancer
        if balancer.running:
            return
        self.announcement.stop()
        balancer.stopper.release()
        balancer.accounting.count()
        self.startup.stop()
        balancer.gateway.preloads.stop()
        self.connections.stop()
        self.configuration.keys.close()
        # In threads: they wait for the disk, or for whoever receives.
        run_in_thread(balancer.usage.close)
        if (log := self.configuration.access_log.detach()) is not None:
            run_in_thread(log.close)
        if (store := balancer.stored.detach()) is not None:
            run_in_thread(store.close)
        if balancer.tracing is not None:
            run_in_thread(balancer.tracing.stop)
            balancer.tracing = None
        self._restore_mitmproxy()

    def _restore_mitmproxy(self) -> None:
        """Restore mitmproxy as it was before `load`, for new connections."""
        if self.balancer.hooks is not None:
            self.balancer.hooks.on = False
        replay_as_before()
        accepting.detach(ctx.master.addons.get("proxyserver"))
        self.terminal.detach()
        self.balancer.flows.detach()
        patches.restore()
        selector.remove(asyncio.get_running_loop())
        if not ctx.master.should_exit.is_set():
            from .inspection.web_page import hide_comments

            hide_comments()
            self.configuration.overrides.restore(ctx.options)

    def _install_signal_handlers(self) -> None:
        # In mitmproxy's console the interrupt key asks a person.
        interrupt = () if hasattr(ctx.master, "prompt_for_exit") else (signal.SIGINT,)
        # Whoever has started it with nohup wants it to go on.
        hang_ups = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
        handled = [number for number in hang_ups if signal.getsignal(number) is not signal.SIG_IGN]
        self.balancer.stopper.listen(
            signal.SIGTERM,
            *handled,
            *interrupt,
            timeout=lambda: self.balancer.settings.stop_timeout if self.balancer.settings else 0,
        )

    async def _watch(self) -> None:
        """Run the periodic work."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                self.balancer.gateway.tick()
                self.connections.tick()
                self.balancer.accounting.sample()
                self.balancer.audit.tick()
            except Exception:
                logger.exception("Checking the queue failed; trying again.")
