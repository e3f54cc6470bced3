"""The addon: mitmproxy's hooks, translated for the core. It decides nothing itself."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import gc
import json
import logging
import secrets
import signal
import time
from collections.abc import Callable, Container, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mitmproxy import contentviews, ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client
from mitmproxy.flow import Error
from mitmproxy.net.local_ip import get_local_ip
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.layers import TCPLayer, UDPLayer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.utils import asyncio_utils

from agent_reporter.addresses import is_loopback
from agent_reporter.limits import MAX_BODY_BYTES

from ..api.health import health
from ..api.paths import HEALTH, is_control_path
from ..core.address import Address
from ..core.agent import Agent, Source
from ..core.agent_records import Outcome
from ..core.history import History
from ..core.recent import Recent
from ..core.registry import AgentRegistry
from ..core.stats import RequestSummary
from ..gateway import descriptors, unread
from ..gateway.accounting import KILLED, decision_of, ended, is_row, unrouted
from ..gateway.callers import share_of, take_caller
from ..gateway.clock import SteadyClock
from ..gateway.connections import Connections
from ..gateway.context import Exchange, detach, exchange_of
from ..gateway.gateway import Router, abort_client, drain_agent, drain_client
from ..gateway.memory_budget import PART, MemoryBudget, machine_memory
from ..gateway.networks import ClientNetworks
from ..gateway.outcomes import outcome_of
from ..gateway.router import RETRY_AFTER
from ..gateway.translation import observation_of
from ..gateway.wrong_tokens import WrongTokens
from ..ollama import origins
from ..ollama.error_trailers import last_words
from ..ollama.names import canonical_name
from ..ollama.routes import find_route
from ..ollama.shapes import FEWEST_TOKENS
from ..storage import token as credentials
from ..text import one_line, without_bytes
from . import options, patches
from .answers import dated, error_of, escape_target, last_of, path_of
from .fastpath import relay, selector
from .fastpath.hooks import LeanHooks
from .flow_list import FlowList
from .headers import AGENT_HEADER, ATTEMPTS_HEADER, by_name, for_client, header, keep_alive
from .host_header import host_problem
from .inspection.annotations import annotate, names_of
from .inspection.commands import Commands
from .inspection.contentview import OllamaContentview
from .inspection.decoding import bound_views
from .inspection.keeping import shortened
from .inspection.saved_files import make_stream_private
from .layer import BUFFERED_ANSWER, NAMED_HOST, BalancedHttpLayer, BalancedStream, FailedStream, Routing, continue_later
from .listening import first_steps, reach
from .replay import replay_as_before, replay_through
from .serving import serve
from .shutdown import Stopper

# What takes long to load, and is not needed to answer the first request, is imported where it is used.
if TYPE_CHECKING:
    from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

    from ..api.app import ControlApi
    from ..gateway.fanout import FanOut
    from ..hosts.demo import Demo
    from ..hosts.prober import Prober
    from ..ollama.watching import AnswerWatcher, Verdict
    from ..storage.persistence import Memory

logger = logging.getLogger(__name__)

MAX_BODY = 128 * 1024 * 1024
"""Bytes of a request's body held to be sent again elsewhere; images make prompts of tens of megabytes."""

MAX_CONTROL_PATH = 4 * 1024
"""Bytes of the path and query of a control call."""

REFUSED_BODY = 64 * 1024
"""Bytes taken of the body of a request that has been refused before it came."""

MAX_CONNECTIONS = 100_000
"""Connections that one client may have to one agent: an HTTP/2 client sends many requests at once."""

START_SECONDS = 10.0
"""How long a request that comes right after the start waits for the demo's hosts and for the first round of probes."""

AHEAD_SECONDS = 60.0
"""How long a client that sends requests ahead may leave its answers unread."""

LOADING_SECONDS = 0.2
"""After the start, until the rest is loaded if nobody has asked for it: whoever asks for /health first is answered."""

WATCH_SECONDS = 0.5
"""Between two looks at the requests that wait."""

MOST_UNCOUNTED = 64
"""Requests that are over and not counted yet."""

TELLING_SECONDS = 0.1
"""How long an answer has to take for the times of its pieces to tell how fast it was made."""


NOT_ALLOWED = (
    "this public address may not use the balancer; whoever runs it can allow it with the option balancer_allow_from"
)


def _timed(hook: Callable[[Balancer, http.HTTPFlow], None]) -> Callable[[Balancer, http.HTTPFlow], None]:
    """Count what the hook takes."""

    @functools.wraps(hook)
    def timed(self: Balancer, flow: http.HTTPFlow) -> None:
        began = time.perf_counter()
        hook(self, flow)
        self.tally.own_seconds += time.perf_counter() - began

    return timed


class Balancer:
    """One fleet behind one mitmproxy. It outlives a reload of balancer.py, and so do its agents and requests.

    `clock` gives monotonic seconds.
    """

    name = "ollama-balancer"

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        clock = clock or SteadyClock()
        self.registry = AgentRegistry(clock, must_reach=True, canonical_name=canonical_name)
        self.registry.fleet.on_unproven = self._probe
        self.via = f"1.1 ollama-balancer-{secrets.token_hex(8)}"
        self.stopper = Stopper(self._unfinished, lambda: ctx.master.shutdown())
        self.router = Router(self.registry, self.via, lambda: self.stopper.ending)
        self.router.dispatcher.explains = self._watched
        self.router.on_end = self._count
        self.tally = self.router.tally
        self.recent = Recent(self.registry.clock)
        self.history = History()
        self._born = self.registry.clock()
        self.settings: options.Settings | None = None
        self.token: credentials.Token | None = None
        self.prober: Prober | None = None
        self.demo: Demo | None = None
        self._needed = asyncio.Event()
        """Whether somebody waits for what is loaded after the start."""
        self._ready = asyncio.Event()
        """Whether the hosts that had registered are known, and are asked."""
        self._demo_ready = asyncio.Event()
        self.static: dict[str, Address] = {}
        """The agents of the option, as they were taken in."""
        self.router.on_wait = lambda exchange: self._show(exchange.flow, exchange) if exchange.flow else None
        self._control: ControlApi | None = None
        self._over: collections.deque[tuple[RequestSummary, dict[str, Any] | None]] = collections.deque()
        """Requests that are over and not counted yet."""
        self._fleet_counted = 0
        """The registry's revision when the tally was last told which agents there are."""
        self.memory: Memory | None = None
        self.networks = ClientNetworks(self.registry.clock)
        self.strangers: set[str] = set()
        """The ids of connections whose requests are refused, for where they come from."""
        self.budget = MemoryBudget(machine_memory() // PART)
        self.flows = FlowList(self.budget, self.strangers)
        self._layers: dict[str, list[BalancedHttpLayer]] = {}
        """By the client's id."""
        self.addons = [Commands(self.registry, self.router.dispatcher.line)]
        self.connections = Connections(clock, descriptors.most_clients(descriptors.MOST_USEFUL))
        self._full_at = float("-inf")
        """When it was last said that there are too many connections."""
        self._quiet_accept: descriptors.QuietAccept | None = None
        self._salt = secrets.token_bytes(16)
        self.wrong_tokens = WrongTokens(clock)
        self.unread = unread.Unread(clock)
        self._connect_timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._announcing: asyncio.Task[None] | None = None
        self._announced: tuple[str, int, tuple[str, ...]] | None = None
        """With what it is announced."""
        self._running = False
        self._started = False
        """Whether the fleet has been asked once."""
        self._reported_mode = ""
        self.lean: LeanHooks | None = None

    def _control_api(self) -> ControlApi:
        # No property: mitmproxy looks at all that an addon has for commands when it loads it.
        if self._control is None:
            from ..api.app import ControlApi

            self._control = ControlApi(
                self.registry,
                self.router.dispatcher.line,
                self.tally,
                self.recent,
                self.history,
                self._born,
                self._probe,
                lambda: self.stopper.ending,
                lambda: self.router.in_flight,
            )
        return self._control

    # Lifecycle

    def load(self, loader: Loader) -> None:
        options.add_options(loader)
        for problem in options.drop_unreadable(loader.master.options):
            logger.error("%s", problem)
        # They would log each probe, headers and all, which mitmweb keeps whatever the level.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("mitmproxy.proxy.server").addFilter(_without_bytes)
        if OllamaContentview.name not in contentviews.registry:
            contentviews.add(OllamaContentview)
        bound_views()
        if self.lean is None:
            self.lean = LeanHooks(loader.master.addons, loader.master.options, (Balancer, Commands))
        patches.apply()
        replay_through(self._http_layer)  # here, as mitmproxy begins with -C before all addons run

    def configure(self, updated: set[str]) -> None:
        try:
            settings = options.read(ctx.options)
            self._check_static_agents(settings)
            if self.token is None or "balancer_token" in updated or "confdir" in updated:
                self.token = self._load_token(settings)
        except ValueError as e:
            if self._running:
                raise exceptions.OptionsError(str(e)) from e
            # At the start one clear line, without a traceback: mitmproxy ends itself on an error logged now.
            logger.error("%s", e)
            return
        self.settings = self.router.settings = settings
        self._soon(self._set_static_agents)
        self.registry.mode = settings.mode
        self.registry.stale_after = settings.stale_after
        self.registry.slots = settings.slots
        self.router.dispatcher.retries = settings.retries
        self.router.watchdog.idle_seconds = settings.stream_idle_timeout
        self.router.watchdog.response_seconds = settings.response_timeout
        self.router.dispatcher.line.size = settings.queue_size
        if self.lean is not None:
            self.lean.on = settings.lean
        self.networks.allowed = settings.allow_from
        self._look_at_clients()
        self.budget.limit = settings.memory
        self.flows.keep = settings.keep_flows
        self.flows.show_control = settings.show_control
        self.flows.attach()  # here, as the first calls come before all addons run
        if self._running:
            self._log_mode()
            self._announce()
        # The agent is chosen when the request is there; an early connection would be one to nowhere.
        if ctx.options.connection_strategy != "lazy":
            ctx.options.update(connection_strategy="lazy")
        # mitmproxy's page about its certificates, under the host name mitm.it, is nothing for clients of Ollama.
        if "onboarding" in ctx.options and ctx.options.onboarding:
            ctx.options.update(onboarding=False)
        # mitmproxy would close the connection of a public address without a word.
        if "block_global" in ctx.options and ctx.options.block_global:
            ctx.options.update(block_global=False)
        # mitmproxy closes a connection that is silent for that long, which a waiting client is.
        silence = max(settings.queue_timeout + settings.response_timeout, settings.stream_idle_timeout)
        if ctx.options.tcp_timeout <= silence:
            ctx.options.update(tcp_timeout=silence + 60)

    def running(self) -> None:
        misplaced = options.misplaced(ctx.options)
        for problem in misplaced:
            logger.error("%s", problem)
        if misplaced or self.settings is None:
            return
        self._running = True
        self._log_mode()
        make_stream_private(ctx.master.addons.get("save"))  # it was opened before this was loaded
        self._listen_for_the_end()
        self.flows.attach()
        if self.lean is not None:
            self.lean.forget()
        if hasattr(ctx.master, "app"):
            from .inspection.web_page import show_comments

            show_comments()
        if self._tasks:
            return  # the script was loaded again: everything goes on
        self._limit_connections()
        self._log_start()
        self._start(self._begin(Path(ctx.options.confdir).expanduser(), self.settings.demo), "start")
        self._start(self._watch(), "watchdog")
        self._announce()

    async def _begin(self, confdir: Path, demo: int) -> None:
        """Know again who had registered, and begin to ask the hosts."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOADING_SECONDS):
                    await self._needed.wait()
            await asyncio.to_thread(_load_the_rest)
            from ..hosts.prober import Prober
            from ..storage.persistence import Memory

            self.memory = Memory(confdir, self.registry, self.history)
            self.memory.restore_agents()
            # What is loaded now stays: collecting garbage would go through all of it, and hold up every stream.
            gc.freeze()
            self._start(self.memory.keep_agents(), "state file")
            self._start(self.memory.keep_history(), "history file")
            self.prober = self.router.prober = Prober(
                self.registry,
                take_in_local=self._nothing_configured,
                via=self.via,
                at_once=descriptors.most_probes(descriptors.raise_limit()),
            )
            self._start(self.prober.run(), "agent prober")
            if demo:
                self._start(self._run_demo(demo), "demo fleet")
            else:
                self._demo_ready.set()
        finally:
            self._ready.set()

    async def _wait_until_ready(self) -> None:
        self._needed.set()
        await self._ready.wait()

    def done(self) -> None:
        # A reload calls `running` again before the loop goes on; then nothing is to be stopped.
        self._running = False
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        if not self._running:
            for task in self._tasks:
                task.cancel()
            self._tasks.clear()
            if self._announcing is not None:
                self._announcing.cancel()
            self.stopper.let_go()
            if self.lean is not None:
                self.lean.on = False
            replay_as_before()
            patches.restore()
            if self._quiet_accept is not None:
                self._quiet_accept.restore()
                self._quiet_accept = None
            selector.remove(asyncio.get_running_loop())
            self._count_rest()
            if self.memory is not None:
                self.memory.save()
                self.memory = None

    def _listen_for_the_end(self) -> None:
        # In mitmproxy's console the interrupt key asks a person.
        interrupt = () if hasattr(ctx.master, "prompt_for_exit") else (signal.SIGINT,)
        # Whoever has started it with nohup wants it to go on.
        hang_ups = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
        heard = [number for number in hang_ups if signal.getsignal(number) is not signal.SIG_IGN]
        self.stopper.listen(
            signal.SIGTERM, *heard, *interrupt, timeout=lambda: self.settings.stop_timeout if self.settings else 0
        )

    def _unfinished(self) -> int:
        """Requests that run or wait, and answers that their clients have not taken yet."""
        handlers = ctx.master.addons.get("proxyserver").connections.values()
        writers = [io.writer for handler in handlers if (io := handler.transports.get(handler.client)) is not None]
        unsent = sum(
            1
            for writer in writers
            if isinstance(writer, asyncio.StreamWriter) and writer.transport.get_write_buffer_size() > 0
        )
        return max(len(self.router.live), unsent)

    def _start(self, coroutine: object, name: str) -> None:
        task = asyncio_utils.create_task(coroutine, name=name, keep_ref=True)  # type: ignore[arg-type]
        self._tasks.append(task)

    async def _run_demo(self, count: int) -> None:
        from ..hosts.demo import Demo

        assert self.token
        port = self._port()
        if port is None:
            logger.error("balancer_demo: mitmproxy listens on no port, so the demo fleet has nobody to report to.")
            self._demo_ready.set()
            return
        self.demo = Demo(self.registry, count, f"http://127.0.0.1:{port}", self.token.value, self._demo_ready)
        await self.demo.run()

    def _load_token(self, settings: options.Settings) -> credentials.Token:
        try:
            return credentials.load(settings.token, ctx.options.confdir)
        except OSError as e:
            where = f"{ctx.options.confdir}/{credentials.FILE_NAME}"
            raise ValueError(
                f"balancer_token: the token cannot be kept in {where} ({e.strerror or e}); make that folder writable "
                f"or set ${credentials.ENVIRONMENT}"
            ) from e

    def _soon(self, change: Callable[[], None]) -> None:
        """Do it when all addons have accepted the new options: if one refuses them, nobody is to have changed."""
        if not self._running:
            change()
            return
        try:
            asyncio.get_running_loop().call_soon(change)
        except RuntimeError:
            change()

    def _leaving(self, wanted: Container[str]) -> list[Agent]:
        """Static agents that are in the option no more."""
        found = [self.registry.get(name) for name in self.static if name not in wanted]
        return [agent for agent in found if agent is not None and agent.source is Source.STATIC]

    def _check_static_agents(self, settings: options.Settings) -> None:
        """ValueError names the option."""
        wanted = dict(settings.agents)
        try:
            self.registry.check(wanted, self._leaving(wanted))
        except ValueError as e:
            raise ValueError(f"balancer_agents: {e}") from e

    def _set_static_agents(self) -> None:
        """Take in the agents of the option, and let go of those that are in it no more."""
        assert self.settings
        wanted = dict(self.settings.agents)
        if wanted == self.static:
            return
        for agent in self._leaving(wanted):
            self.registry.remove(agent)
        for name, address in wanted.items():
            if self.static.get(name) == address and self.registry.get(name) is not None:
                continue
            try:
                self.registry.register(name, address, Source.STATIC)
            except ValueError as e:
                logger.error("balancer_agents: %s", e)
        self.static = wanted
        self._probe_now()

    def _nothing_configured(self) -> bool:
        return self.settings is not None and not self.settings.agents and not self.settings.demo

    def _probe(self, agent: Agent) -> None:
        if self.prober is not None:
            asyncio_utils.create_task(self.prober.look_at(agent), name="first look", keep_ref=True)

    def _probe_now(self) -> None:
        if self.prober is not None:
            self.prober.wake()

    def _log_mode(self) -> None:
        if self.registry.mode != self._reported_mode:
            self._reported_mode = self.registry.mode
            logger.info("Load balancer mode: %s", self.registry.mode)

    def _log_start(self) -> None:
        assert self.token and self.settings
        for line in first_steps(reach(self._listening(), get_local_ip()), self.token):
            logger.info("%s", line)
        if self._nothing_configured():
            logger.info(
                "No agent is configured: an Ollama on this machine is taken in if it answers; other hosts come with "
                "their reporter or with --set balancer_agents=http://HOST:11434. --set balancer_demo=3 starts three "
                "simulated hosts to try it out."
            )

    def _announce(self) -> None:
        """Begin or end to announce it on the local network, as the options say."""
        assert self.token and self.settings
        port = self._port()
        wanted = None
        if self.settings.announce and port is not None:
            from ..hosts.announcing import addresses_of

            addresses = addresses_of(host for host, each in self._listening() if each == port)
            if addresses:
                wanted = (self.token.value, port, addresses)
            else:
                logger.warning(
                    "balancer_announce: mitmproxy listens on this machine only, so it is not announced; --listen-host "
                    "0.0.0.0 has it listen on all addresses."
                )
        if wanted != self._announced:
            self._announced = wanted
            if self._announcing is not None:
                self._announcing.cancel()
            self._announcing = None
            if wanted is not None:
                from ..hosts.announcing import announce

                self._announcing = asyncio_utils.create_task(announce(*wanted), name="announcement", keep_ref=True)

    def _listening(self) -> list[tuple[str, int]]:
        proxyserver = ctx.master.addons.get("proxyserver")
        return [(address[0], address[1]) for address in proxyserver.listen_addrs()] if proxyserver else []

    def _port(self) -> int | None:
        listening = self._listening()
        return listening[0][1] if listening else None

    # Connections

    def next_layer(self, data: NextLayer) -> None:
        """Let mitmproxy choose the layers, then put ours in the place of its HTTP layer."""
        ctx.master.addons.get("nextlayer").next_layer(data)
        parent: Layer | None = None
        layer: Layer | None = data.layer
        while layer is not None and type(layer) is not HttpLayer:
            parent, layer = layer, getattr(layer, "child_layer", None)
        if layer is None:
            if isinstance(data.layer, TCPLayer | UDPLayer):
                # Bytes that are not HTTP have no way past the routes: our layer answers them as a bad request.
                data.context.layers.remove(data.layer)
                data.layer = self._http_layer(data.context, HTTPMode.transparent)
            return
        assert isinstance(layer, HttpLayer)
        layer.context.layers.remove(layer)
        ours = self._http_layer(layer.context, layer.mode)
        if parent is None:
            data.layer = ours
        else:
            parent.child_layer = ours  # type: ignore[attr-defined]

    def _http_layer(self, context: Context, mode: HTTPMode) -> BalancedHttpLayer:
        layer = BalancedHttpLayer(
            context,
            mode,
            body_limit=_body_limit,
            body_too_large=lambda flow, limit: error_of(flow, 413, f"the body has more than {limit} bytes"),
            via=self.via,
            budget=self.budget,
            no_memory=_no_memory,
            internal_error=lambda flow: error_of(flow, 500, "the balancer failed to route this; its log says why"),
            relay=self._relay,
            # A replay's handler does more than to run the hooks.
            run_hook=self.lean.run if self.lean and self._handler_of(context.client) else _run_none,
            client_gone=self._client_gone,
        )
        if self._handler_of(context.client) is not None:
            self._layers.setdefault(context.client.id, []).append(layer)
        return layer

    def _handler_of(self, client: Client) -> ProxyConnectionHandler | None:
        """What serves the client's connection. None: it has none, as in a replay."""
        return ctx.master.addons.get("proxyserver").connections.get(client.id)  # type: ignore[no-any-return]

    def _limit_connections(self) -> None:
        """Have as many descriptors as there may be, and keep some of them for other things than clients."""
        limit = descriptors.raise_limit()
        self.connections.most = descriptors.most_clients(limit)
        logger.info("Open files: %d, which allows %d clients at once.", limit, self.connections.most)
        if self._quiet_accept is None:
            self._quiet_accept = descriptors.QuietAccept(asyncio.get_running_loop())

    def client_connected(self, client: Client) -> None:
        """mitmproxy lets a client have five connections to an address, and has the sixth wait without a limit."""
        handler = self._handler_of(client)
        if handler is not None:
            comes_in, leaves = self.connections.add(client.id, str(client.peername[0]) if client.peername else "")
            if leaves is not None:
                abort_client(leaves)
            if not comes_in:
                self._refuse_client(client, handler)
                return
            handler.max_conns = collections.defaultdict(lambda: asyncio.Semaphore(MAX_CONNECTIONS))
        self._look_at(client)

    def _look_at(self, client: Client) -> None:
        """May it come in?"""
        if client.peername and not self.networks.allow(client.peername[0]):
            self.strangers.add(client.id)

    def _look_at_clients(self) -> None:
        """The same of all that are connected."""
        self.strangers.clear()
        proxyserver = ctx.master.addons.get("proxyserver")
        for handler in proxyserver.connections.values() if proxyserver is not None else ():
            self._look_at(handler.client)

    def _refuse_client(self, client: Client, handler: ProxyConnectionHandler) -> None:
        most, now = self.connections.most, self.registry.clock()
        client.error = f"too many connections ({most} at once; the limit of open files allows no more)"
        writer = handler.transports[client].writer
        if isinstance(writer, asyncio.StreamWriter):
            writer.write(patches.refusal(503, client.error))
        if now - self._full_at >= descriptors.LOG_SECONDS:
            self._full_at = now
            logger.warning(
                "Connections are refused: %d clients are connected, or three quarters of that from one address, and "
                "all have requests running. A higher limit of open files (ulimit -n, LimitNOFILE=) allows more.",
                most,
            )

    def head_begun(self, client: Client) -> None:
        self.connections.head_begun(client.id)

    async def next_request(self, client: Client) -> None:
        """A client sends requests ahead: others have a turn before the next, and it takes what it was answered."""
        try:
            async with asyncio.timeout(AHEAD_SECONDS):
                await drain_client(client.id)
        except TimeoutError:
            abort_client(client.id)

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Connect to agents only, whatever led here, and not for longer than the connect timeout."""
        assert self.settings
        address = data.server.address
        if address is None or not self.registry.knows(address[0], address[1]):
            data.server.error = "the balancer connects to its agents only"
            return
        timeout = self.settings.connect_timeout
        self._connect_timers[data.server.id] = asyncio.get_running_loop().call_later(
            timeout, self._close_server, data.client, data.server.id
        )

    def server_connected(self, data: ServerConnectionHookData) -> None:
        self._stop_connect_timer(data.server.id)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        self._stop_connect_timer(data.server.id)

    def client_disconnected(self, client: Client) -> None:
        """Whatever the client still had running is over, should no other hook have said so."""
        self.connections.discard(client.id)
        self.strangers.discard(client.id)
        for layer in self._layers.pop(client.id, ()):
            layer.let_go()
        for exchange in [each for each in self.router.live if each.caller.client_id == client.id]:
            self._cancel(exchange)

    def _client_gone(self, flow: http.HTTPFlow) -> None:
        """The client has left, or has reset the request's stream, whatever the request waits for at this moment."""
        exchange = exchange_of(flow)
        if exchange is not None:
            self._cancel(exchange)

    def _cancel(self, exchange: Exchange, why: str | None = None) -> None:
        """Nobody takes the answer any more. An answer of which the client has all but the end of the body is whole."""
        flow, watcher = exchange.flow, exchange.watcher
        if exchange.outcome is not None or flow is None:
            return
        if watcher is not None and watcher.terminal_seen and flow.response is not None:
            self._judge(exchange, watcher, flow.response)
        else:
            exchange.end(Outcome.CANCELLED, why)
        self._show(flow, exchange)

    def _stop_connect_timer(self, server_id: str) -> None:
        timer = self._connect_timers.pop(server_id, None)
        if timer is not None:
            timer.cancel()

    def _close_server(self, client: Client, server_id: str) -> None:
        """Cancel the connection, or the attempt at one; the layer hears of it as of any other failure."""
        self._connect_timers.pop(server_id, None)
        handler = self._handler_of(client)
        if handler is None:
            return
        for connection, io in list(handler.transports.items()):
            if connection.id == server_id and io.handler is not None:
                io.handler.cancel("timeout")

    # Requests

    def http_connect(self, flow: http.HTTPFlow) -> None:
        flow.response = error_of(flow, 403, "the balancer is no open proxy: CONNECT is refused")

    @_timed
    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Check the token, and take all credentials out of the flow, where people would see them."""
        assert self.token
        if not flow.live:
            return  # it was read from a file
        self.flows.begun(flow)
        self.connections.begun(flow.client_conn.id)
        escape_target(flow.request)
        caller = take_caller(flow, self.token, self._salt)
        self.router.arrived(flow, caller)
        path = path_of(flow)
        problem = None if flow.is_replay else host_problem(flow.request)
        if flow.client_conn.id in self.strangers and not flow.is_replay:
            flow.response = last_of(flow, error_of(flow, 403, NOT_ALLOWED))
        elif problem is not None:
            flow.response = last_of(flow, error_of(flow, 400, problem))
        else:
            flow.response = self._loop_refusal(flow)
            if flow.response is None and not caller.authorized:
                flow.response = self._slowed(flow, self._page_refusal(flow))
        if flow.response is not None or is_control_path(path):
            return
        if _is_upload(flow, path):
            flow.response = None if caller.authorized else self._slowed(flow, self._origin_refusal(flow))
            # Its body is passed on while it comes: it may be larger than the memory.
            if flow.response is None:
                flow.request.stream = True
                if flow.request.headers.get("expect", "").lower() == "100-continue":
                    del flow.request.headers["expect"]
                    flow.request.stream = continue_later

    async def request(self, flow: http.HTTPFlow) -> None:
        if not flow.live or flow.response is not None or flow.error is not None or flow.request.stream:
            return
        self._refuse(flow)
        if flow.response is None and is_control_path(path := path_of(flow)):
            await self._serve(flow, path)

    @_timed
    def _refuse(self, flow: http.HTTPFlow) -> None:
        """Answer what nobody is to get: the requests of pages of other origins."""
        # Who sends it again is no web page.
        trusted = flow.is_replay is not None or _is_authorized(flow)
        flow.response = None if trusted else self._slowed(flow, self._origin_refusal(flow))

    def _slowed(self, flow: http.HTTPFlow, refusal: http.Response | None) -> http.Response | None:
        """The refusal of what the balancer's token would allow. Who presents a wrong one too often is not told so."""
        exchange = exchange_of(flow)
        if refusal is None or exchange is None or not exchange.caller.has_wrong_token:
            return refusal
        peer = flow.client_conn.peername
        seconds = self.wrong_tokens.another(share_of(str(peer[0]) if peer else "", "")[0])
        if seconds is None:
            return refusal
        slowed = error_of(
            flow, 429, "too many wrong tokens came from this address: the balancer's log says where its token is kept"
        )
        slowed.headers["Retry-After"] = str(seconds)
        return slowed

    async def _serve(self, flow: http.HTTPFlow, path: str) -> None:
        """Answer a call of the balancer's own API."""
        if not flow.request.data.method.isalpha():
            flow.response = error_of(flow, 405, "this is not a method of HTTP that is known here")
            return
        if len(flow.request.data.path) > MAX_CONTROL_PATH:
            flow.response = error_of(flow, 414, f"a path of the control API has at most {MAX_CONTROL_PATH} bytes")
            return
        self._count_rest()
        authorized = _is_authorized(flow)
        if path == HEALTH and flow.request.method == "GET":
            status, told = health(self.registry, ending=self.stopper.ending)
            flow.response = http.Response.make(
                status, json.dumps(told, separators=(",", ":")), dated({"Content-Type": "application/json"})
            )
            return
        await self._wait_until_ready()
        from ..api.reports import take_report
        from ..gateway.reachability import told_to_reporter

        reports = authorized and flow.request.method == "POST"
        agent = take_report(self.registry, path, flow.request.raw_content or b"") if reports else None
        if agent is not None:
            now = time.time()
            headers = http.Headers([(k.encode(), v.encode()) for k, v in told_to_reporter(agent).items()])
            flow.response = http.Response(b"HTTP/1.1", 204, b"No Content", headers, b"", None, now, now)
        else:
            await serve(self._control_api().app, flow, authorized=authorized)
            if flow.response is not None and flow.response.status_code == 401:
                flow.response = self._slowed(flow, flow.response)

    def _page_refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        """What a request gets that only a web page with bad intentions sends."""
        request = flow.request
        if header(request.headers, b"service-worker") is not None:
            return error_of(flow, 403, "the balancer serves no service workers")
        local = flow.client_conn.sockname
        host: str | None = vars(request).get(NAMED_HOST)
        if flow.is_replay or local is None or not is_loopback(local[0]) or host is None:
            return None
        if origins.allowed_host(host, self.settings.hosts if self.settings else ()):
            return None
        name = one_line(host, 80)
        return error_of(
            flow,
            403,
            f"Host {name!r} is not a name of this machine: call it by its address, as localhost, or allow the name "
            "with --set balancer_hosts=NAME",
        )

    def _allows(self, origin: str) -> bool:
        return origins.allowed_origin(origin, self.settings.origins if self.settings else ())

    def _origin_refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        """What a web page of another origin gets instead of an answer, and the answer to its preflight."""
        request = flow.request
        origin = header(request.headers, b"origin")
        if not origin or origins.same_origin(origin, request.host_header or ""):
            return None
        route = find_route(path_of(flow))
        allowed = {"Allow": ", ".join(route.methods)} if route is not None else {}
        if not self._allows(origin):
            return http.Response.make(403, b"", dated(allowed if request.method == "OPTIONS" else {}))
        if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
            response = http.Response.make(204, b"", dated(allowed))
            response.headers.pop("content-length", None)
            asked = header(request.headers, b"access-control-request-headers") or ""
            response.headers["Access-Control-Allow-Headers"] = origins.allowed_headers(asked)
            response.headers["Access-Control-Allow-Methods"] = origins.ALLOWED_METHODS
            response.headers["Access-Control-Max-Age"] = "43200"
            _allow_origin(response, origin)
            return response
        return None

    def _loop_refusal(self, flow: http.HTTPFlow) -> http.Response | None:
        if self.via in (header(flow.request.headers, b"via") or ""):
            return error_of(
                flow, 508, "this request comes from the balancer itself: an agent has the balancer's address"
            )
        return None

    async def route_request(self, routing: Routing) -> None:
        """Choose an agent, or answer."""
        exchange = self.router.begin(routing.flow)
        if not self._started:
            await self._start_up()
        if self.router.memory.unsettled and path_of(routing.flow) == "/api/ps":
            await self.router.memory.settle()
        await self.router.route(routing)
        self._show(routing.flow, exchange)

    def _count(self, exchange: Exchange) -> None:
        """It is over. Those that are over are counted some at a time, which takes less than each alone."""
        over = ended(exchange, self.registry)
        self._count_later(over, decision_of(exchange, over) if is_row(exchange) else None)

    def _count_later(self, over: RequestSummary, decision: dict[str, Any] | None = None) -> None:
        self._over.append((over, decision))
        if len(self._over) >= MOST_UNCOUNTED:
            self._count_all()

    def _count_all(self) -> None:
        while self._over:
            over, decision = self._over.popleft()
            self.tally.add(over)
            self.history.add(over)
            self.recent.add(over, decision)

    def _count_rest(self) -> None:
        """Before anybody asks for the counts, and every now and then."""
        began = time.perf_counter()
        self._count_all()
        self.tally.own_seconds += time.perf_counter() - began

    def _show(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        """Write down how it stands, and have that seen, if somebody may look at flows."""
        if self._watched():
            annotate(flow, exchange)
            self.flows.changed(flow)

    def _annotate(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        if self._watched():
            annotate(flow, exchange)

    def _watched(self) -> bool:
        """Whether somebody may look at flows."""
        return self.lean is None or self.lean.watched

    async def _start_up(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._wait_until_ready()
                await self._demo_ready.wait()
                assert self.prober
                await self.prober.first_round.wait()
        self._started = True

    async def sending(self, flow: http.HTTPFlow) -> None:
        """A piece of a large request has been sent."""
        await drain_agent(flow)

    async def advance(self, fan_out: FanOut) -> None:
        """The next part of several agents' answer."""
        await fan_out.advance()

    async def _watch(self) -> None:
        """Have time go by for those who wait."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                self._count_rest()
                self.router.look()
                for client in self.connections.overdue():
                    self.connections.discard(client)
                    abort_client(client)
                if self.unread.due:
                    self._cut_unread()
                self.recent.sample(self.registry)
                if self._fleet_counted != self.registry.revision:
                    self._fleet_counted = self.registry.revision
                    self.tally.fold_removed({agent.name for agent in self.registry})
            except Exception:
                logger.exception("Looking after the waiting requests failed; it goes on.")

    def _cut_unread(self) -> None:
        """Cut the clients that do not take their answers, and free what these have taken."""
        handlers = ctx.master.addons.get("proxyserver").connections
        waiting: list[tuple[tuple[str, int], Hashable]] = []
        for client_id, handler in handlers.items():
            io = handler.transports.get(handler.client)
            if io is not None and (amount := unread.unsent(io.writer)) is not None:
                waiting.append(((client_id, 0), amount))
        for client_id, layers in self._layers.items():
            waiting += [((client_id, stream), size) for layer in layers for stream, size in layer.held()]
        for client_id, stream in self.unread.look(waiting):
            why = f"the client has taken nothing of its answer for {unread.SEND_SECONDS:g} s"
            flows = [flow for layer in self._layers.get(client_id, ()) for flow in layer.flows(stream)]
            exchanges = [exchange for flow in flows if (exchange := exchange_of(flow)) is not None]
            running = [exchange for exchange in exchanges if exchange.outcome is None]
            logger.info("%s: %s, so that it is cut.", self.connections.address_of(client_id), why)
            for exchange in running:
                self._cancel(exchange, why)
            if stream and running:
                self.router.cut(running[0])  # the client's other streams go on
            else:
                abort_client(client_id)

    # Answers

    @_timed
    def responseheaders(self, flow: http.HTTPFlow) -> None:
        exchange = exchange_of(flow)
        response = flow.response
        if response is None:
            return
        origin = header(flow.request.headers, b"origin")
        if (
            origin
            and not origins.same_origin(origin, flow.request.host_header or "")
            and self._allows(origin)
            and "access-control-allow-origin" not in response.headers
        ):
            _allow_origin(response, origin)
        if flow.request.data.http_version == b"HTTP/1.0":
            keep_alive(flow.request, response)
        if exchange is None or not exchange.begun:
            return
        exchange.stop_timer()
        agents = exchange.agents
        own = not agents or exchange.outcome is not None
        for_client(response.headers, exchange.attempts, names_of(agents), own=own)
        if own:
            return  # the balancer's own answer
        exchange.heard()
        exchange.first_byte = exchange.heard_at
        if exchange.lease is not None and response.status_code < 400:
            exchange.lease.began()
        told = by_name(response.headers)
        if exchange.held is None:
            exchange.held = self.budget.hold()
        watcher = exchange.watcher = _watcher()(
            told.get(b"content-type", b"").lower().decode("latin-1"),
            told.get(b"content-encoding", b"").strip().lower().decode("latin-1"),
            self.settings.body_limit if self.settings else 0,
            exchange.held.grow,
        )
        if exchange.fan_out is not None:
            streams = exchange.fan_out.streamed
        else:
            length = told.get(b"content-length", b"")
            streams = watcher.streamed or (length.isdigit() and int(length) > BUFFERED_ANSWER)
        if streams:
            response.stream = exchange.pass_on = _passing_on(exchange, watcher, response)
        self._show(flow, exchange)

    def _relay(self, stream: BalancedStream) -> bool:
        """Take the rest of a streamed answer past mitmproxy's layers; whether to ask again after the next chunk."""
        flow = stream.flow
        exchange = exchange_of(flow)
        handler = self._handler_of(flow.client_conn)
        if (
            self.settings is None
            or not self.settings.relay
            or handler is None
            or exchange is None
            or exchange.pass_on is None
            or flow.response is None
            or flow.response.stream is not exchange.pass_on
            or not relay.suits(stream)
        ):
            return False
        stream.relay = relay.begin(handler, stream, exchange.pass_on, _hearing(exchange, handler))
        if stream.relay is None:
            return True
        self.tally.relayed += 1
        return False

    def long_answer(self, flow: http.HTTPFlow) -> None:
        """It is longer than was thought: it streams from here on."""
        exchange, response = exchange_of(flow), flow.response
        if response is not None:
            watcher = exchange.watcher if exchange is not None else None
            if exchange and watcher:
                response.stream = exchange.pass_on = _passing_on(exchange, watcher, response)
            else:
                response.stream = True

    @_timed
    def response(self, flow: http.HTTPFlow) -> None:
        exchange = detach(flow)
        if exchange is None:
            return
        self.connections.ended(flow.client_conn.id)
        response = flow.response
        if exchange.begun and response is not None:
            watcher = exchange.watcher
            if watcher is not None and exchange.outcome is None:
                if response.stream:
                    _store(response, watcher)
                elif not watcher.answer.events:
                    watcher.feed(response.raw_content or b"")
                self._judge(exchange, watcher, response)
            if exchange.outcome is None:
                exchange.end(Outcome.FAILED, "the balancer failed to route it")
            self._annotate(flow, exchange)
        elif response is not None and response.status_code >= 400 and not is_control_path(path := path_of(flow)):
            self._count_later(unrouted(path, response.status_code))
        _let_go(flow, exchange)
        self.flows.finished(flow)

    @_timed
    def error(self, flow: http.HTTPFlow) -> None:
        exchange = detach(flow)
        if exchange is None:
            return
        self.connections.ended(flow.client_conn.id)
        if exchange.begun:
            self._end_in_error(flow, exchange)
        elif not is_control_path(path := path_of(flow)):
            killed = flow.error is not None and flow.error.msg == Error.KILLED_MESSAGE
            self._count_later(unrouted(path, None, cancelled_by=KILLED if killed else "client"))
        _let_go(flow, exchange)
        self.flows.finished(flow)

    def _end_in_error(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        message = flow.error.msg if flow.error else "unknown error"
        gone = not flow.client_conn.connected or message == Error.KILLED_MESSAGE
        exchange.end(Outcome.CANCELLED if gone else Outcome.FAILED, message)
        if exchange.watcher is not None and flow.response is not None:
            _store(flow.response, exchange.watcher)
        self._annotate(flow, exchange)

    def stream_failed(self, failed: FailedStream) -> None:
        """The agent died in the middle of its answer."""
        exchange = exchange_of(failed.flow)
        response = failed.flow.response
        if exchange is None or exchange.watcher is None or response is None or exchange.outcome is not None:
            return
        agent, watcher = exchange.agent, exchange.watcher
        if not response.stream:
            watcher.feed(failed.body)
            watcher.verdict()
        whole = watcher.terminal_seen if response.stream else watcher.answer.events > 0
        failed.whole = whole and "content-length" not in response.headers
        if failed.whole or not response.stream:
            return
        message = f"agent {agent.name if agent else '?'} failed in the middle of its answer: {one_line(failed.reason)}"
        logger.warning("%s", message)
        if exchange.lease is not None:
            self.registry.ejection.failed(exchange.lease, message)
        exchange.end(Outcome.FAILED, message)
        if watcher.streamed and watcher.answer.error is None and "content-length" not in response.headers:
            words = last_words(exchange.dialect, watcher.content_type, watcher.unended, message)
            # Where a compressed stream cannot go on with them, the client's connection is cut.
            failed.last_words = watcher.ending(words) or b""
            watcher.feed_own(words)

    def _judge(self, exchange: Exchange, watcher: AnswerWatcher, response: http.Response) -> None:
        """Was it a success?"""
        verdict = watcher.verdict()
        lease = exchange.lease
        status = exchange.status = response.status_code
        if lease is not None:
            lease.agent.heard(self.registry.clock())
        problem = verdict.error or f"status {status}"
        if 400 <= status < 500:  # whoever is at fault, the agent serves
            exchange.end(outcome_of(status), problem)
            return
        if status >= 500 or not verdict.whole:
            # Of a 500 that comes here the caller is to blame: the others never get as far.
            if lease is not None and status < 400:
                self.router.heard_error(exchange, problem)
            exchange.end(Outcome.FAILED, problem)
            return
        if speed := _speed(exchange, watcher, verdict):
            exchange.tokens_per_second = speed
        try:
            if lease is not None:
                self.registry.ejection.succeeded(lease)
                if exchange.demand is not None:
                    answer = observation_of(watcher.answer, exchange.demand, streamed=watcher.streamed)
                    self.registry.limiter.answered(lease, answer)
            agent = exchange.agent
            if speed and agent is not None and exchange.model_name is not None:
                agent.speed_measured(exchange.model_name, speed)
        finally:
            exchange.end(Outcome.SUCCEEDED)
            if exchange.unloads and response.status_code < 400:
                self.router.unloaded(exchange)


def _load_the_rest() -> None:
    """Import what is used right after the start, in a thread, so that the first answers do not wait for it."""
    from ..api import app, reports  # noqa: F401
    from ..hosts import prober as probing  # noqa: F401
    from ..ollama import watching  # noqa: F401
    from ..storage import persistence as remembering  # noqa: F401


@functools.cache
def _watcher() -> Callable[[str, str, int, Callable[[int], bool] | None], AnswerWatcher]:
    """Loaded when the first answer comes; to import it each time takes long, too."""
    from ..ollama.watching import watcher_of

    return watcher_of


def _run_none(hook: StartHook) -> bool:
    return False


def _without_bytes(record: logging.LogRecord) -> bool:
    """mitmproxy logs what it has of a head that is malformed or breaks off, credentials and all."""
    if isinstance(record.msg, str):
        record.msg = without_bytes(record.msg)
    return True


def _hearing(exchange: Exchange, handler: ProxyConnectionHandler) -> Callable[[], None]:
    """Notes that the agent has sent something."""
    register_activity: Callable[[], None] = handler.timeout_watchdog.register_activity

    def heard() -> None:
        register_activity()
        exchange.heard()

    return heard


def _passing_on(exchange: Exchange, watcher: AnswerWatcher, response: http.Response) -> Callable[[bytes], bytes]:
    """Passes each chunk on as it is and watches it. At the end, an error event where the terminal event is missing."""
    from ..ollama.watching import NO_TERMINAL

    status = response.status_code

    def passed(chunk: bytes) -> bytes:
        if chunk:
            watcher.feed(chunk)
            exchange.heard()
            return chunk
        if watcher.streamed and status < 400:
            unended = watcher.unended
            error = watcher.verdict().error
            if error == NO_TERMINAL and "content-length" not in response.headers:
                exchange.problem = error
                words = last_words(exchange.dialect, watcher.content_type, unended, error)
                ending = watcher.ending(words)
                watcher.feed_own(words)
                if ending is None:
                    # The compressed stream has ended: only a connection that is cut tells the client.
                    if exchange.flow is not None and exchange.flow.killable:
                        exchange.flow.kill()
                    return b""
                return ending
            if watcher.packed and error is None and "content-length" not in response.headers:
                return watcher.missing
        return b""

    return passed


def _speed(exchange: Exchange, watcher: AnswerWatcher, verdict: Verdict) -> float | None:
    """Tokens a second, as the host tells; where it does not, by when they came."""
    if verdict.decode_seconds is not None or not watcher.streamed or exchange.first_byte is None:
        return verdict.tokens_per_second
    tokens, seconds = verdict.output_tokens or watcher.answer.pieces, exchange.clock() - exchange.first_byte
    return (tokens - 1) / seconds if tokens >= FEWEST_TOKENS and seconds >= TELLING_SECONDS else None


def _let_go(flow: http.HTTPFlow, exchange: Exchange) -> None:
    """A flow that is kept for people to see is not to keep what its answer went through."""
    if flow.response is not None and exchange.pass_on is not None and flow.response.stream is exchange.pass_on:
        flow.response.stream = True


def _store(response: http.Response, watcher: AnswerWatcher) -> None:
    """Have the flow show what was passed on, unpacked."""
    response.raw_content = shortened(*watcher.kept.ends(), watcher.kept.left_out)
    if watcher.packed:
        response.headers.pop("content-encoding", None)


def _is_authorized(flow: http.HTTPFlow) -> bool:
    """Whether the balancer's token came with the request."""
    exchange = exchange_of(flow)
    return exchange is not None and exchange.caller.authorized


def _is_upload(flow: http.HTTPFlow, path: str) -> bool:
    route = find_route(path)
    return route is not None and route.uploads and flow.request.method == "POST" and not flow.is_replay


def _no_memory(flow: http.HTTPFlow) -> http.Response:
    response = error_of(flow, 503, "the balancer holds as much of other requests as it may (balancer_memory)")
    response.headers["Retry-After"] = RETRY_AFTER
    return response


def _body_limit(flow: http.HTTPFlow) -> int:
    if flow.response is not None:
        return REFUSED_BODY
    return MAX_BODY_BYTES if is_control_path(path_of(flow)) else MAX_BODY


def _allow_origin(response: http.Response, origin: str) -> None:
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = f"{AGENT_HEADER}, {ATTEMPTS_HEADER}"
    response.headers["Vary"] = "Origin"


@functools.cache
def balancer() -> Balancer:
    """The one balancer of this process."""
    return Balancer()
