"""Explains why a host is unreachable and what to do: for the log, the dashboard and the reporter."""

import errno
import os
import re

from ..core.address import Address
from ..core.agent import Agent, Status

REACHABLE_HEADER = "X-Balancer-Reachable"
"""Header of the answer to a report if the balancer cannot reach the host: `no; REASON`."""

LONGEST_REASON = 400
"""Characters of a reason in a header."""


_NUMBER = re.compile(r"^\[Errno -?\d{1,5}\] ")
_FAILED = re.compile(r"\[Errno (\d{1,4})\] Connect call failed")


def plain_reason(text: str) -> str:
    """Why a connection failed, as mitmproxy has it from asyncio, without the number, and in the system's words."""
    failed = _FAILED.search(text)
    if failed is None:
        return _NUMBER.sub("", text)
    number = int(failed[1])
    return "connection refused" if number == errno.ECONNREFUSED else os.strerror(number)


def cannot_connect(address: Address, why: str) -> str:
    """The error and its remedy in one line; `why` comes from the system or a timeout."""
    return "; ".join(connection_problem(address, why))


def connection_problem(address: Address, why: str) -> tuple[str, str]:
    """The error, and its remedy."""
    if "refused" in why:
        if address.host in ("localhost", "::1") or address.host.startswith("127."):
            what = "check that Ollama runs there, on that port"
        else:
            what = (
                "start Ollama there with OLLAMA_HOST=0.0.0.0 (by default it listens on loopback only), or give the "
                "port that it listens on"
            )
    elif "within" in why:
        what = (
            f"check the address, and that no firewall blocks TCP port {address.port} between the balancer and the host"
        )
    elif "not found" in why or "not known" in why:
        what = "the balancer cannot resolve that name: use an IP address (with a reporter: --advertise http://IP:PORT)"
    else:
        what = "check the address and the firewalls in between"
    return f"cannot connect: {why} at {address}", what


def reachability_headers(agent: Agent) -> dict[str, str]:
    """Headers for the answer to a report; empty if the host is reachable or nothing is known."""
    reason = agent.refusal if agent.status is Status.UNAUTHORIZED else agent.unreached
    if not reason or agent.status not in (Status.UNREACHABLE, Status.UNAUTHORIZED):
        return {}
    plain = "".join(c if " " <= c <= "~" else "?" for c in reason[:LONGEST_REASON])
    return {REACHABLE_HEADER: f"no; {plain}"}
