"""An addon for tests, loaded before the balancer: tells what in mitmproxy is another than before the balancer came."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

from mitmproxy import contentviews, ctx, http

LIBRARIES = ("mitmproxy", "h11", "h2", "asyncio", "codecs")
CODE = (types.FunctionType, types.ModuleType, type, dict, staticmethod, classmethod, property)
OPTIONS = ("block_global", "connection_strategy", "onboarding", "tcp_timeout")


def attributes() -> Iterator[tuple[str, object]]:
    """All functions, classes, modules and tables of the libraries by name."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in LIBRARIES:
            continue
        for attribute, value in list(vars(module).items()):
            yield f"{name}.{attribute}", value
            if isinstance(value, type) and value.__module__ == name:
                yield from ((f"{name}.{attribute}.{key}", each) for key, each in list(vars(value).items()))


def objects() -> Iterator[tuple[str, object]]:
    """What could be replaced in mitmproxy's running program."""
    manager = ctx.master.addons
    for each in (manager, *manager.chain):
        for key, value in vars(each).items():
            if callable(value):
                yield f"{type(each).__name__} {id(each)}.{key}", value
    yield from ((f"view {name}", view) for name, view in contentviews.registry.items())
    for name, command in ctx.master.commands.commands.items():
        if not name.startswith("balancer."):
            yield f"command {name}", command.func
    for log in (logging.getLogger(), logging.getLogger("mitmproxy.proxy.server")):
        yield f"filters of {log.name}", (*log.filters, *(each for h in log.handlers for each in h.filters))
    loop = asyncio.get_running_loop()
    yield "selector", getattr(loop, "_selector", None)
    yield "exception handler", loop.get_exception_handler()
    yield from ((name, getattr(ctx.options, name)) for name in OPTIONS)


class Patched:
    def __init__(self) -> None:
        self.code = {name: value for name, value in attributes() if isinstance(value, CODE)}
        self.objects: dict[str, object] = {}

    def load(self, loader: Any) -> None:
        self.objects = dict(objects())

    def differences(self) -> list[str]:
        now, there = dict(attributes()), dict(objects())
        changed = [name for name, value in self.code.items() if now.get(name) is not value]
        return sorted(
            changed
            + [name for name, value in self.objects.items() if name not in there or there[name] != value]
            + [name for name in there if name not in self.objects]
            + [name for name, value in now.items() if name.endswith(".open") and name not in self.code]
        )

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        if flow.request.path.startswith("/patched"):
            scripts = flow.request.query.get_all("scripts")
            if scripts:
                asyncio.get_running_loop().call_soon(lambda: ctx.options.update(scripts=scripts))
            value = {"scripts": list(ctx.options.scripts), "differences": self.differences()}
            flow.response = http.Response.make(200, json.dumps(value), {"Content-Type": "application/json"})

    request = requestheaders  # the balancer answers this path, too, and has the last word on the head


addons = [Patched()]
