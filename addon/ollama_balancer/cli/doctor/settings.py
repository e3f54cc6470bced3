"""What the balancer would start with: from the arguments, the environment and mitmproxy's config.yaml."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ...core.address import without_password
from ...storage import token as tokens
from .findings import Finding, problem

DEFAULT_CONFDIR = "~/.mitmproxy"
CONFIG_FILES = ("config.yaml", "config.yml")
MAX_CONFIG = 1024 * 1024
"""Bytes of a configuration file that are read."""

DEFAULT_PORT = 8080
DEFAULT_QUEUE_SIZE = 1000
DEFAULT_STOP_TIMEOUT = 30


@dataclass
class Settings:
    """The options that concern a start. `host` is empty for all addresses; `token` is that of the options or the
    environment; `agents` are the entries of balancer_agents as they are written.
    """

    confdir: Path
    host: str = ""
    port: int = DEFAULT_PORT
    agents: list[str] = field(default_factory=list)
    token: str = field(default="", repr=False)
    queue_size: int = DEFAULT_QUEUE_SIZE
    stop_timeout: int = DEFAULT_STOP_TIMEOUT
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
    settings.port = _number(settings, values, "listen_port", DEFAULT_PORT, 0, 65535)
    settings.queue_size = _number(settings, values, "balancer_queue_size", DEFAULT_QUEUE_SIZE, 0, 100_000)
    settings.stop_timeout = _number(settings, values, "balancer_stop_timeout", DEFAULT_STOP_TIMEOUT, 0, 86_400)
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


def _number(settings: Settings, values: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    text = _text(values, name)
    if not text:
        return default
    if text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high:
        return int(text)
    settings.findings.append(
        problem(f"{name}: {without_password(text)[:40]!r} is not accepted", f"give a whole number from {low} to {high}")
    )
    return default
