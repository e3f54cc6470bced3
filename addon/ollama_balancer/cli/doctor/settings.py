"""What the balancer would start with: arguments, environment, mitmproxy's config.yaml and the fleet file."""

import difflib
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ...core.address import without_password
from ...settings.fleet import Fleet, FleetFileError
from ...settings.fleet_file import read_fleet
from ...settings.option_values import Kind
from ...settings.options import PREFIX, TABLE
from ...storage import token as tokens
from .findings import Finding, problem

DEFAULT_CONFDIR = "~/.mitmproxy"
CONFIG_FILES = ("config.yaml", "config.yml")
MAX_CONFIG = 1024 * 1024
"""Bytes of a configuration file that are read."""

MAX_FLEET_FINDINGS = 10

DEFAULT_PORT = 8080


@dataclass
class Settings:
    """The options that concern a start. `host` is empty for all addresses; `token` is that of the options or the
    environment; `agents` are the entries of balancer_agents as they are written.
    """

    confdir: Path
    host: str = ""
    port: int = DEFAULT_PORT
    agents: list[str] = field(default_factory=list)
    fleet: Fleet = field(default_factory=lambda: Fleet(""))
    """What the fleet file says, if there is a good one."""
    token: str = field(default="", repr=False)
    queue_size: int = TABLE["balancer_queue_size"].default
    store: str = ""
    """The folder of saved flows; empty: there is none."""
    findings: list[Finding] = field(default_factory=list)


def read(sets: Sequence[str], port: str | None = None, host: str | None = None) -> Settings:
    """Read the options as mitmproxy does: arguments win over --set, and --set over config.yaml."""
    given: dict[str, list[str]] = {}
    for each in sets:
        name, _, value = each.partition("=")
        given.setdefault(name, []).append(value)
    settings = Settings(Path(given.get("confdir", [DEFAULT_CONFDIR])[-1]).expanduser())
    values: dict[str, Any] = dict(_configured(settings)) | given
    values |= {name: [value] for name, value in (("listen_port", port), ("listen_host", host)) if value is not None}
    settings.host = _text(values, "listen_host")
    settings.port = _port(settings, values)
    checked = _checked(settings, values, given.keys())
    settings.fleet = _fleet(settings, str(checked.get("balancer_config", "")).strip())
    size = "balancer_queue_size"
    settings.queue_size = checked.get(size, settings.fleet.options.get(size, settings.queue_size))
    settings.store = str(checked.get("balancer_store", settings.fleet.options.get("balancer_store", ""))).strip()
    agents = values.get("balancer_agents") or []
    texts = [agents] if isinstance(agents, str) else agents if isinstance(agents, Sequence) else []
    settings.agents = [part.strip() for text in texts for part in str(text).split(",") if part.strip()]
    settings.token = _text(values, "balancer_token") or os.environ.get(tokens.ENVIRONMENT, "")
    if settings.token:
        try:
            tokens.check(settings.token)
        except ValueError as e:
            settings.findings.append(
                problem(
                    f"balancer_token or ${tokens.ENVIRONMENT}: {e}", "leave it out, and one is made at the first start"
                )
            )
    return settings


def _configured(settings: Settings) -> Mapping[str, Any]:
    """The options of the configuration files."""
    found: dict[str, Any] = {}
    for path in (settings.confdir / name for name in CONFIG_FILES):
        try:
            with path.open("rb") as file:
                text = file.read(MAX_CONFIG + 1)
            content = YAML(typ="safe", pure=True).load(text) if len(text) <= MAX_CONFIG else "too long"
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            settings.findings.append(problem(f"{path} cannot be read: {e.strerror or e}", "make it readable"))
            continue
        except (YAMLError, UnicodeError, ValueError) as e:
            mark = e.problem_mark if isinstance(e, MarkedYAMLError) else None
            where = f"{path}, line {mark.line + 1}" if mark else str(path)
            why = e.problem if isinstance(e, MarkedYAMLError) and e.problem else "it cannot be read"
            settings.findings.append(problem(f"{where}: this is not YAML: {why}", "correct that line"))
            continue
        if isinstance(content, dict):
            found |= {str(name): value for name, value in content.items()}
        elif content is not None:
            settings.findings.append(
                problem(f"{path} does not hold options", "write a line `name: value` for each option, or remove it")
            )
    return found


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if isinstance(value, list):
        value = value[-1] if value else ""
    return "" if value is None else str(value)


def _port(settings: Settings, values: Mapping[str, Any]) -> int:
    text = _text(values, "listen_port")
    if not text:
        return DEFAULT_PORT
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= 65535:
        return int(text)
    settings.findings.append(
        problem(f"listen_port: {without_password(text)[:40]!r} is not accepted", "give a whole number from 0 to 65535")
    )
    return DEFAULT_PORT


def _checked(settings: Settings, values: Mapping[str, Any], texts: Container[str]) -> dict[str, Any]:
    """The balancer's options that can be used, but the agents and the token; those in `texts` were given as text."""
    apart = ("balancer_agents", "balancer_token")
    of_environment = {
        name: [value]
        for name, row in TABLE.items()
        if name not in (*apart, *values) and (value := os.environ.get(row.environment or "", ""))
    }
    checked = {}
    for name, value in {**of_environment, **values}.items():
        if not name.startswith(PREFIX) or name in apart:
            continue
        if name not in TABLE:
            close = difflib.get_close_matches(name, TABLE, 1)
            remedy = f"write {close[0]}" if close else "remove it; docs/options.md has all options"
            settings.findings.append(problem(f"there is no option {without_password(name)[:80]}", remedy))
            continue
        kind = TABLE[name].kind
        try:
            checked[name] = kind.raw_from(_typed(kind, value) if name in texts or name in of_environment else value)
        except ValueError as e:
            settings.findings.append(problem(f"{name}: {e}", f"it takes {kind.accepts}"))
    return checked


def _typed(kind: Kind[Any], texts: Sequence[str]) -> object:
    """A value that was given as text, as mitmproxy reads it."""
    if kind.raw is int:
        return int(texts[-1]) if re.fullmatch(r"-?[0-9]{1,12}", texts[-1]) else texts[-1]
    if kind.raw is bool:
        return {"": True, "true": True, "false": False, "toggle": True}.get(texts[-1], texts[-1])
    return texts[-1] if kind.raw is str else list(texts)


def _fleet(settings: Settings, path: str) -> Fleet:
    if not path:
        return Fleet("")
    try:
        return read_fleet(path)
    except FleetFileError as e:
        for each in e.findings[:MAX_FLEET_FINDINGS]:
            remedy = f"correct that; ollama-balancer check {path} shows all that is wrong in it"
            settings.findings.append(problem(each.at(path), remedy))
    return Fleet("")
