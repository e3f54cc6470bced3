"""Checks the options as a whole and applies them."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader

from ..core.events import MAX_REASON, EventKind
from ..core.static_agents import AgentSpec
from ..gateway.access import AccessMode
from ..gateway.timeouts import Timeouts
from ..settings import options
from ..settings.fleet import Fleet
from ..storage import token as tokens
from ..text import first_names, one_line
from .access_log import AccessLog
from .announcement import Announcement
from .audit_file import AuditFile
from .balancer import Balancer
from .compat.mitmproxy_names import is_set
from .connections import Connections
from .fleet_file import FleetFile
from .key_file import KeyFile
from .mitmproxy_options import Overrides, add_options, drop_unreadable

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
        self.fleet_file = FleetFile()
        self.fleet_file.on_refused = self._fleet_refused
        self.overrides = Overrides()
        self._given_defaults: set[str] = set()
        """Options that somebody has set to their default, which mitmproxy forgets when a change is refused."""
        self._logged_mode = ""

    def load(self, loader: Loader) -> None:
        add_options(loader)
        for problem in drop_unreadable(loader.master.options):
            logger.error("%s", problem)

    def configure(self, updated: set[str]) -> None:
        balancer = self.balancer
        if balancer.unsupported is None:
            return
        try:
            fleet = self.fleet_file.read(str(ctx.options.balancer_config).strip())
            settings, specs = self._checked(fleet)
            if balancer.token is None or "balancer_token" in updated or "confdir" in updated:
                balancer.token = _load_token(settings)
            self._use_access_log(settings, fleet)
        except ValueError as e:
            if balancer.running:
                raise exceptions.OptionsError(str(e)) from e
            # At the start one clear line, without a traceback: mitmproxy ends itself on an error logged now.
            logger.error("%s", e)
            return
        folder = Path(ctx.options.confdir).expanduser()
        self.keys.open(folder)
        self.audit_file.open(folder)
        if balancer.running:
            self._audit(updated)
        self._use(settings, specs, fleet)

    def use_fleet(self, fleet: Fleet) -> None:
        """The fleet file has changed: apply all of it, or raise ValueError."""
        former, before = self.balancer.settings, self.balancer.agent_specs
        assert former
        settings, specs = self._checked(fleet)
        changed = [each.name for each in fields(settings) if getattr(settings, each.name) != getattr(former, each.name)]
        for name in changed:
            if options.TABLE[options.PREFIX + name].at_start:
                raise fleet.error(("options", name), "it is read at the start only: restart the balancer to change it")
        self._use_access_log(settings, fleet)
        self._use(settings, specs, fleet)
        what = _changes(before, specs, changed)
        self.balancer.audit.option("balancer_config", what)
        for name in (options.PREFIX + each for each in changed):
            value = fleet.options.get(name, getattr(ctx.options, name))
            self.balancer.audit.option(name, options.shown(name, value))
        self.balancer.events.config_reloaded(one_line(f"{Path(fleet.path).name}: {what}", MAX_REASON))
        logger.info("Fleet file %s applied: %s.", fleet.path, what)
        self.log_unused()

    def _fleet_refused(self, path: str) -> None:
        # The log quotes the file; who reads the events need not see what is in it.
        reason = f"{Path(path).name}: what was applied before stays; the log says what is wrong"
        self.balancer.events.config_refused(one_line(reason, MAX_REASON))

    def log_fleet(self) -> None:
        """Say what comes from the fleet file."""
        fleet = self.fleet_file.current
        if fleet.path:
            logger.info("Fleet file %s: %s.", fleet.path, fleet.summary)
            self.log_unused()

    def log_unused(self) -> None:
        """Say which options of the fleet file are overridden."""
        given = self._given()
        unused = [name.removeprefix(options.PREFIX) for name in self.fleet_file.current.options if name in given]
        if unused:
            logger.warning(
                "Not used from the fleet file, as --set, config.yaml or a change in mitmproxy wins: %s.",
                ", ".join(unused),
            )

    def _checked(self, fleet: Fleet) -> tuple[options.Settings, dict[str, AgentSpec]]:
        """The options and the agents together. ValueError says what is wrong, and where."""
        settings = options.read(ctx.options, self._from_file(fleet))
        specs = {name: AgentSpec(where) for name, where in settings.agents}
        for name, spec in fleet.agents.items():
            if name in specs:
                raise fleet.error(
                    ("agents", name), "balancer_agents has an agent of that name, too: remove one of them"
                )
            specs[name] = spec
        try:
            self.balancer.static_agents.check(specs)
            self.balancer.dns_agents.check(specs)
        except ValueError as e:
            source = f"balancer_agents and {fleet.path}" if fleet.path else "balancer_agents"
            raise ValueError(f"{source}: {e}") from e
        return settings, specs

    def _from_file(self, fleet: Fleet) -> dict[str, object]:
        given = self._given()
        return {name: value for name, value in fleet.options.items() if name not in given}

    def _given(self) -> set[str]:
        """Options that were set by mitmproxy's means, which win over the fleet file."""
        return self._given_defaults | {name for name in options.TABLE if is_set(ctx.options, name)}

    def _use_access_log(self, settings: options.Settings, fleet: Fleet) -> None:
        try:
            self.access_log.use(settings.access_log)
        except ValueError as e:
            if "balancer_access_log" in self._from_file(fleet):
                raise fleet.error(("options", "access_log"), str(e)) from e
            raise

    def _use(self, settings: options.Settings, specs: dict[str, AgentSpec], fleet: Fleet) -> None:
        balancer = self.balancer
        balancer.settings = settings
        balancer.agent_specs = specs
        self._given_defaults |= {
            name for name in self._given() if getattr(ctx.options, name) == ctx.options.default(name)
        }
        self.fleet_file.use(fleet)
        self._apply(settings)
        self._soon(self._set_agents)
        balancer.stored.use(settings)
        if balancer.running:
            assert balancer.token
            self.log_mode()
            balancer.stored.log()
            self.announcement.update(balancer.token, wanted=settings.announce)
        self._override(settings)

    def _apply(self, settings: options.Settings) -> None:
        balancer, gateway, registry = self.balancer, self.balancer.gateway, self.balancer.registry
        registry.mode = settings.mode
        registry.stale_after = settings.stale_after
        registry.slots = settings.slots
        registry.preloading.on = settings.preload
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

    def _set_agents(self) -> None:
        """Register the agents of the option and the fleet file, and remove those that neither names any more."""
        balancer = self.balancer
        balancer.dns_agents.apply(balancer.agent_specs)
        if balancer.static_agents.apply(balancer.agent_specs) and balancer.prober is not None:
            balancer.prober.wake()


def _changes(before: Mapping[str, AgentSpec], after: Mapping[str, AgentSpec], changed: list[str]) -> str:
    """What a change of the fleet file has changed."""
    kinds = {
        "added": [name for name in after if name not in before],
        "changed": [name for name in after if name in before and after[name] != before[name]],
        "removed": [name for name in before if name not in after],
    }
    parts = [f"{kind} {', '.join(first_names(names, 8))}" for kind, names in kinds.items() if names]
    if changed:
        parts.append(f"changed the options {', '.join(changed)}")
    return "; ".join(parts) or "nothing else than before"


def _load_token(settings: options.Settings) -> tokens.Token:
    try:
        return tokens.load(settings.token, ctx.options.confdir)
    except OSError as e:
        where = f"{ctx.options.confdir}/{tokens.FILE_NAME}"
        raise ValueError(
            f"balancer_token: the token cannot be saved in {where} ({e.strerror or e}); make that folder writable "
            f"or set ${tokens.ENVIRONMENT}"
        ) from e
