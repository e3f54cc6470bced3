"""Runs mitmproxy's hooks without the addons that have nothing to do.

mitmproxy asks each of its forty addons for each hook, and runs each hook as a task of its own with one more pass
through the layers. Here addons that lack the hook or are idle under the current options are skipped, and a hook that
need not wait is finished before the layer goes on. Order, effects and exceptions are as in mitmproxy.
"""

import asyncio
import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from mitmproxy import addonmanager, addons, exceptions, flow, hooks, log
from mitmproxy.addons import dumper, intercept, savehar, view
from mitmproxy.optmanager import OptManager
from mitmproxy.proxy import commands

from ..compat.names import Patches

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
"""When the hooks of an addon are idle: everything they do depends on these options."""

_WATCHERS = (IDLE.keys() - {dumper.Dumper}) | {view.View, intercept.Intercept}
"""Addons that show, save, hold or filter flows by their metadata. The dumper does not print any."""

Hooked = tuple[Callable[..., Any], ...]


class HookFastPath:
    """Replaces the dispatch of hooks in mitmproxy's addon manager while it is `on`.

    `own` are classes of addons that contain no other addons.
    """

    def __init__(self, manager: addonmanager.AddonManager, options: OptManager, own: tuple[type, ...]) -> None:
        self._on = False
        self._patches = Patches()
        self._manager = manager
        self._options = options
        self._own = own
        self._original = manager.handle_lifecycle
        self._chain: list[Any] = []
        self._table: dict[str, list[Any | Hooked]] = {}
        """By hook name, in order: the functions of an addon, or an addon that must be asked each time."""
        self._observed: bool | None = None
        self._begun: weakref.WeakKeyDictionary[hooks.Hook, asyncio.Task[None]] = weakref.WeakKeyDictionary()

    @property
    def on(self) -> bool:
        return self._on

    @on.setter
    def on(self, on: bool) -> None:
        if on and not self._patches:
            self._install()
        self._on = on
        self._uninstall_if_idle()

    def _install(self) -> None:
        manager, changed = self._manager, self._options.changed
        self.forget()
        self._original = manager.handle_lifecycle
        self._patches.set(manager, "handle_lifecycle", self.handle_lifecycle)
        self._patches.set(manager, "register", self._then_forget(manager.register))
        self._patches.set(manager, "remove", self._then_forget(manager.remove))
        changed.connect(self._options_changed)
        self._patches.on_restore(lambda: changed.disconnect(self._options_changed))
        for handler in logging.getLogger().handlers:
            if isinstance(handler, log.LegacyLogEvents):
                handler.addFilter(self._has_log_listener)
                self._patches.on_restore(functools.partial(handler.removeFilter, self._has_log_listener))

    def _uninstall_if_idle(self) -> None:
        """A hook that has begun here must not be run again by mitmproxy."""
        if not self._on and not self._begun:
            self._patches.restore()

    def forget(self) -> None:
        """Discard the cache: addons or options have changed."""
        self._table.clear()
        self._observed = None

    def _options_changed(self, updated: set[str]) -> None:
        self.forget()

    def _then_forget(self, method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def called(addon: Any) -> Any:
            self.forget()
            try:
                return method(addon)
            finally:
                self.forget()

        return called

    def _has_log_listener(self, record: logging.LogRecord) -> bool:
        """Whether an addon has the deprecated hook that is called for each log line."""
        return not self._on or bool(self._functions("add_log"))

    @property
    def observed(self) -> bool:
        """Whether anybody may look at flows: a user, a file, or an unknown addon."""
        if self._observed is None:
            self._observed = (
                not self._on
                or ("dumper_filter" in self._options and bool(self._options.dumper_filter))
                or any(
                    type(addon) in _WATCHERS or not self._is_known(addon)
                    for addon in addonmanager.traverse(self._manager.chain)
                    if not self._is_idle(addon)
                )
            )
        return self._observed

    def run(self, hook: commands.StartHook) -> bool:
        """Run the hook until it waits; returns whether it is finished."""
        if not self._on:
            return False
        data = _argument_of(hook)
        task = asyncio.Task(self._run_hook(hook, data), loop=asyncio.get_running_loop(), eager_start=True)
        if task.done() and not (isinstance(data, flow.Flow) and data.intercepted):
            task.result()
            return True
        self._begun[hook] = task
        return False

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        """mitmproxy's entry for hooks of connections and flows."""
        begun = self._begun.pop(event, None)
        if begun is not None:
            self._uninstall_if_idle()
            await begun
        elif self._on:
            await self._run_hook(event, _argument_of(event))
        else:
            await self._original(event)

    async def _run_hook(self, event: hooks.Hook, argument: Any) -> None:
        await self._trigger(event.name, argument)
        if isinstance(argument, flow.Flow) and self._functions("update"):
            await self._trigger("update", [argument])

    async def _trigger(self, name: str, argument: Any) -> None:
        for functions in self._functions(name):
            try:
                for function in functions if type(functions) is tuple else _functions_of(functions, name):
                    result = function(argument)
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
            self.forget()
        found = self._table.get(name)
        if found is None:
            found = self._table[name] = list(self._look_up(name))
        return found

    def _look_up(self, name: str) -> Iterator[Any | Hooked]:
        for addon in self._chain:
            if not all(map(self._is_known, addonmanager.traverse([addon]))):
                yield addon  # its functions may change
            elif not self._is_idle(addon):
                functions = tuple(_functions_of(addon, name))
                if functions:
                    yield functions

    def _is_idle(self, addon: Any) -> bool:
        idle = IDLE.get(type(addon))
        return idle is not None and idle(self._options)

    def _is_known(self, addon: Any) -> bool:
        if isinstance(addon, ModuleType):
            # A script that has nothing but our addon.
            return [type(each) for each in getattr(addon, "addons", [])] == [self._own[0]]
        return isinstance(addon, self._own) or type(addon).__module__.startswith("mitmproxy.")


def _argument_of(hook: hooks.Hook) -> Any:
    """Hooks of connections and flows have one argument."""
    return next(iter(vars(hook).values()))


def _functions_of(addon: Any, name: str) -> Iterator[Callable[..., Any]]:
    for each in addonmanager.traverse([addon]):
        function = getattr(each, name, None)
        if callable(function):
            yield function
        elif function and not isinstance(function, ModuleType):
            raise exceptions.AddonManagerError(f"Addon handler {name} ({each}) not callable")
