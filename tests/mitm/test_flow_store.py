"""What goes from finished requests to the files of `balancer_store`."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.addons.view import View
from mitmproxy.io import FlowReader
from mitmproxy.test import taddons, tflow, tutils

from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.mitm import patches
from ollama_balancer.mitm.flow_store import StoredFlows
from ollama_balancer.mitm.viewer import Viewer
from ollama_balancer.ollama.routes import Dialect, find_route
from ollama_balancer.settings.options import PREFIX, TABLE, Settings
from ollama_balancer.storage.flow_files import day_files
from ollama_balancer.storage.token import Token
from tests.core.fakes import Clock
from tests.lab.flowfiles import flow, write

TOKEN = Token("a-token-for-tests")
KEY = "ob_" + "k" * 43


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    defaults = {name.removeprefix(PREFIX): row.kind.parse(row.default) for name, row in TABLE.items()}
    return Settings(**defaults | {"store": str(tmp_path / "flows")})


@pytest.fixture
def stored() -> Iterator[StoredFlows]:
    stored = StoredFlows(lambda: TOKEN)
    yield stored
    if (store := stored.detach()) is not None:
        store.close()


def context(path: str = "/api/chat") -> RequestContext:
    return RequestContext(Caller("c"), Dialect.OLLAMA, Clock(), route=find_route(path))


def read(stored: StoredFlows, folder: Path) -> list[http.HTTPFlow]:
    store = stored.detach()
    assert store
    store.close()
    data = b"".join(each.path.read_bytes() for each in day_files(folder))
    return [each for each in FlowReader(io.BytesIO(data)).stream() if isinstance(each, http.HTTPFlow)]


def test_only_requests_that_run_a_model_are_kept_and_no_secrets(
    stored: StoredFlows, settings: Settings, tmp_path: Path
) -> None:
    prompt = f"Mine: {TOKEN.value}, {KEY}. Not ob_short."
    each = tflow.tflow(req=tutils.treq(path=b"/api/chat", content=prompt.encode()), resp=True)
    each.request.trailers = http.Headers([(b"x-api-key", b"secret")])
    each.metadata["balancer"] = {
        "client": "alice",
        "problem": f"tried {TOKEN.value}",
        "options": [{"a": 1.5}],
    }
    each.comment = f"“{KEY}”"
    each.backup(force=True)
    each.request.headers["x-changed"] = "by hand"
    stored.add(each, context())  # it is off
    stored.use(settings)
    stored.add(each, context())
    stored.add(each, context("/api/tags"))
    each.metadata["balancer"] = "changed afterwards"
    [kept] = read(stored, tmp_path / "flows")
    assert kept.request.text == "Mine: ***, ***. Not ob_short."
    assert kept.request.headers["x-changed"] == "by hand"
    assert kept.request.trailers is None
    assert kept.comment == "“***”"
    assert kept.metadata["balancer"] == {"client": "alice", "problem": "tried ***", "options": [{"a": 1.5}]}
    assert not kept.modified()
    assert each.request.text == prompt


def test_changes_apply_at_once_and_are_logged(
    stored: StoredFlows, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def use(**changed: Any) -> list[str]:
        caplog.clear()
        stored.use(replace(settings, **changed))
        stored.log()
        stored.log()
        return [record.getMessage() for record in caplog.records]

    assert use(store="") == []
    kept = f"Prompts and answers are kept in files, in {tmp_path}"
    assert use() == [f"{kept}/flows: those of the last 7 days, at most 10.0g (balancer_store)."]
    files = stored.files
    assert use(store_days=1, store_size=5 * 1024**2) == [f"{kept}/flows: today's alone, at most 5.0m (balancer_store)."]
    assert files is stored.files
    assert files and (files.days, files.size) == (1, 5 * 1024**2)
    assert use(store=f"{tmp_path}/others") == [
        f"{kept}/others: those of the last 7 days, at most 10.0g (balancer_store)."
    ]
    assert use(store="") == ["Prompts and answers are no longer kept in files; what is there stays."]
    assert use(store="") == []
    assert not stored.on


def test_the_viewer_shows_the_newest_where_all_would_be_too_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "ollama_balancer.mitm.viewer")
    monkeypatch.setattr(patches, "add_views", lambda _: None)  # which are this whole process's
    flows = [flow(at=float(number), body={"model": "m", "prompt": "x" * 1000}) for number in range(10)]
    first, second = write(tmp_path / "first", flows[:6]), write(tmp_path / "second", flows[6:])
    second.write_bytes(second.read_bytes() + b"9")

    async def show() -> list[str]:
        view, viewer = View(), Viewer(5000)
        with taddons.context(view, viewer) as running:
            running.options.update(viewed_files=[str(first), str(second)])
            await viewer.show_all()
            await asyncio.sleep(0)
            return [each.id for each in view]

    assert asyncio.run(show()) == [each.id for each in flows[-4:]]
    assert [record.getMessage() for record in caplog.records] == [
        f"{first}: 6 requests.",
        f"{second}: ends in the middle of a flow, or is damaged there; 4 flows before that were read",
        f"{second}: 4 requests.",
        "The oldest 6 requests are not shown: all would take too much memory.",
    ]
