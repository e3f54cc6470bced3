"""Checks the options as a whole and applies them."""

import asyncio
import logging
from collections.abc import Callable, Container
from pathlib import Path

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader

from ..core.address import Address
from ..core.agent import Agent, Source
from ..core.events import EventKind
from ..gateway.access import AccessMode
from ..gateway.timeouts import Timeouts
from ..storage import token as tokens
from ..text import one_line
from . import options
from .access_log import AccessLog
from .announcement import Announcement
from .audit_file import AuditFile
from .balancer import Balancer
from .connections import Connections
from .key_file import KeyFile

logger = logging.getLogger(__name__)


AUDITED_OF_MITMPROXY = frozenset(
    (
        "block_list",
        "confdir",
        "hardump",
        "intercept",
        "listen_host",
        "listen_port",
        "map_local",
        "map_remote",
        "mode",
        "modify_body",
        "modify_headers",
        "proxyauth",
        "save_stream_file",
        "scripts",
        "stickyauth",
        "stickycookie",
    )
)
"""mitmproxy's own options that change what happens to requests, or who can read them."""


class Configuration:
    name = "ollama-balancer-configuration"

    def __init__(self, balancer: Balancer, connections: Connections, announcement: Announcement, keys: KeyFile) -> None:
        self.balancer = balancer
        self.keys = keys
        self.access_log = AccessLog(balancer.accounting)
        self.audit_file = AuditFile(balancer.audit)
        self.connections = connections
        self.announcement = announcement
        self.static: dict[str, Address] = {}
        """The static agents as registered."""
        self.overrides = options.Overrides()
        self._logged_mode = ""

    def load(self, loader: Loader) -> None:
        options.add_options(loader)
        for problem in options.drop_unreadable(loader.master.options):
            logger.error("%s", problem)

    def configure(self, updated: set[str]) -> None:
        balancer = self.balancer
        if balancer.unsupported is None:
            return
        try:
            settings = options.read(ctx.options)
            self._check_static_agents(settings)
            if balancer.token is None or "balancer_token" in updated or "confdir" in updated:
                balancer.token = _load_token(settings)
            self.access_log.use(settings.access_log)
        except ValueError as e:
            if balancer.running:
                raise exceptions.OptionsError(str(e)) from e
            # At the start one clear line, without a traceback: mitmproxy ends itself on an error logged now.
            logger.error("%s", e)
            return
        balancer.settings = settings
        folder = Path(ctx.options.confdir).expanduser()
        self.keys.open(folder)
        self.audit_file.open(folder)
        self._apply(settings)
        self._soon(self._set_static_agents)
        if balancer.running:
            self._audit(updated)
            self.log_mode()
            self.announcement.update(balancer.token, wanted=settings.announce)
        self._override(settings)

    def _apply(self, settings: options.Settings) -> None:
        balancer, gateway, registry = self.balancer, self.balancer.gateway, self.balancer.registry
        registry.mode = settings.mode
        registry.stale_after = settings.stale_after
        registry.slots = settings.slots
        gateway.timeouts = Timeouts(settings.connect_timeout, settings.response_timeout, settings.queue_timeout)
        gateway.watchdog.idle_seconds = settings.stream_idle_timeout
        gateway.router.retries = settings.retries
        gateway.router.queue.size = settings.queue_size
        if balancer.hooks is not None:
            balancer.hooks.on = settings.lean
        balancer.access.mode = AccessMode(settings.access)
        balancer.networks.allowed = settings.allow_from
        balancer.networks.any_allowed = balancer.access.needs_key
        self.connections.recheck_clients()
        balancer.budget.limit = settings.memory
        balancer.flows.keep = settings.keep_flows
        balancer.flows.show_control = settings.show_control
        balancer.flows.attach()  # here, as the first calls come before all addons run

    def _override(self, settings: options.Settings) -> None:
        """Set mitmproxy's own options as the balancer needs them."""
        # The agent is chosen when the request is there; an early connection would be one to nowhere.
        self.overrides.set(ctx.options, "connection_strategy", "lazy")
        # mitmproxy's page about its certificates, under the host name mitm.it, is nothing for clients of Ollama.
        self.overrides.set(ctx.options, "onboarding", False)
        # mitmproxy would close the connection of a public address without a word.
        self.overrides.set(ctx.options, "block_global", False)
        # mitmproxy closes a connection that is silent for that long, which a waiting client is.
        silence = max(settings.queue_timeout + settings.response_timeout, settings.stream_idle_timeout)
        if ctx.options.tcp_timeout <= silence:
            self.overrides.set(ctx.options, "tcp_timeout", silence + 60)

    def _audit(self, updated: set[str]) -> None:
        for name in sorted(updated):
            if name in options.TABLE:
                value = options.shown(name, getattr(ctx.options, name))
                self.balancer.audit.option(name, value)
                if name != "balancer_mode":
                    text = name if value is None else f"{name} = {value}"
                    self.balancer.events.add(EventKind.OPTION, one_line(text))
            elif name in AUDITED_OF_MITMPROXY:
                self.balancer.audit.option(name, None)

    def log_mode(self) -> None:
        mode = self.balancer.registry.mode
        if mode != self._logged_mode:
            if self._logged_mode:
                self.balancer.events.add(EventKind.MODE, f"from {self._logged_mode} to {mode}")
            self._logged_mode = mode
            logger.info("Load balancer mode: %s", mode)

    def _soon(self, change: Callable[[], None]) -> None:
        """Apply a change after all addons have accepted the new options, because any of them may refuse."""
        if not self.balancer.running:
            change()
            return
        try:
            asyncio.get_running_loop().call_soon(change)
        except RuntimeError:
            change()

    def _leaving(self, wanted: Container[str]) -> list[Agent]:
        """Static agents that the option no longer names."""
        found = [self.balancer.registry.get(name) for name in self.static if name not in wanted]
        return [agent for agent in found if agent is not None and agent.source is Source.STATIC]

    def _check_static_agents(self, settings: options.Settings) -> None:
        """ValueError names the option."""
        wanted = dict(settings.agents)
        try:
            self.balancer.registry.check(wanted, self._leaving(wanted))
        except ValueError as e:
            raise ValueError(f"balancer_agents: {e}") from e

    def _set_static_agents(self) -> None:
        """Register the agents of the option and remove those that it no longer names."""
        settings, registry = self.balancer.settings, self.balancer.registry
        assert settings
        wanted = dict(settings.agents)
        if wanted == self.static:
            return
        for agent in self._leaving(wanted):
            registry.remove(agent)
        for name, address in wanted.items():
            if self.static.get(name) == address and registry.get(name) is not None:
                continue
            try:
                registry.register(name, address, Source.STATIC)
            except ValueError as e:
                logger.error("balancer_agents: %s", e)
        self.static = wanted
        if self.balancer.prober is not None:
            self.balancer.prober.wake()


def _load_token(settings: options.Settings) -> tokens.Token:
    try:
        return tokens.load(settings.token, ctx.options.confdir)
    except OSError as e:
        where = f"{ctx.options.confdir}/{tokens.FILE_NAME}"
        raise ValueError(
            f"balancer_token: the token cannot be saved in {where} ({e.strerror or e}); make that folder writable "
            f"or set ${tokens.ENVIRONMENT}"
        ) from e
