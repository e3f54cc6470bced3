"""Hooks without the work that comes to nothing: who is asked, in which order, and what becomes of errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from types import ModuleType
from typing import Any

import pytest
from mitmproxy import addons, exceptions, http
from mitmproxy.addons import dumper, savehar
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.proxy.layers.http import HttpRequestHook
from mitmproxy.test import tflow

from ollama_balancer.mitm.fastpath.hooks import IDLE, HookFastPath


class Own:
    """Stands for the balancer."""

    name = "own"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.wait_for: asyncio.Event | None = None

    async def request(self, flow: http.HTTPFlow) -> None:
        self.seen.append("begins")
        if self.wait_for is not None:
            await self.wait_for.wait()
        self.seen.append("ends")


class Scene:
    def __init__(self, master: Master) -> None:
        self.master = master
        self.manager = master.addons
        self.options = master.options
        self.own = Own()
        self.manager.add(*addons.default_addons(), dumper.Dumper(), self.own)
        self.lean = HookFastPath(self.manager, self.options, (Own,))
        self.lean.on = True
        self.options.update(flow_detail=0)

    def asked(self, hook: str) -> set[type]:
        """The classes of mitmproxy's addons that are asked for that hook."""
        known: list[Any] = [functions for functions in self.lean._functions(hook) if type(functions) is tuple]
        return {type(function.__self__) for functions in known for function in functions} - {Own}


def run(test: Callable[[Scene], Coroutine[Any, Any, None]], tmp_path: Any) -> None:
    async def main() -> None:
        handlers = list(logging.getLogger().handlers)
        try:
            await test(Scene(Master(Options(confdir=str(tmp_path)), event_loop=asyncio.get_running_loop())))
        finally:
            logging.getLogger().handlers = handlers

    asyncio.run(main())


OPTIONS: dict[type, dict[str, Any]] = {
    addons.anticache.AntiCache: {"anticache": True},
    addons.anticomp.AntiComp: {"anticomp": True},
    addons.blocklist.BlockList: {"block_list": ["/~u x/404"]},
    addons.maplocal.MapLocal: {"map_local": ["|x|/tmp"]},
    addons.mapremote.MapRemote: {"map_remote": ["|x|y"]},
    addons.modifybody.ModifyBody: {"modify_body": ["/x/y"]},
    addons.modifyheaders.ModifyHeaders: {"modify_headers": ["/x/y"]},
    addons.proxyauth.ProxyAuth: {"proxyauth": "any"},
    addons.save.Save: {"save_stream_file": "flows"},
    addons.stickyauth.StickyAuth: {"stickyauth": "."},
    addons.stickycookie.StickyCookie: {"stickycookie": "."},
    addons.upstream_auth.UpstreamAuth: {"upstream_auth": "a:b"},
    dumper.Dumper: {"flow_detail": 1},
    savehar.SaveHar: {"hardump": "x.har"},
}
HOOKS = ("requestheaders", "request", "responseheaders", "response", "error")


def test_each_addon_that_is_left_out_comes_back_live_with_its_option(tmp_path: Any) -> None:
    assert OPTIONS.keys() == IDLE.keys()

    async def test(scene: Scene) -> None:
        for addon, change in OPTIONS.items():
            hooks = [hook for hook in HOOKS if hasattr(addon, hook)]
            assert hooks, addon
            before = {option: getattr(scene.options, option) for option in change}
            assert not any(addon in scene.asked(hook) for hook in hooks), addon
            scene.options.update(**{k: str(tmp_path / v) if k == "save_stream_file" else v for k, v in change.items()})
            assert all(addon in scene.asked(hook) for hook in hooks), addon
            scene.options.update(**before)
            assert not any(addon in scene.asked(hook) for hook in hooks), addon

    run(test, tmp_path)


def test_those_that_always_have_something_to_do_are_asked(tmp_path: Any) -> None:
    async def test(scene: Scene) -> None:
        always = {type(a) for a in scene.manager.chain if hasattr(a, "request")} - IDLE.keys() - {Own}
        assert always
        assert scene.asked("request") == always

    run(test, tmp_path)


def test_a_hook_that_need_not_wait_is_over_at_once_and_one_that_waits_goes_on_where_it_was(tmp_path: Any) -> None:
    async def test(scene: Scene) -> None:
        hook = HttpRequestHook(tflow.tflow())
        assert scene.lean.run(hook)
        assert scene.own.seen == ["begins", "ends"]

        scene.own.seen.clear()
        scene.own.wait_for = asyncio.Event()
        hook = HttpRequestHook(tflow.tflow())
        assert not scene.lean.run(hook)
        assert scene.own.seen == ["begins"]
        scene.own.wait_for.set()
        await scene.manager.handle_lifecycle(hook)
        assert scene.own.seen == ["begins", "ends"]

    run(test, tmp_path)


def test_a_flow_that_is_held_goes_mitmproxys_way_without_its_hooks_being_run_twice(tmp_path: Any) -> None:
    class Holder:
        def request(self, flow: http.HTTPFlow) -> None:
            flow.intercept()

    async def test(scene: Scene) -> None:
        scene.manager.add(Holder())
        hook = HttpRequestHook(tflow.tflow())
        assert not scene.lean.run(hook)
        await scene.manager.handle_lifecycle(hook)
        assert scene.own.seen == ["begins", "ends"]

    run(test, tmp_path)


def test_the_order_is_that_of_the_chain_and_an_error_ends_only_its_addon(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    class Other:
        def __init__(self, name: str, error: Exception | None = None) -> None:
            self.name = name
            self.error = error

        def request(self, flow: http.HTTPFlow) -> None:
            seen.append(self.name)
            if self.error:
                raise self.error

    async def test(scene: Scene) -> None:
        first, failing, last = Other("first"), Other("failing", ValueError("a mistake")), Other("last")
        scene.manager.add(first, failing, last)
        assert scene.lean.run(HttpRequestHook(tflow.tflow()))
        assert seen == ["first", "failing", "last"]
        assert "a mistake" in caplog.text
        seen.clear()
        failing.error = exceptions.AddonHalt()
        assert scene.lean.run(HttpRequestHook(tflow.tflow()))
        assert seen == ["first", "failing"]
        seen.clear()
        scene.manager.remove(failing)
        assert scene.lean.run(HttpRequestHook(tflow.tflow()))
        assert seen == ["first", "last"]

    run(test, tmp_path)


def test_functions_and_addons_that_an_unknown_addon_gets_later_are_found(tmp_path: Any) -> None:
    seen: list[str] = []

    async def test(scene: Scene) -> None:
        script: Any = ModuleType("script")
        scene.manager.add(script)
        scene.lean.run(HttpRequestHook(tflow.tflow()))
        script.request = lambda flow: seen.append("function")
        later: Any = ModuleType("later")
        later.request = lambda flow: seen.append("addon")
        script.addons = [later]
        scene.lean.run(HttpRequestHook(tflow.tflow()))
        assert seen == ["function", "addon"]

    run(test, tmp_path)


def test_flows_are_watched_where_a_person_or_an_unknown_addon_may_look(tmp_path: Any) -> None:
    async def test(scene: Scene) -> None:
        assert not scene.lean.observed
        scene.options.update(save_stream_file=str(tmp_path / "flows"))
        assert scene.lean.observed
        scene.options.update(save_stream_file=None)
        assert not scene.lean.observed
        scene.options.update(flow_detail=2)
        assert not scene.lean.observed
        scene.options.update(dumper_filter="~comment slow")
        assert scene.lean.observed
        scene.options.update(dumper_filter=None)
        stranger: Any = ModuleType("stranger")
        scene.manager.add(stranger)
        assert scene.lean.observed
        scene.manager.remove(stranger)
        assert not scene.lean.observed
        scene.lean.on = False
        scene.lean.forget()
        assert scene.lean.observed

    run(test, tmp_path)


def test_switched_off_it_is_mitmproxys_walk(tmp_path: Any) -> None:
    async def test(scene: Scene) -> None:
        scene.lean.on = False
        hook = HttpRequestHook(tflow.tflow())
        assert not scene.lean.run(hook)
        assert scene.own.seen == []
        await scene.manager.handle_lifecycle(hook)
        assert scene.own.seen == ["begins", "ends"]

    run(test, tmp_path)


def test_an_addon_that_reads_the_log_by_the_old_hook_is_told(tmp_path: Any) -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def add_log(self, entry: Any) -> None:
            self.heard.append(entry.msg)

    async def test(scene: Scene) -> None:
        triggered: list[object] = []
        trigger = scene.manager.trigger
        scene.manager.trigger = lambda event: (triggered.append(event), trigger(event))  # type: ignore
        logging.getLogger("mitmproxy.proxy.server").warning("nobody hears this")
        await asyncio.sleep(0)
        assert triggered == []
        listener = Listener()
        scene.manager.add(listener)
        logging.getLogger("mitmproxy.proxy.server").warning("somebody hears this")
        await asyncio.sleep(0)
        assert any("somebody hears this" in message for message in listener.heard)

    run(test, tmp_path)


@pytest.fixture(autouse=True)
def restored_level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def test_switched_off_it_leaves_nothing_in_mitmproxy_but_ends_what_it_has_begun(tmp_path: Any) -> None:
    async def test(scene: Scene) -> None:
        filters = [list(handler.filters) for handler in logging.getLogger().handlers]
        assert {"handle_lifecycle", "register", "remove"} <= vars(scene.manager).keys()
        scene.own.wait_for = asyncio.Event()
        hook = HttpRequestHook(tflow.tflow())
        assert not scene.lean.run(hook)
        scene.lean.on = False
        assert not scene.lean.run(HttpRequestHook(tflow.tflow()))
        end = asyncio.create_task(scene.manager.handle_lifecycle(hook))
        await asyncio.sleep(0)
        assert not {"handle_lifecycle", "register", "remove"} & vars(scene.manager).keys()
        scene.own.wait_for.set()
        await end
        assert scene.own.seen == ["begins", "ends"], "not once more by mitmproxy"
        assert [list(handler.filters) for handler in logging.getLogger().handlers] != filters
        scene.lean.on = True
        assert [list(handler.filters) for handler in logging.getLogger().handlers] == filters

    run(test, tmp_path)
