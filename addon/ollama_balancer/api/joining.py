"""How a host joins by one line: join codes, the scripts that a host runs, and the wheel that these install."""

import asyncio
import html
import re
import time
from collections.abc import Awaitable, Callable
from functools import cache
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from agent_reporter.addresses import is_loopback
from agent_reporter.wire import JoinRequest, check_size, describe

from ..core.access import Right
from ..core.join_codes import JoinCode, JoinCodes, TooManyCodesError
from ..core.registry import AgentRegistry
from ..gateway.access import Access
from ..gateway.audit import AuditTrail
from ..gateway.callers import Caller
from ..gateway.messages import RETRY_AFTER
from ..storage.keys import HOST_KEY, HOST_NAME, KeyExistsError, KeyFileError
from .callers import caller_of
from .dashboard import FOLDER, HEADERS
from .join_models import MakeJoinCode
from .keys import KeyFile
from .paths import JOIN, JOIN_PAGE
from .reporter_wheel import NoWheelError, Wheel, reporter_wheel, wheel_name

NOT_VALID = (
    "this join code is not valid: it has been used, it has expired, or it was made before the balancer was restarted; "
    "'ollama-balancer join-code' on the balancer's machine, or its dashboard, makes another"
)

NO_KEYS = "no host can join now, as the balancer's keys cannot be read: its log says why, to whoever runs it"

_NETLOC = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
"""The Host headers for which there are scripts: they hold it, so that no other character may be in it."""

_DEFAULT_PORTS = {"http": 80, "https": 443}

NO_STORE = {"Cache-Control": "no-store"}
SCRIPT_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache", "Vary": "Accept, Host"}


class JoinApi:
    """`outward` gives this machine's address for others, as host:port, if they can reach it."""

    def __init__(
        self,
        registry: AgentRegistry,
        access: Access,
        audit: AuditTrail,
        keys: KeyFile | None,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        outward: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.registry = registry
        self.access = access
        self.audit = audit
        self.keys = keys
        self.wall = wall
        self.outward = outward
        self.codes = JoinCodes(clock)
        self.handlers: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "make_join_code": self.make_code,
            "join": self.join,
            "join_page": self.page,
            "join_script": self.shell,
            "join_powershell": self.powershell,
            "reporter_wheel": self.wheel,
        }

    async def make_code(self, request: Request) -> Response:
        body = await request.body()
        try:
            asked = MakeJoinCode.model_validate_json(check_size(body)) if body.strip() else MakeJoinCode()
        except ValidationError as e:
            raise HTTPException(400, describe(e.errors())) from e
        except ValueError as e:
            raise HTTPException(400, f"body: {e}") from e
        url = self.balancer_url(request, for_others=True)
        try:
            code = self.codes.make(asked.name, asked.expires_in)
        except TooManyCodesError:
            raise HTTPException(
                409, f"{len(self.codes)} join codes are open, which is the most: wait until some have expired"
            ) from None
        self.audit.changed(caller_of(request), "join_code.make", asked.name or "any", expires_in=asked.expires_in)
        described = {
            "code": code,
            "name": asked.name,
            "expires_in": asked.expires_in,
            "command": shell_line(url, code),
            "powershell": powershell_line(url, code),
        }
        return JSONResponse(described, 201, NO_STORE)

    async def join(self, request: Request) -> Response:
        """Let a host join by a code, or tell one that has joined its name."""
        caller = caller_of(request)
        if self.access.keyring.problem is not None:
            raise HTTPException(503, NO_KEYS, {"Retry-After": RETRY_AFTER})
        if (known := caller.key) is not None and known.agent is not None:
            refusal = self.access.refusal(caller, (Right.REPORT,), always=True)
            if refusal is not None:
                self.audit.refused(caller, JOIN, *refusal)
                raise HTTPException(*refusal)
            return JSONResponse({"name": known.agent, "key": known.name, "secret": None}, 200, NO_STORE)
        code = self.codes.take(_presented(caller))
        if code is None:
            self.audit.refused(caller, JOIN, 401, "this join code is not valid")
            raise HTTPException(401, NOT_VALID, {"WWW-Authenticate": "Bearer"})
        try:
            return await self._admit(request, code)
        except HTTPException as e:
            self.codes.put_back(code)
            self.audit.changed(caller, "join_code.refuse", code.agent or "any", status=e.status_code, reason=e.detail)
            raise
        except BaseException:
            self.codes.put_back(code)
            raise

    async def _admit(self, request: Request, code: JoinCode) -> Response:
        try:
            proposed = JoinRequest.model_validate_json(check_size(await request.body())).name
        except ValidationError as e:
            raise HTTPException(400, describe(e.errors())) from e
        except ValueError as e:
            raise HTTPException(400, f"body: {e}") from e
        agent = code.agent or proposed
        if not HOST_NAME.fullmatch(agent):
            raise HTTPException(
                400, "name: a host joins under 1 to 59 letters, digits and . _ -; choose another with --name"
            )
        if self.keys is None or (store := self.keys.store) is None:
            raise HTTPException(503, "the balancer is not running")
        if code.agent is None and self.registry.get(agent) is not None:
            raise self._taken(f"the fleet has an agent {agent} already", agent)
        try:
            secret = await asyncio.to_thread(store.admit_host, agent, self.wall(), again=code.agent is not None)
        except KeyExistsError:
            raise self._taken(f"a host has joined as {agent} already", agent) from None
        except KeyFileError as e:
            raise HTTPException(503, str(e)) from e
        except ValueError as e:
            raise HTTPException(409, str(e)) from e
        key = f"{HOST_KEY}{agent}"
        self.audit.joined(caller_of(request), agent, key)
        await self.keys.reload(whole=True)
        return JSONResponse({"name": agent, "key": key, "secret": secret}, 201, NO_STORE)

    @staticmethod
    def _taken(problem: str, agent: str) -> HTTPException:
        way = f"make a code for it with 'ollama-balancer join-code --name {agent}'"
        return HTTPException(409, f"{problem}: choose another name with --name or, if it is this one, {way}")

    def line(self, request: Request) -> str | None:
        """What lets a host with Linux or macOS join, for a code; None: the balancer's address is not known."""
        try:
            return shell_line(self.balancer_url(request, for_others=True), "CODE")
        except HTTPException:
            return None

    async def page(self, request: Request) -> Response:
        """For a browser a page; for anything else the script."""
        if "text/html" not in request.headers.get("accept", ""):
            return await self.shell(request)
        url, wheel = self.balancer_url(request, for_others=True), await self._wheel()
        values = {
            "BALANCER": url,
            "SHELL": shell_line(url, "CODE"),
            "POWERSHELL": powershell_line(url, "CODE"),
            "SECURE": shell_line(f"https://{urlsplit(url).netloc}", "CODE"),
            "SCRIPT": filled("join.sh", url, wheel),
            "HIDDEN": "hidden" if url.startswith("https:") else "",
        }
        page = _template("join.html")
        for name, value in values.items():
            page = page.replace(f"@{name}@", html.escape(value))
        policy = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        return HTMLResponse(page, headers={**HEADERS, **SCRIPT_HEADERS, "Content-Security-Policy": policy})

    async def shell(self, request: Request) -> Response:
        return PlainTextResponse(
            filled("join.sh", self.balancer_url(request), await self._wheel()), 200, SCRIPT_HEADERS
        )

    async def powershell(self, request: Request) -> Response:
        return PlainTextResponse(
            filled("join.ps1", self.balancer_url(request), await self._wheel()), 200, SCRIPT_HEADERS
        )

    async def wheel(self, request: Request) -> Response:
        if request.path_params["file"] != wheel_name():
            raise HTTPException(404, f"the balancer serves {wheel_name()} only")
        wheel = await self._wheel()
        return Response(wheel.content, 200, {"Content-Type": "application/zip", **SCRIPT_HEADERS})

    async def _wheel(self) -> Wheel:
        try:
            return await asyncio.to_thread(reporter_wheel)
        except NoWheelError as e:
            raise HTTPException(503, str(e)) from e

    def balancer_url(self, request: Request, *, for_others: bool = False) -> str:
        """The balancer's URL as the caller has it; `for_others`: as other machines have it. HTTPException: the Host
        header is not one that may stand in a script.
        """
        match = _NETLOC.fullmatch(request.headers.get("host", ""))
        scheme = request.scope["scheme"]
        port = 0 if match is None else int(match[2] or _DEFAULT_PORTS[scheme])
        if match is None or not 0 < port < 65536:
            raise HTTPException(400, "the Host header must be the balancer's name or address, and its port")
        host = match[1]
        if for_others and (host == "localhost" or is_loopback(host.strip("[]"))) and (found := self.outward()):
            return f"{scheme}://{found}"
        return f"{scheme}://{host}:{port}"


def shell_line(url: str, code: str) -> str:
    """What joins a host with Linux or macOS."""
    return f"curl -fsS {url}{JOIN_PAGE} | sh -s -- {code}"


def powershell_line(url: str, code: str) -> str:
    """What joins a host with Windows."""
    return f"& ([scriptblock]::Create((irm {url}{JOIN_PAGE}.ps1))) {code}"


def filled(template: str, url: str, wheel: Wheel) -> str:
    """A script for hosts of the balancer at that URL, which has no character that would mean something there."""
    script = _template(template)
    for name, value in (("BALANCER", url), ("WHEEL", wheel.name), ("SHA256", wheel.sha256)):
        script = script.replace(f"@{name}@", value)
    return script


@cache
def _template(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _presented(caller: Caller) -> bytes:
    """The bearer token of the call, which is not in its flow."""
    for name, value in caller.credentials:
        scheme, _, credential = value.strip().partition(b" ")
        if name.lower() == b"authorization" and scheme.lower() == b"bearer":
            return credential.strip()
    return b""
