"""The hosts: those of the options, those that have registered, and those of a balancer that runs here."""

import asyncio
import contextlib
import functools
import ssl
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from agent_reporter.addresses import any_is_local, is_loopback, own_ips, plain_ip, resolve
from agent_reporter.connecting import connect
from agent_reporter.http import Answer, CallError, CallTimeoutError, ConnectError

from ...api.reports import FARTHEST_AHEAD
from ...core.address import Address, DnsName, without_password
from ...hosts.dns_agents import MAX_ADDRESSES, look_up
from ...hosts.local import listening_at, local_key
from ...hosts.prober import (
    ALIVE_TIMEOUT,
    INVENTORY_TIMEOUT,
    LOCAL,
    StatusError,
    Version,
    diagnose,
    get,
    host_time,
    read_models,
)
from ...ollama.errors import not_let_in
from ...storage.agents import FILE_NAME as STATE_FILE
from ...storage.agents import MAX_BYTES, Stored
from ...storage.files import open_own
from .findings import Finding, Level, ok, problem, warning
from .ports import Running, statuses
from .settings import Settings

VIA = "1.1 ollama-balancer-doctor"

DEADLINE = 20.0
"""Seconds for all agents together."""

MAX_FINE, MAX_WRONG = 20, 100
"""Agents of which each has lines of its own; of the others it is said how many they are."""

OPTION, FLEET, REGISTERED, NOW = "balancer_agents", "the fleet file", "registered", "the running balancer"
"""Where an agent is listed."""


@dataclass
class Listed:
    """An agent, and what a running balancer says of it."""

    name: str
    address: Address
    source: str
    status: str = ""
    reason: str = ""


@dataclass
class Examined:
    """What came out. `peer` is the IP address that answered as an Ollama, empty if none did."""

    agent: Listed
    findings: list[Finding] = field(default_factory=list)
    peer: str = ""


async def listed(settings: Settings, running: Running) -> tuple[list[Listed], list[Finding]]:
    """All agents, each once, and what is wrong with the lists. Names that stand for several hosts are resolved."""
    findings: list[Finding] = []
    found: dict[tuple[str, Address], Listed] = {}
    entries = [(*_name_and_url(entry), OPTION) for entry in settings.agents]
    entries += [(name, spec.where.url, FLEET) for name, spec in settings.fleet.agents.items()]
    entries += [(name, url, REGISTERED) for name, url in _registered(settings, findings)]
    entries += [(name, url, NOW) for name, url, _, _ in statuses(running.agents)]
    seen: set[tuple[str, str, str]] = set()
    names = list(dict.fromkeys(url for _, url, _ in entries if _is_dns(url)))
    ips = dict(zip(names, await asyncio.gather(*map(_look_up, names)), strict=True))
    for name, url, source in entries:
        try:
            if _is_dns(url):
                for agent in _in_dns(name, DnsName.parse(url), ips[url], source, findings):
                    found.setdefault((agent.name, agent.address), agent)
                continue
            address = _address(url)
        except ValueError as e:
            findings.append(problem(f"{source}: {_shown(name)}{e}", "write name=http://host:port"))
            continue
        agent = found.setdefault((name or str(address), address), Listed(name or str(address), address, source))
        if source == OPTION and (agent.name, str(address), source) in seen:
            findings.append(problem(f"{agent.name} is listed twice in {OPTION}", "remove one of the two"))
        seen.add((agent.name, str(address), source))
    for name, url, status, reason in statuses(running.agents):
        with contextlib.suppress(ValueError):
            agent = found[name, Address.parse(url)]
            agent.status, agent.reason = status, reason
    return list(found.values()), findings + list(_same_names(found.values()))


def _name_and_url(entry: str) -> tuple[str, str]:
    """Of an entry of balancer_agents."""
    before, equals, after = entry.partition("=")
    return (before, after) if equals and "://" not in before else ("", entry)


def _is_dns(url: str) -> bool:
    return url.lower().startswith("dns+")


async def _look_up(url: str) -> list[str]:
    try:
        async with asyncio.timeout(ALIVE_TIMEOUT):
            return await look_up(DnsName.parse(url).host)
    except (OSError, ValueError):
        return []


def _in_dns(name: str, where: DnsName, ips: Sequence[str], source: str, findings: list[Finding]) -> list[Listed]:
    if not ips:
        remedy = "correct the name, or add it to the DNS; agents come once it resolves"
        findings.append(problem(f"{source}: the name {where.host} does not resolve", remedy))
    first = name or where.prefix
    return [Listed(f"{first}-{ip}", Address(ip, where.port, where.host), source) for ip in ips[:MAX_ADDRESSES]]


def _address(url: str) -> Address:
    if url.lower().startswith("https://"):
        shown = without_password(url)[:100]
        raise ValueError(f"{shown} begins with https://, but the balancer calls hosts over http only")
    return Address.parse(url)


def _shown(name: str) -> str:
    return f"{without_password(name)[:64]}: " if name else ""


def _registered(settings: Settings, findings: list[Finding]) -> list[tuple[str, str]]:
    path = settings.confdir / STATE_FILE
    try:
        with open_own(path) as file:
            stored = Stored.model_validate_json(file.read(MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        findings.append(
            problem(f"{path} cannot be read: {e.strerror or e}", "make it readable for the balancer's user")
        )
        return []
    except ValueError:
        findings.append(
            problem(
                f"{path} is damaged: registered agents without a reporter are lost",
                "remove it; those with a reporter register again by themselves",
            )
        )
        return []
    return [(agent.name, agent.url) for agent in stored.agents]


def _same_names(agents: Iterable[Listed]) -> Iterable[Finding]:
    by_name: dict[str, list[Listed]] = {}
    for agent in agents:
        by_name.setdefault(agent.name, []).append(agent)
    for name, same in by_name.items():
        if len(same) > 1:
            where = " and ".join(f"{each.address.url} ({each.source})" for each in same[:4])
            yield problem(f"the name {name} is used twice: {where}", "give each host a name of its own")


async def check(agents: Sequence[Listed], own_port: int, at_once: int) -> list[Finding]:
    """Check all agents, `at_once` of them at the same time; the local Ollama if there are none."""
    if not agents:
        return [await _check_local()]
    lane = asyncio.Semaphore(max(1, at_once))
    own = await asyncio.to_thread(own_ips)

    async def examine(agent: Listed) -> Examined:
        async with lane:
            return await Examination(agent, own, own_port).run()

    tasks = [asyncio.create_task(examine(agent)) for agent in agents]
    done, late = await asyncio.wait(tasks, timeout=DEADLINE)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    examined = [task.result() for task in tasks if task in done]
    findings = _shortened(examined) + list(await asyncio.to_thread(_same_hosts, examined, own))
    if late:
        count = "1 agent was" if len(late) == 1 else f"{len(late)} agents were"
        findings.append(warning(f"{count} not checked within {DEADLINE:g} s", "correct what is above and run it again"))
    return findings


async def _check_local() -> Finding:
    try:
        version = Version.model_validate_json((await get(LOCAL, "/api/version", ALIVE_TIMEOUT, VIA)).body).version
    except (CallError, ValueError):
        return problem(
            f"no agent is configured or registered, and no Ollama answers on {LOCAL}",
            "let each host join by the line that ollama-balancer join-code prints, or name them: --set balancer_agents=gpu-1=http://HOST:11434",
        )
    return ok(f"local: Ollama {version} on {LOCAL}, the only host")


class Examination:
    """The check of one agent. What it answers is not trusted."""

    def __init__(self, agent: Listed, own: frozenset[str], own_port: int) -> None:
        self.agent = agent
        self._own = own
        self._own_port = own_port

    async def run(self) -> Examined:
        agent, address = self.agent, self.agent.address
        examined = Examined(agent)
        try:
            answer = await get(address, "/api/version", ALIVE_TIMEOUT, VIA)
            version = Version.model_validate_json(answer.body).version
        except (CallError, ValueError) as e:
            examined.findings.append(await self._unusable(e))
            return examined
        examined.peer = plain_ip(answer.peer)
        is_local = any_is_local(frozenset({examined.peer}), self._own)
        if is_local and address.port == self._own_port:
            what = f"{agent.name}: {address} is the balancer itself"
            examined.findings.append(problem(what, "give the host and port that Ollama listens on"))
            return examined
        where = f"{agent.name}: Ollama {version} at {address.url}"
        examined.findings += [*await self._models(where, is_local), *self._clock(answer), *self._status()]
        return examined

    async def _unusable(self, error: Exception) -> Finding:
        agent, address = self.agent, self.agent.address
        if isinstance(error, StatusError) and error.status in (401, 403):
            what, _, remedy = not_let_in(error.status).partition(": ")
            return problem(f"{agent.name}: {address} {what}", remedy)
        if isinstance(error, ConnectError):
            if "refused" in str(error) and await self._listens_on_loopback_only():
                return problem(
                    f"{agent.name}: Ollama on this machine listens on 127.0.0.1 only, not on {address}",
                    "start it with OLLAMA_HOST=0.0.0.0, or name the agent by http://127.0.0.1:" + str(address.port),
                )
            if "not found" in str(error):
                remedy = "correct the name, add it to the DNS or /etc/hosts, or give the host's IP address"
                return problem(f"{agent.name}: the name {address.host} does not resolve", remedy)
        elif not isinstance(error, CallTimeoutError) and await _speaks_tls(address):
            remedy = f"give Ollama's own port (http://{address.host}:11434), not that of the TLS proxy in front of it"
            return problem(f"{agent.name}: {address} expects https, but the balancer calls hosts over http", remedy)
        what, remedy = diagnose(address, error)
        return problem(f"{agent.name}: {what}", remedy)

    async def _listens_on_loopback_only(self) -> bool:
        """Of an address of this machine that refuses: whether an Ollama answers on its loopback address."""
        address = self.agent.address
        try:
            if not any_is_local(await resolve(address.host), self._own):
                return False
            answer = await get(Address("127.0.0.1", address.port), "/api/version", ALIVE_TIMEOUT, VIA)
            Version.model_validate_json(answer.body)
        except (CallError, ValueError, OSError):
            return False
        return True

    async def _models(self, where: str, is_local: bool) -> list[Finding]:
        agent, address = self.agent, self.agent.address
        try:
            models = read_models((await get(address, "/api/tags", INVENTORY_TIMEOUT, VIA)).body)
        except (CallError, ValueError) as e:
            why = str(e) if isinstance(e, CallError | StatusError) else "its answer is not that of an Ollama"
            remedy = "give the host and port that Ollama listens on, or update Ollama there"
            return [problem(f"{agent.name}: {address} does not list its models: {why}", remedy)]
        if not models:
            remedy = f"OLLAMA_HOST={address.url} ollama pull llama3.2, or pull through the balancer"
            return [problem(f"{where} has no models", remedy)]
        count = "1 model" if len(models) == 1 else f"{len(models)} models"
        only = ""
        if is_local and address.host != "localhost" and is_loopback(address.host):
            listening = await asyncio.to_thread(listening_at, address.port)
            only = ", for this machine alone" if listening and all(map(is_loopback, listening)) else ""
        return [ok(f"{where}, {count}{only}")]

    def _clock(self, answer: Answer) -> list[Finding]:
        """What the Date of its answer says."""
        shown = host_time(answer)
        if shown is None or abs(ahead := shown - time.time()) <= FARTHEST_AHEAD:
            return []
        by = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        remedy = "set the clock of the one that is wrong: timedatectl set-ntp true"
        return [problem(f"{self.agent.name}: the clock of {self.agent.address.host} is {by}", remedy)]

    def _status(self) -> list[Finding]:
        """What the running balancer says of a host that is well from here."""
        agent = self.agent
        if agent.status in ("", "online"):
            return []
        if agent.status == "draining":
            remedy = f"POST /api/agents/{agent.name}/resume, or start its reporter"
            return [warning(f"{agent.name} is drained: it gets no new requests", remedy)]
        why = f" ({agent.reason})" if agent.reason else ""
        return [
            warning(
                f"{agent.name} is {agent.status} for the running balancer{why}", "look at its log, and wait a moment"
            )
        ]


async def _speaks_tls(address: Address) -> bool:
    """Whether a TLS server listens there, whatever its certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(ALIVE_TIMEOUT):
            made = await connect(address.host, address.port)
            _, writer = await asyncio.open_connection(sock=made, ssl=context, server_hostname=address.host)
    except (OSError, ValueError):
        return False
    writer.transport.abort()
    return True


def _same_hosts(examined: Sequence[Examined], own: frozenset[str]) -> list[Finding]:
    """Agents with different names that are one server."""
    hosts: dict[Hashable, list[Listed]] = {}
    listening = functools.cache(listening_at)
    for each in examined:
        if each.peer:
            port = each.agent.address.port
            local = any_is_local(frozenset({each.peer}), own)
            key = local_key(each.peer, port, listening(port)) if local else (each.peer, port)
            hosts.setdefault(key, []).append(each.agent)
    return [
        problem(
            f"{', '.join(names[:4])} are one host ({', '.join(dict.fromkeys(str(a.address) for a in same[:4]))})",
            "keep one of them; a reporter on another host must not --advertise an address of this machine",
        )
        for same in hosts.values()
        if len(names := list(dict.fromkeys(agent.name for agent in same))) > 1
    ]


def _shortened(examined: Sequence[Examined]) -> list[Finding]:
    """The findings of each agent, of those in trouble first to fit, and how many more there are."""
    fine = [each for each in examined if all(found.level is Level.OK for found in each.findings)]
    wrong = [each for each in examined if any(found.level is not Level.OK for found in each.findings)]
    findings = [found for each in [*fine[:MAX_FINE], *wrong[:MAX_WRONG]] for found in each.findings]
    if len(fine) > MAX_FINE:
        findings.insert(MAX_FINE, ok(f"{len(fine) - MAX_FINE} more agents answer and have models"))
    if len(wrong) > MAX_WRONG:
        more = len(wrong) - MAX_WRONG
        findings.append(problem(f"{more} more agents have problems", "correct those above and run it again", more))
    return findings
