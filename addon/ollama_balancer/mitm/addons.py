"""The addons, put together."""

import functools
from collections.abc import Callable

from .announcement import Announcement
from .answers import Answers
from .balancer import Balancer
from .configuration import Configuration
from .connections import Connections
from .control_api import ControlApi
from .inspection.commands import Commands, ComparisonCommand
from .key_file import KeyFile
from .lifecycle import Lifecycle
from .requests import Requests
from .startup import Startup
from .terminal import Terminal


class BalancerAddon:
    """What mitmproxy loads: its hooks are those of its `addons`."""

    name = "ollama-balancer"

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.balancer = balancer = Balancer(clock)
        announcement, startup = Announcement(), Startup(balancer)
        self.answers = Answers(balancer)
        self.connections = Connections(balancer, self.answers)
        self.answers.on_end = self.connections.limits.ended
        keys = KeyFile(balancer, self.connections)
        self.configuration = Configuration(balancer, self.connections, announcement, keys)
        self.terminal = Terminal(balancer)
        self.lifecycle = Lifecycle(balancer, startup, self.configuration, self.connections, announcement, self.terminal)
        self.requests = Requests(balancer, self.connections, startup)
        self.control_api = ControlApi(balancer, self.requests, startup, keys)
        self.commands = Commands(balancer.registry, balancer.gateway.router.queue)
        self.addons = [
            self.lifecycle,
            self.configuration,
            self.terminal,
            self.connections,
            self.requests,
            self.control_api,
            self.answers,
            self.commands,
            ComparisonCommand(),
        ]
        self.lifecycle.own = (BalancerAddon, *map(type, self.addons))


@functools.cache
def the_addon() -> BalancerAddon:
    """The instance of this process, which survives a reload of balancer.py."""
    return BalancerAddon()
