"""The terminal's lines: aligned, coloured where it can, no wider than it, and nothing of connections."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mitmproxy.addons import dumper, termlog
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.test import taddons

from ollama_balancer.gateway.request_lines import Cells, RequestLine
from ollama_balancer.mitm.addons import BalancerAddon
from ollama_balancer.mitm.request_columns import Columns, shorten

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
SERVED = Cells("gpu-2", "llama3.2", "200", "42 tok/s", "TTFT 0.31 s", "180 tokens", "", "warm", "")
RETRIED = SERVED._replace(agent="gpu-1", notes="loaded 3.1 s, queued 2.0 s", trouble="tried first: gpu-2 (refused)")
REFUSED = Cells("-", "nope", "404", "", "", "", "POST /api/generate", "", "model 'nope' not found")
LONG = SERVED._replace(agent="rack-17-gpu-server-0042", model="registry.lan/team/qwen3-coder:30b-a3b-q4_K_M")


class Line(RequestLine):
    """One that has these cells."""

    def __init__(self, cells: Cells) -> None:
        vars(self)["cells"] = cells

    @property
    def is_trouble(self) -> bool:
        return False


def shown(*lines: Cells, width: int | None = None, colour: bool = False) -> list[str]:
    columns = Columns()
    return [columns.render("12:01:07", Line(line), width, colour=colour) for line in lines]


def test_the_columns_stand_under_each_other() -> None:
    served, retried, refused = shown(SERVED, RETRIED, REFUSED)
    assert served == "12:01:07  gpu-2   llama3.2  200   42 tok/s  TTFT 0.31 s   180 tokens  warm"
    first, second = retried.splitlines()
    assert first.index("TTFT") == served.index("TTFT")
    assert first.endswith("180 tokens  loaded 3.1 s, queued 2.0 s")
    assert second == "          tried first: gpu-2 (refused)"
    assert refused.splitlines()[0] == "12:01:07  -       nope      404  POST /api/generate"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    troubled = LONG._replace(notes="loaded 12.5 s, queued 200 s", trouble="tried first: " + "gpu-1 (refused), " * 20)
    for block in shown(SERVED, LONG, troubled, REFUSED._replace(call="POST /" + "x" * 59), SERVED, width=width):
        assert max(map(len, block.splitlines())) <= max(width, 78)
    assert shown(troubled, width=3), "a terminal without room for anything"
    assert len(shown(LONG, width=80)[0].splitlines()) == 1
    assert "…" in shown(LONG, width=80)[0]
    assert shown(SERVED._replace(notes="loaded 3.1 s"), width=80) == [
        "12:01:07  gpu-2   llama3.2  200  42 tok/s TTFT 0.31 s  180 tokens  loaded 3.1 s"
    ]
    assert "…" not in shown(LONG)[0], "where it is no terminal, nothing is shortened"


def test_what_nobody_has_served_does_not_widen_the_columns() -> None:
    before, _, after = shown(SERVED, REFUSED._replace(model="x" * 60), SERVED)
    assert before == after


def test_colours_change_nothing_but_the_colours() -> None:
    for plain, coloured in zip(shown(SERVED, RETRIED), shown(SERVED, RETRIED, colour=True), strict=True):
        assert "\x1b" not in plain
        assert coloured.count("\x1b[") > 3
        assert ESCAPE.sub("", coloured) == plain


def test_a_name_is_shortened_in_its_middle() -> None:
    assert shorten("qwen3-coder:30b", 11) == "qwen3-c…30b"
    assert shorten("llama3.2", 8) == "llama3.2"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def mitmdump(confdir: Path, **options: object) -> Iterator[Screen]:
    screen, addon, root = Screen(), BalancerAddon(), logging.getLogger()
    terminal, level = termlog.TermLog(screen), root.level
    with taddons.context(Proxyserver(), terminal, dumper.Dumper(screen)) as context:
        context.master.addons.add(addon)
        context.configure(addon, confdir=str(confdir), **options)
        root.setLevel(logging.DEBUG)
        try:
            yield screen
        finally:
            root.setLevel(level)
            addon.terminal.detach()
            terminal.uninstall()


def log() -> None:
    connections = logging.getLogger("mitmproxy.proxy.server")
    connections.info("client connect", extra={"client": ("10.0.0.7", 1234)})
    connections.info("server disconnect gpu-1:11434", extra={"client": ("10.0.0.7", 1234)})
    connections.info("10.0.0.7:1234: HTTP/2: too many control frames")
    connections.warning("its certificate is refused")
    logging.getLogger("ollama_balancer.mitm.terminal").info(Line(SERVED))
    logging.getLogger("ollama_balancer").info("Agent gpu-1 is drained.\x1b[2J\x9b")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_terminal_shows_requests_in_colour_and_nothing_of_connections(tmp_path: Path) -> None:
    with mitmdump(tmp_path) as screen:
        log()
    assert "\x1b[32m200\x1b[0m" in screen.getvalue()
    lines = [line[8:] for line in ESCAPE.sub("", screen.getvalue()).splitlines()]
    assert "  its certificate is refused" in lines
    assert "  10.0.0.7:1234: HTTP/2: too many control frames" in lines
    assert "  gpu-2   llama3.2  200   42 tok/s  TTFT 0.31 s   180 tokens  warm" in lines
    assert "  Agent gpu-1 is drained. [2J " in lines
    assert "connect" not in screen.getvalue()


def test_a_person_who_wants_no_colours_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with mitmdump(tmp_path) as screen:
        log()
    assert "\x1b" not in screen.getvalue()


def test_at_debug_everything_is_as_mitmproxy_has_it(tmp_path: Path) -> None:
    with mitmdump(tmp_path, termlog_verbosity="debug") as screen:
        log()
    assert "[10.0.0.7:1234]" in screen.getvalue()
    assert "client connect" in screen.getvalue()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, True),
        ({"flow_detail": 0}, False),
        ({"flow_detail": 0, "termlog_verbosity": "error"}, False),
        ({"termlog_verbosity": "warn"}, True),
        ({"termlog_verbosity": "debug", "flow_detail": 2}, True),
    ],
)
def test_no_line_is_made_where_none_is_shown(tmp_path: Path, options: dict[str, object], shown: bool) -> None:
    addon = BalancerAddon()
    with taddons.context(Proxyserver(), termlog.TermLog(Screen()), dumper.Dumper(Screen())) as context:
        context.master.addons.add(addon)
        context.configure(addon, confdir=str(tmp_path), **options)
        assert (addon.balancer.accounting.show is not None) is shown
        own = "flow_detail" not in options and options.get("termlog_verbosity") != "debug"
        assert addon.balancer.flows.has_own_lines is own
        addon.terminal.detach()
