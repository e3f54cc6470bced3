"""The calls to one balancer: register, report, drain."""

from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, Field, ValidationError

from .http import Answer, Call, CallError, parse_json
from .states import printable
from .wire import AgentRegistration

CALL_TIMEOUT = 5.0
"""Seconds one call to a balancer may take."""

ANSWER_LIMIT = 256 * 1024
"""Bytes of an answer that are read at most."""

REACHABLE_HEADER = b"x-balancer-reachable"
"""Of a balancer's answer to a report: `no; REASON` where it does not get through to this host's Ollama."""

LONGEST_REASON = 500


class LinkError(Exception):
    """A call to a balancer failed. `state` is the kind of failure, the message has the details."""

    state = "error"


class NoAnswerError(LinkError):
    """No answer at all."""

    state = "away"


class TokenError(LinkError):
    """The balancer refused the token."""

    state = "token"


class UnknownAgentError(LinkError):
    """The balancer does not know the agent: it must register anew."""

    state = "unknown"


class Registered(BaseModel):
    """A balancer's answer to a registration."""

    id: Annotated[str, Field(min_length=1, max_length=256, pattern=r"[^.]")]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    url: Annotated[str, Field(max_length=2048)] = ""


class Link:
    """The connection of this agent to one balancer. All calls raise LinkError."""

    def __init__(
        self, balancer: str, *, token: str, token_source: str, registration: AgentRegistration, call: Call
    ) -> None:
        self.balancer = balancer
        self.agent: Registered | None = None
        self._token = token
        self._token_source = token_source
        self._registration = registration.model_dump_json(exclude_none=True).encode()
        self._call = call

    async def register(self) -> Registered:
        """Make this agent known; the answer is kept in `agent`."""
        answer = await self._post("/api/agents", self._registration)
        if answer.status not in (200, 201):
            raise self._refusal("registration", answer)
        try:
            self.agent = Registered.model_validate(parse_json(answer.body))
        except ValueError as error:  # pydantic's ValidationError is one
            what = "wrong fields" if isinstance(error, ValidationError) else "no JSON"
            raise LinkError(f"{self._who} answered the registration with {what}: is it a balancer?") from None
        return self.agent

    async def report(self, body: bytes) -> str | None:
        """Send a report, an AgentMetrics as JSON; why the balancer does not reach this host's Ollama, if it says so.

        UnknownAgentError ends the registration.
        """
        answer = await self._post(f"{self._path()}/metrics", body)
        if answer.status == 404:
            self.agent = None
            raise UnknownAgentError(f"{self._who} no longer knows this agent: registering again")
        if not 200 <= answer.status < 300:
            raise self._refusal("report", answer)
        reachable, _, why = (answer.header(REACHABLE_HEADER) or "yes").partition(";")
        if reachable.strip().lower() != "no":
            return None
        return self._clean(why.strip(), LONGEST_REASON) or "no reason given"

    async def drain(self) -> None:
        """Ask for no new requests until this agent registers the next time."""
        answer = await self._post(f"{self._path()}/drain", b'{"until": "registration"}')
        if not 200 <= answer.status < 300:
            raise self._refusal("drain", answer)

    @property
    def known_as(self) -> str:
        """The name and the url under which the balancer knows this agent, for the log."""
        if self.agent is None:
            return "nobody"
        return self._clean(f"{self.agent.name} ({self.agent.url})" if self.agent.url else self.agent.name)

    @property
    def _who(self) -> str:
        return f"balancer {self.balancer}"

    def _path(self) -> str:
        if self.agent is None:
            raise UnknownAgentError(f"not registered with {self._who}")
        return f"/api/agents/{quote(self.agent.id, safe='')}"

    async def _post(self, path: str, body: bytes) -> Answer:
        try:
            return await self._call(
                "POST",
                self.balancer + path,
                content=body,
                headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
                timeout=CALL_TIMEOUT,
                limit=ANSWER_LIMIT,
            )
        except CallError as error:
            raise NoAnswerError(f"{self._who} does not answer ({error})") from error

    def _refusal(self, what: str, answer: Answer) -> LinkError:
        if answer.status in (401, 403):
            return TokenError(
                f"{self._who} refused the token ({answer.status}): check {self._token_source}; "
                "it must be this balancer's token"
            )
        reply = self._clean(error_text(answer.body))
        return LinkError(f"{self._who} answered the {what} with status {answer.status}{reply and ': ' + reply}")

    def _clean(self, text: str, limit: int = 200) -> str:
        """A balancer may echo what it was sent: the token stays out of the log all the same."""
        return printable(text.replace(self._token, "[token]"), limit)


def error_text(body: bytes) -> str:
    """The error in a balancer's answer; empty if it says none."""
    try:
        parsed: Any = parse_json(body)
    except ValueError:
        return ""
    text = parsed.get("error") if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else ""
