"""The command line and the environment, read into Options."""

import argparse
import math
import re
import socket
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .addresses import Endpoint, parse_endpoint, parse_ollama_host
from .limits import NAME_PATTERN
from .push import check_token

DEFAULT_BALANCER_PORT = 8080
DEFAULT_BALANCER = f"http://127.0.0.1:{DEFAULT_BALANCER_PORT}"
TOKEN_FILE_NAME = "ollama-balancer-token"  # noqa: S105
JOIN_CODE = "OLLAMA_BALANCER_JOIN_CODE"
TOKEN_FILE_LIMIT = 4096
"""Bytes of a token file that are read at most."""
LONGEST_INTERVAL = 3600.0

T = TypeVar("T")


@dataclass(frozen=True)
class Token:
    """A token and the words for where it came from."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"<Token from {self.source}>"


@dataclass(frozen=True)
class Options:
    """What the reporter was asked to do. `token` is None where none was given: it may still be on this host."""

    balancers: tuple[Endpoint, ...]
    token: Token | None
    join: Path | None
    """Where the host's own key is kept, or to be kept."""
    join_code: str
    name: str
    ollama: Endpoint
    advertise: str | None
    interval: float
    discover: bool
    once: bool
    print: bool
    install: bool
    uninstall: bool
    yes: bool


def parse_options(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read the options. Raises ValueError with a message that names the option; argparse exits by itself for --help."""
    parser = _parser()
    parsed, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        # Names only: what stands behind a mistyped --token is a secret.
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        raise ValueError(f"unknown option: {', '.join(names)}" if names else "only options are accepted; see --help")
    if parsed.yes and not parsed.install:
        raise ValueError("--yes goes with --install only")
    if parsed.print and (parsed.install or parsed.uninstall):
        raise ValueError("--print goes with --once or alone")
    alone = parsed.print and not parsed.once
    if parsed.join is not None:
        _check_join(parsed)
    return Options(
        balancers=_balancers(parsed.balancer, environ, discover=parsed.discover),
        token=None
        if alone or parsed.uninstall or parsed.join is not None
        else find_token(parsed.token, parsed.token_file, environ),
        join=None if parsed.join is None else Path(parsed.join).expanduser(),
        join_code=environ.get(JOIN_CODE, "").strip() if parsed.join is not None else "",
        name=_name(parsed.name),
        ollama=_ollama(parsed.ollama, environ),
        advertise=_named("--advertise", _advertised, parsed.advertise) if parsed.advertise else None,
        interval=_interval(parsed.interval),
        discover=parsed.discover,
        once=parsed.once,
        print=parsed.print,
        install=parsed.install,
        uninstall=parsed.uninstall,
        yes=parsed.yes,
    )


def _check_join(parsed: argparse.Namespace) -> None:
    if parsed.token is not None or parsed.token_file is not None:
        raise ValueError("--join gets this host a key of its own: give no --token or --token-file with it")
    if parsed.discover or len(parsed.balancer or ()) != 1:
        raise ValueError("--join goes with one --balancer, and not with --discover: each balancer has its own codes")
    if parsed.uninstall or (parsed.print and not parsed.once):
        raise ValueError("--join goes with running, --once or --install")


def fit_name(hostname: str) -> str:
    """A host's name made to fit NAME_PATTERN: accents dropped, other characters become hyphens, cut to 64."""
    plain = unicodedata.normalize("NFKD", hostname).encode("ascii", "ignore").decode()
    fitting = re.sub(r"[^A-Za-z0-9._:\[\]-]+", "-", plain).lstrip("._:]-")[:64].rstrip("-.")
    return fitting if re.fullmatch(NAME_PATTERN, fitting) else "ollama-host"


def find_token(value: str | None, file: str | None, environ: Mapping[str, str]) -> Token | None:
    """The token that was given, options before environment. Raises ValueError, without the token."""
    if value is not None and file is not None:
        raise ValueError("give --token or --token-file, not both")
    if value is not None:
        return _checked(value, "--token")
    if file is not None:
        return read_token_file(Path(file).expanduser(), "--token-file")
    if environ.get("OLLAMA_BALANCER_TOKEN"):
        return _checked(environ["OLLAMA_BALANCER_TOKEN"], "$OLLAMA_BALANCER_TOKEN")
    return None


def read_token_file(path: Path, option: str = "the balancer's token file") -> Token:
    """Read a file that holds nothing but a token. Raises ValueError."""
    try:
        with path.open("rb") as file:
            content = file.read(TOKEN_FILE_LIMIT + 1)
    except OSError as error:
        raise ValueError(f"{option}: can't read {path}: {error.strerror or error}") from None
    if len(content) > TOKEN_FILE_LIMIT:
        raise ValueError(f"{option}: {path} is too long to be a token")
    return _checked(content.decode("ascii", "replace"), f"{option} {path}")


def own_token_file() -> Path:
    """Where a balancer of this host and user keeps its token."""
    return Path("~/.mitmproxy").expanduser() / TOKEN_FILE_NAME


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ollama-agent-reporter",
        description="Registers this Ollama host with its balancers and reports its load and models to them.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--balancer",
        metavar="URL",
        action="append",
        help=f"a balancer to report to; may be repeated ($OLLAMA_BALANCER_URL, comma-separated; {DEFAULT_BALANCER})",
    )
    add(
        "--discover",
        action="store_true",
        help="also report to balancers that announce themselves on the local network; needs a token",
    )
    add(
        "--token",
        help="the balancers' token; others on this host can see it in the list of processes, so prefer --token-file "
        "($OLLAMA_BALANCER_TOKEN; on the balancer's own host and user: the one it keeps)",
    )
    add("--token-file", metavar="PATH", help="a file that holds the token and nothing else")
    add(
        "--join",
        metavar="FILE",
        help=f"join the balancer's fleet with the code in ${JOIN_CODE}, and keep this host's own key in FILE; a host "
        "that has joined needs no code",
    )
    add("--name", help="this agent's name in the fleet, different on each host (this host's name)")
    add("--ollama", metavar="URL", help="this host's Ollama ($OLLAMA_HOST, 127.0.0.1:11434)")
    add(
        "--advertise",
        metavar="URL",
        help="http://host:port under which balancers reach this Ollama (the address this host calls from, "
        "and the port of --ollama)",
    )
    add("--interval", metavar="S", default="10", help="seconds between reports (10)")
    add(
        "--print",
        action="store_true",
        help="print one report as JSON and exit; needs no balancer. With --once: print what is reported",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="register, report once to each balancer, exit")
    mode.add_argument(
        "--install",
        action="store_true",
        help="install a service that runs this with the same options at boot; shows it and asks first",
    )
    mode.add_argument("--uninstall", action="store_true", help="stop and remove that service")
    add("--yes", action="store_true", help="with --install: don't ask")
    return parser


def _balancers(parsed: list[str] | None, environ: Mapping[str, str], *, discover: bool) -> tuple[Endpoint, ...]:
    option = "--balancer" if parsed else "$OLLAMA_BALANCER_URL"
    texts = parsed or environ.get("OLLAMA_BALANCER_URL", "").split(",")
    texts = [text for text in texts if text.strip()] if not parsed else texts
    return tuple(
        dict.fromkeys(
            _named(option, lambda text: _host_required(text, DEFAULT_BALANCER_PORT), text)
            for text in texts or ([] if discover else [DEFAULT_BALANCER])
        )
    )


def _ollama(parsed: str | None, environ: Mapping[str, str]) -> Endpoint:
    if parsed is not None:
        return _named("--ollama", parse_ollama_host, parsed)
    return _named("$OLLAMA_HOST", parse_ollama_host, environ.get("OLLAMA_HOST", ""))


def _advertised(text: str) -> str:
    if "://" not in text:
        raise ValueError("must be http://host:port")
    return _host_required(text, DEFAULT_BALANCER_PORT).url


def _host_required(text: str, default_port: int) -> Endpoint:
    if not text.strip().rpartition("://")[2].strip("/"):
        raise ValueError("must be http://host:port")
    return parse_endpoint(text, default_port=default_port)


def _named(option: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None


def _name(parsed: str | None) -> str:
    if parsed is None:
        return fit_name(socket.gethostname())
    if not re.fullmatch(NAME_PATTERN, parsed):
        raise ValueError(
            "--name must be 1 to 64 letters, digits, '.', '_', ':', '-', '[' or ']', a letter or digit first"
        )
    return parsed


def _interval(parsed: str) -> float:
    try:
        seconds = float(parsed)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= LONGEST_INTERVAL:  # NaN compares false
        raise ValueError(f"--interval must be a number of seconds from 0.1 to {LONGEST_INTERVAL:g}")
    return seconds


def _checked(text: str, source: str) -> Token:
    value = text.strip()
    try:
        check_token(value)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return Token(value, source)
