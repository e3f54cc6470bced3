"""`ollama-balancer join-code`: has a running balancer make a code by which one host joins its fleet."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent_reporter.addresses import parse_endpoint
from agent_reporter.http import CallError, call

from ..api.join_models import NewJoinCode
from ..api.models import Error
from ..api.paths import JOIN_CODES
from ..core.join_codes import DEFAULT_SECONDS, MAX_SECONDS, MIN_SECONDS
from ..storage.keys import HOST_NAME
from ..text import one_line
from .keys import duration
from .top import DEFAULT_URL, KEY_ENVIRONMENT, find_key

TEXT = "Make a code by which one Ollama host joins the fleet, and print what to run there."

TIMEOUT = 10.0
MAX_BYTES = 64 * 1024
LONGEST_LINE = 1000


def add_command(commands: Any) -> None:
    """Add the subcommand to those of argparse."""
    parser = commands.add_parser("join-code", help=TEXT[0].lower() + TEXT[1:-1], description=TEXT)
    add = parser.add_argument
    add(
        "--name",
        metavar="HOST",
        type=_host_name,
        help="the name that the host gets, which may have joined before (the host's own)",
    )
    add(
        "--expires", metavar="TIME", type=_validity, default=DEFAULT_SECONDS, help="how long it is valid, up to 1d (1h)"
    )
    add("--balancer", metavar="URL", default=DEFAULT_URL, help=f"the balancer ({DEFAULT_URL})")
    add(
        "--key-file",
        metavar="FILE",
        type=Path,
        help="file with the balancer's token or a key with the right operate "
        f"(${KEY_ENVIRONMENT}, or for a balancer on this machine the token in mitmproxy's folder)",
    )
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda options: _run(parser, options))


def _host_name(text: str) -> str:
    if HOST_NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            "1 to 59 letters, digits and . _ -, beginning and ending with a letter or digit"
        )
    return text


def _validity(text: str) -> float:
    seconds = duration(text)
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError("a time from 1m to 1d")
    return seconds


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    try:
        balancer = parse_endpoint(options.balancer, default_port=8080).url
    except ValueError as e:
        parser.error(f"--balancer {e}")
    try:
        key = find_key(options.key_file, balancer)
    except OSError as e:
        parser.error(f"--key-file: {options.key_file} cannot be read ({e.strerror or e})")
    body = {"expires_in": int(options.expires)} | ({} if options.name is None else {"name": options.name})
    try:
        made = _make(balancer, key, body)
    except ValueError as e:
        sys.exit(f"{parser.prog}: {balancer}: {e}")
    if options.json:
        print(made.model_dump_json(indent=2))
        return
    _say(f"{made.name or 'One host'} can join within {made.expires_in // 60} minutes by this line, on Linux or macOS:")
    print(one_line(made.command, LONGEST_LINE), flush=True)
    _say(f"On Windows, in a PowerShell opened as administrator:\n{one_line(made.powershell, LONGEST_LINE)}")


def _make(balancer: str, key: str, body: dict[str, Any]) -> NewJoinCode:
    """What the balancer answers. Raises ValueError with a line that says what is wrong."""
    if not key:
        raise ValueError(f"this needs the balancer's token: give it with --key-file or ${KEY_ENVIRONMENT}")
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        answer = asyncio.run(
            call(
                "POST",
                balancer + JOIN_CODES,
                content=json.dumps(body).encode(),
                headers=headers,
                timeout=TIMEOUT,
                limit=MAX_BYTES,
            )
        )
    except CallError as e:
        raise ValueError(f"it does not answer ({e})") from e
    if answer.status == 201:
        with contextlib.suppress(ValidationError):
            return NewJoinCode.model_validate_json(answer.body)
    with contextlib.suppress(ValidationError):
        raise ValueError(one_line(Error.model_validate_json(answer.body).error, 500))
    raise ValueError(f"it returned status {answer.status}: is it a balancer?")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
