"""The address of the balancer for the first log lines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mitmproxy import ctx

from agent_reporter import addresses

from ..storage import token as credentials

EVERYWHERE = ("", "0.0.0.0", "::")
"""Hosts that mean all addresses of the machine."""


@dataclass(frozen=True)
class Reach:
    url: str
    local: bool
    """Whether only this machine can use it."""


def reach(listening: Iterable[tuple[str, int]], local_ip: str | None) -> Reach | None:
    """Of where mitmproxy listens; None: nowhere. `local_ip` is this machine's address for others, if it has one."""
    found = [(host, port) for host, port in listening if port]
    for host, port in found:
        if host in EVERYWHERE:
            return Reach(f"http://{local_ip or 'THIS-HOST'}:{port}", local=False)
    found.sort(key=lambda address: _is_loopback(address[0]))
    if not found:
        return None
    host, port = found[0]
    return Reach(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", _is_loopback(host))


def listening() -> list[tuple[str, int]]:
    """Where mitmproxy listens now."""
    proxyserver = ctx.master.addons.get("proxyserver")
    return [(address[0], address[1]) for address in proxyserver.listen_addrs()] if proxyserver else []


def port() -> int | None:
    """The port that a program on this machine calls; None: mitmproxy listens on none."""
    return next((port for _, port in listening()), None)


def first_steps(at: Reach | None, token: credentials.Token) -> Sequence[str]:
    """What to do next, for clients and for the hosts."""
    if at is None:
        return ["mitmproxy listens on no port, so nobody can reach the balancer: start it without --no-server."]
    report = f"ollama-agent-reporter --balancer {at.url}"
    token_hint = f"with ${credentials.ENVIRONMENT} set to the balancer's token"
    if at.local:
        token_file = f" --token-file {token.file}" if token.file is not None else f" {token_hint}"
        return [
            f"Clients on this machine: set OLLAMA_HOST={at.url}, or use it as the base URL.",
            f"This machine's own Ollama reports with: {report}{token_file}",
            "mitmproxy listens on this machine only: clients and reporters on other machines cannot reach it. Use "
            "--listen-host 0.0.0.0 to listen on all addresses.",
        ]
    if token.file is not None:
        token_hint = f"with a copy of this machine's {token.file}"
        report += f" --token-file {credentials.FILE_NAME}"
    return [
        f"Clients: set OLLAMA_HOST={at.url}, or use it as the base URL.",
        f"On each Ollama host, {token_hint}, run: {report}",
    ]


def access_line(at: Reach | None, *, needs_key: bool, keys: int) -> str:
    """Who may come in, and how to change that."""
    if needs_key:
        added = f"{keys} client key{'' if keys == 1 else 's'}" if keys else "no client key yet"
        return f"Access: calls need a key or the token ({added}); ollama-balancer keys adds and lists them."
    if at is None or at.local:
        return "Access: open to all programs on this machine."
    return (
        f"Access: open. Whoever can reach {at.url} can run models and manage them; to close it, give out keys: "
        "ollama-balancer keys add NAME"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or addresses.is_loopback(host)
