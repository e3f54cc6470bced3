"""The fleet in a terminal, refreshed: `ollama-balancer top`, or `python -m ollama_balancer.cli.top`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import functools
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from agent_reporter.addresses import is_loopback
from agent_reporter.http import CallError, call

from ..api.dashboard import SORTS
from ..storage import token as tokens
from ..tables import NONE, in_columns
from ..text import one_line

DEFAULT_URL = "http://127.0.0.1:8080"

HEADERS = {"User-Agent": "ollama-balancer-top"}

KEY_ENVIRONMENT = "OLLAMA_BALANCER_KEY"

TEXT = "Show a balancer's fleet and refresh it until Ctrl-C."

TIMEOUT = 5.0
"""Seconds that an answer may take."""

MAX_BYTES = 4 * 1024 * 1024
"""Of an answer."""

ENTER = "\x1b[?1049h\x1b[?25l"
"""The other screen, without a cursor."""
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME = "\x1b[H"
REST_OF_LINE = "\x1b[K"
REST_OF_SCREEN = "\x1b[J"
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"

HEAD = ["agent", "status", "in flight", "cpu", "memory", "gpu", "vram", "tok/s", "report", "loaded"]

MAX_DECISIONS = 5

GIB = 1024**3

SHORT_REASON = 40
"""Characters of a reason that stand in a row; of some agents whose reason is longer, all of it stands below."""

MAX_REASONS = 3


def screen(data: Mapping[str, Any], width: int, height: int) -> list[str]:
    """The lines for a terminal of that size; `data` is the answer of /dashboard/data."""
    figures, states, line = data["figures"], data["states"], data["line"]
    fleet = ", ".join(f"{count} {state}" for state, count in states.items() if count) or "no agents"
    summary = (
        f"{figures['requests_per_second']:.1f} requests/s, {figures['tokens_per_second']:.0f} tokens/s, "
        f"{data['in_flight']} in flight, {line['length']} queued"
        + (f" (oldest {line['oldest']:.0f} s)" if line["oldest"] is not None else "")
        + f", TTFT p95 {_seconds(figures['ttft_p95'])}, {figures['failures']:.1f} % failed"
    )
    totals = data["totals"]
    ended = ", ".join(f"{count} {outcome}" for outcome, count in totals.items() if count and outcome != "requests")
    since_start = f"{totals['requests']} requests since start" + (f": {ended}".replace("_", " ") if ended else "")
    top = [f"ollama-balancer, mode {data['mode']}: {fleet}", summary, since_start, ""]
    decisions = [_decision(each) for each in data["decisions"][:MAX_DECISIONS]]
    bottom = ["", "last requests", *decisions] if decisions and height >= 16 else []
    if height >= 16:
        bottom = [*_reasons(data["agents"], width - 1), *bottom]
    room = max(1, height - len(top) - len(bottom) - 2)
    agents = data["agents"][:room]
    table = in_columns([HEAD, *map(_row, agents)]).splitlines()
    more = data["found"] - len(agents)
    rest = [f"and {more} more (--sort, --filter, --page)"] if more > 0 else []
    return [one_line(each, width - 1) if len(each) >= width else each for each in [*top, *table, *rest, *bottom]]


def _row(agent: Mapping[str, Any]) -> list[str]:
    gpus = agent["gpus"]
    busy = [gpu["busy"] for gpu in gpus if gpu["busy"] is not None]
    used = [(gpu["used"], gpu["total"]) for gpu in gpus if gpu["used"] is not None and gpu["total"]]
    slots = f"/{agent['slots']}" if agent["slots"] else ""
    speeds = ", ".join(f"{speed:.0f}" for speed in agent["speeds"].values())
    age = agent["report_age"]
    cells = [
        agent["name"],
        agent["status"] + (f" ({one_line(agent['reason'], SHORT_REASON)})" if agent["reason"] else ""),
        f"{agent['in_flight']}{slots}",
        _percent(agent["cpu"]),
        _percent(agent["memory"]),
        _percent(max(busy, default=None)),
        _memory(used),
        speeds or NONE,
        NONE if age is None else f"{age:.0f} s",
        ", ".join(agent["loaded"]) or NONE,
    ]
    return [one_line(str(cell), 60) for cell in cells]


def _memory(gpus: Sequence[tuple[float, float]]) -> str:
    """Of what is used and there on each, in bytes."""
    if not gpus:
        return NONE
    used, total = (sum(column) for column in zip(*gpus, strict=True))
    return f"{_percent(100 * used / total)} of {total / GIB:.0f} GiB"


def _reasons(agents: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """What to do about some agents that cannot be used, in full: a row has no room for it."""
    data = [agent for agent in agents if len(agent["reason"] or "") > SHORT_REASON and agent["status"] != "online"]
    lines = []
    for agent in data[:MAX_REASONS]:
        lines += textwrap.wrap(one_line(f"{agent['name']}: {agent['reason']}", 600), max(width, 20))
    return ["", *lines] if lines else []


def _decision(each: Mapping[str, Any]) -> str:
    where = f"{each['model'] or NONE} → {each['agent'] or NONE}"
    outcome = f"{each['outcome']} {each['status']}" if each["outcome"] == "rejected" else each["outcome"]
    return one_line(f"{each['age']:5.0f} s ago  {outcome:12}  {where}  {each['why']}", 400)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} %"


def _seconds(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f} s"


type Request = Callable[[], tuple[int, bytes]]
"""Asks the balancer for the dashboard's data: the status and the body. Raises CallError."""


def make_request(url: str, query: Mapping[str, str], key: str = "") -> Request:
    """Ask the balancer at that URL, presenting the key if there is one. Raises ValueError if it is none."""
    parts = urlsplit(url)
    extras = parts.username is not None or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or extras:
        raise ValueError("it takes http://HOST:PORT")
    whole = f"{url.rstrip('/')}/dashboard/data?{urlencode(query)}"

    headers = HEADERS | ({"Authorization": f"Bearer {key}"} if key else {})

    def request() -> tuple[int, bytes]:
        answer = asyncio.run(call("GET", whole, timeout=TIMEOUT, limit=MAX_BYTES, headers=headers))
        return answer.status, answer.body

    return request


def fetch(request: Request) -> dict[str, Any]:
    """What the balancer tells. Raises ValueError with a line that says what is wrong."""
    try:
        status, body = request()
    except CallError as e:
        raise ValueError(f"it does not answer ({e})") from e
    if status in (401, 403):
        raise ValueError(f"it needs a key with the right read: give one with --key-file or ${KEY_ENVIRONMENT}")
    if status != 200:
        raise ValueError(f"it returned status {status}: is it a balancer?")
    try:
        data = json.loads(body)
    except ValueError as e:
        raise ValueError("its answer is not JSON: is it a balancer?") from e
    if not isinstance(data, dict) or "figures" not in data:
        raise ValueError("its answer describes no fleet: is it a balancer?")
    return data


def show(
    url: str,
    request: Request,
    interval: float,
    write: Callable[[str], object],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Draw the screen again and again, until interrupted; a balancer that is away is waited for."""
    write(ENTER)
    try:
        while True:
            size = shutil.get_terminal_size()
            try:
                lines = screen(fetch(request), size.columns, size.lines)
            except ValueError as e:
                lines = [one_line(f"{url}: {e}; trying again", size.columns - 1)]
            first, *others = lines[: size.lines - 1]
            drawn = [f"{BOLD}{first}{PLAIN}", *others]
            write(HOME + "".join(f"{line}{REST_OF_LINE}\r\n" for line in drawn) + REST_OF_SCREEN)
            sleep(interval)
    finally:
        write(LEAVE)


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse."""
    parser = commands.add_parser("top", help=TEXT[0].lower() + TEXT[1:-1], description=TEXT)
    _add_arguments(parser)
    parser.set_defaults(run=lambda options: _run(parser, options))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ollama-balancer top", description=TEXT)
    _add_arguments(parser)
    _run(parser, parser.parse_args(arguments))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--balancer", metavar="URL", default=DEFAULT_URL, help=f"the balancer ({DEFAULT_URL})")
    add(
        "--key-file",
        metavar="FILE",
        type=Path,
        help="file with a key that may read, where the balancer needs one "
        f"(${KEY_ENVIRONMENT}, or for a balancer on this machine the token in mitmproxy's folder)",
    )
    add("--sort", choices=SORTS, default="name", help="column to sort by (name)")
    add("--filter", metavar="TEXT", default="", help="show only agents with TEXT in their name, state or models")
    add("--page", type=int, default=1, help="page number, 100 agents per page (1)")
    add("--interval", metavar="S", type=float, default=2.0, help="seconds between refreshes (2)")
    add("--once", action="store_true", help="print once and exit; the default if the output is not a terminal")


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if not 0.1 <= options.interval <= 3600:
        parser.error("--interval takes a number of seconds from 0.1 to 3600")
    url = options.balancer if "://" in options.balancer else f"http://{options.balancer}"
    query = {"sort": options.sort, "filter": options.filter, "page": str(options.page), "size": "100"}
    try:
        request = make_request(url, query, find_key(options.key_file, url))
    except ValueError as e:
        parser.error(f"--balancer: {e}")
    except OSError as e:
        parser.error(f"--key-file: {options.key_file} cannot be read ({e.strerror or e})")
    if options.once or not sys.stdout.isatty():
        try:
            data = fetch(request)
        except ValueError as e:
            sys.exit(f"{parser.prog}: {url}: {e}")
        print("\n".join(screen(data, 1000, 1000)))
        return
    with contextlib.suppress(KeyboardInterrupt):
        show(url, request, options.interval, functools.partial(print, end="", flush=True))


def find_key(file: Path | None, url: str, confdir: Path = Path("~/.mitmproxy")) -> str:
    """The key to present, or on this machine the token of a balancer of the same user; empty if there is none.

    Raises OSError.
    """
    if file is not None:
        try:
            return file.read_text().strip()
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, "it is no text", str(file)) from None
    if given := os.environ.get(KEY_ENVIRONMENT, "") or os.environ.get(tokens.ENVIRONMENT, ""):
        return given
    host = urlsplit(url).hostname or ""
    if host != "localhost" and not is_loopback(host):
        return ""  # the token of this machine is nobody else's business
    try:
        return (confdir.expanduser() / tokens.FILE_NAME).read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
