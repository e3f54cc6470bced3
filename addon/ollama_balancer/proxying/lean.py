"""mitmproxy's hooks without the work that comes to nothing.

mitmproxy asks each of its forty addons for each hook, and runs each hook as a task of its own, with one more pass
through the layers. Here the addons that have no such hook, and those that do nothing under the current options, are
left out, and a hook that need not wait is over before the layer goes on. What a hook does, in which order, and what
becomes of its exceptions is as in mitmproxy.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from mitmproxy import addonmanager, addons, exceptions, flow, hooks
from mitmproxy.addons import dumper, savehar
from mitmproxy.optmanager import OptManager
from mitmproxy.proxy import commands

IDLE: dict[type, Callable[[Any], bool]] = {
    addons.anticache.AntiCache: lambda options: not options.anticache,
    addons.anticomp.AntiComp: lambda options: not options.anticomp,
    addons.blocklist.BlockList: lambda options: not options.block_list,
    addons.maplocal.MapLocal: lambda options: not options.map_local,
    addons.mapremote.MapRemote: lambda options: not options.map_remote,
    addons.modifybody.ModifyBody: lambda options: not options.modify_body,
    addons.modifyheaders.ModifyHeaders: lambda options: not options.modify_headers,
    addons.proxyauth.ProxyAuth: lambda options: not options.proxyauth,
    addons.save.Save: lambda options: not options.save_stream_file,
    addons.stickyauth.StickyAuth: lambda options: not options.stickyauth,
    addons.stickycookie.StickyCookie: lambda options: not options.stickycookie,
    addons.upstream_auth.UpstreamAuth: lambda options: not options.upstream_auth,
    dumper.Dumper: lambda options: options.flow_detail == 0,
    savehar.SaveHar: lambda options: not options.hardump,
}
"""When the hooks of an addon do nothing: it takes all that it does from these options."""

Hooked = tuple[Callable[..., Any], ...]


class LeanHooks:
    """Takes the place of the addon manager's walk over its addons while it is `on`."""

    def __init__(self, manager: addonmanager.AddonManager, options: OptManager) -> None:
        self.on = False
        self._manager = manager
        self._options = options
        self._mitmproxys = manager.handle_lifecycle
        self._chain: list[Any] = []
        self._table: dict[str, list[Any | Hooked]] = {}
        """By hook's name, in order: an addon's functions, or an addon that has to be asked each time."""
        self._begun: weakref.WeakKeyDictionary[hooks.Hook, asyncio.Task[None]] = weakref.WeakKeyDictionary()
        options.changed.connect(self._forget)
        manager.handle_lifecycle = self.handle_lifecycle  # type: ignore[method-assign]

    def _forget(self, updated: set[str]) -> None:
        self._table.clear()

    def run(self, hook: commands.StartHook) -> bool:
        """Run the hook as far as it goes without waiting; whether that was all of it."""
        if not self.on:
            return False
        task = asyncio.Task(self._walk(hook), loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            self._begun[hook] = task
            return False
        task.result()
        (data,) = hook.args()
        if isinstance(data, flow.Flow) and data.intercepted:
            self._begun[hook] = task
            return False
        return True

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        """mitmproxy's entry for hooks of connections and flows."""
        begun = self._begun.pop(event, None)
        if begun is not None:
            await begun
        elif self.on:
            await self._walk(event)
        else:
            await self._mitmproxys(event)

    async def _walk(self, event: hooks.Hook) -> None:
        arguments = event.args()
        await self._trigger(event.name, arguments)
        if isinstance(arguments[0], flow.Flow):
            await self._trigger("update", [[arguments[0]]])

    async def _trigger(self, name: str, arguments: list[Any]) -> None:
        for functions in self._functions(name):
            try:
                for function in functions if type(functions) is tuple else _functions_of(functions, name):
                    result = function(*arguments)
                    if result is not None and inspect.isawaitable(result):
                        await result
            except exceptions.AddonHalt:
                return
            except Exception:
                with addonmanager.safecall():
                    raise

    def _functions(self, name: str) -> list[Any | Hooked]:
        if self._manager.chain != self._chain:
            self._chain = list(self._manager.chain)
            self._table.clear()
        found = self._table.get(name)
        if found is None:
            found = self._table[name] = list(self._look_up(name))
        return found

    def _look_up(self, name: str) -> Iterator[Any | Hooked]:
        for addon in self._chain:
            if hasattr(addon, "addons") or not type(addon).__module__.startswith("mitmproxy."):
                yield addon  # its functions and its own addons may change
            elif not (idle := IDLE.get(type(addon))) or not idle(self._options):
                functions = tuple(_functions_of(addon, name))
                if functions:
                    yield functions


def _functions_of(addon: Any, name: str) -> Iterator[Callable[..., Any]]:
    for each in addonmanager.traverse([addon]):
        function = getattr(each, name, None)
        if callable(function):
            yield function
        elif function and not inspect.ismodule(function):
            raise exceptions.AddonManagerError(f"Addon handler {name} ({each}) not callable")
