"""Decides which calls need a key, and which a key may make."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from ..core.access import Key, Keyring, Right
from ..core.agent import Agent
from ..core.agent_records import Outcome
from ..core.rate_limits import Exceeded, RateLimiter, Use
from ..ollama.errors import model_not_found
from ..ollama.names import canonical_name
from ..ollama.requests import ParsedRequest, names_model, other_models
from ..ollama.routes import Kind, find_route
from ..storage.token import DEFAULT_FILE
from .callers import Caller
from .context import RequestContext
from .decisions import Answer, error
from .messages import Fields

OPEN_PATHS = frozenset(("/", "/api/version", "/health"))
"""Need no key: monitors and clients look there whether anybody is at home."""

HOW_TO_PRESENT = "present it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"


EXPECTED_OUTPUT = 512
"""Tokens that are reserved for an answer whose limit the request does not say: a guess, settled when it ends."""

BYTES_PER_TOKEN = 4
"""A guess for prompts that are not read."""


class AccessMode(StrEnum):
    AUTO = "auto"
    """Open until there is a key, or was one."""
    OPEN = "open"
    KEYS = "keys"


class Refusal(NamedTuple):
    """Why a call is refused: status and error."""

    status: int
    message: str


def rights_for(path: str) -> tuple[Right, ...]:
    """The rights of which a call of that route of Ollama's needs one; none: it is open to all."""
    route = find_route(path)
    if path in OPEN_PATHS or route is None:
        return () if path in OPEN_PATHS else ANY_USE
    if route.kind in (Kind.EVERY, Kind.NAMED):
        return MANAGE
    return ANY_USE if route.kind is Kind.MERGED else INFER


def acts_for(caller: Caller, agent: Agent) -> bool:
    """Whether a caller that may report may do so for this agent: a key that may only report, for its own."""
    key = caller.key
    return caller.authorized or (key is not None and (key.has(Right.OPERATE) or key.name == agent.key))


INFER = (Right.INFER,)
READ = (Right.READ,)
OPERATE = (Right.OPERATE,)
REPORT = (Right.REPORT, Right.OPERATE)
MANAGE = (Right.MANAGE,)
ANY_USE = (Right.INFER, Right.MANAGE, Right.READ)
"""Whoever uses the fleet may see which models it has."""


class Access:
    """Who may come in, and how much. `keyring` and `mode` are replaced when keys or options change; `clock` gives
    monotonic seconds, `wall` seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self.keyring = Keyring()
        self.mode = AccessMode.AUTO
        self.wall = wall
        self.limiter = RateLimiter(clock, wall)

    @property
    def needs_key(self) -> bool:
        """Whether calls need a key or the token."""
        if self.mode is AccessMode.AUTO:
            return self.keyring.had_keys or self.keyring.problem is not None
        return self.mode is AccessMode.KEYS

    def find(self, secret: bytes) -> Key | None:
        """The key of that secret, valid or not."""
        return self.keyring.find(secret, self.wall())

    def refusal(self, caller: Caller, rights: tuple[Right, ...], *, always: bool = False) -> Refusal | None:
        """Why the caller may not make a call that needs one of those rights; None if it may. Without rights, the call
        is open to all; `always`: it needs one also where calls need no key.
        """
        if not rights or caller.authorized or not (always or self.needs_key):
            return None
        if self.keyring.problem is not None:
            return Refusal(503, "no key can be checked now: the balancer's log says why, to whoever runs it")
        key = caller.key
        if key is None:
            given = "this key is not known" if caller.presented else "this call needs a key"
            if always:
                needed = "any valid key" if len(rights) == len(Right) else f"a key that has the right {rights[0]}"
                return Refusal(
                    401,
                    "this call needs the header 'Authorization: Bearer TOKEN' with the balancer's token (by default in "
                    f"{DEFAULT_FILE} on its machine) or with {needed}",
                )
            return Refusal(401, f"{given}: whoever runs the balancer gives one; {HOW_TO_PRESENT}")
        problem = key.problem(self.wall())
        if problem is not None:
            return Refusal(401, f"{problem}: whoever runs the balancer can give another")
        if key.rights.isdisjoint(rights) and not any(key.has(right) for right in rights):
            return Refusal(403, f"key {key.name!r} lacks the right that this call needs: {' or '.join(rights)}")
        return None

    def admit(self, context: RequestContext, parsed: ParsedRequest, body: bytes | None) -> Answer | None:
        """The refusal of a request whose body has been read: its key may not use the model, or is over a limit."""
        caller, route = context.caller, context.route
        key = caller.key
        if key is None or route is None or caller.authorized or not self.needs_key:
            return None
        if key.models and (unusable := self._unusable(key, context, parsed, body)) is not None:
            return unusable
        if parsed.unloads and not key.has(Right.MANAGE):
            refusal = f"key {key.name!r} lacks the right that unloading a model needs: {Right.MANAGE}"
            return error(context.dialect, 403, refusal)
        if not key.limits or route.kind is Kind.MERGED:
            return None
        used = self.limiter.begin(key, _expected_tokens(context))
        if isinstance(used, Use):
            context.use = used
            return None
        return self._over_limit(context, key, used)

    def settle(self, context: RequestContext) -> None:
        """The request has ended."""
        if context.use is not None:
            self.limiter.end(context.use, used_tokens(context))

    def limit_headers(self, caller: Caller) -> Fields:
        """The headers of an answer that say what is left of the limits of the caller's key, in OpenAI's names."""
        key = caller.key
        if key is None or not key.limits or not self.needs_key:
            return ()
        fields: list[tuple[bytes, bytes]] = []
        for kind, limit, remaining, reset in self.limiter.remaining(key):
            names = _LIMIT_HEADERS[kind]
            fields += zip(names, (b"%d" % limit, b"%d" % remaining, b"%.3fs" % reset), strict=True)
        return tuple(fields)

    def _unusable(self, key: Key, context: RequestContext, parsed: ParsedRequest, body: bytes | None) -> Answer | None:
        """The answer if a model that the request names is not for this key: as if nobody had it."""
        assert context.route
        if "modelfile" in parsed.members:
            return error(
                context.dialect, 403, f"key {key.name!r} may use some models only, and a modelfile names others"
            )
        names = other_models(context.route, body, parsed)
        if context.model is not None:
            names.append(context.model)
            if context.model_name is not None and not key.may_use(context.model_name):
                return error(context.dialect, 404, model_not_found(context.model[:MAX_NAME], context.route.path))
        for name in names:
            if not key.may_use(canonical_name(name)):
                return error(context.dialect, 404, model_not_found(name[:MAX_NAME], context.route.path))
        if not parsed.readable or (context.model is None and names_model(context.route)):
            return error(context.dialect, 400, "the model that the request names cannot be read")
        return None

    def _over_limit(self, context: RequestContext, key: Key, exceeded: Exceeded) -> Answer:
        limit = LIMITS[exceeded.limit].format(exceeded.allowed)
        answer = error(context.dialect, 429, f"key {key.name!r} is at its limit of {limit}; try again later")
        # The clients' back-off takes whole seconds; at midnight at the latest there is a new day.
        return replace(answer, headers={"Retry-After": str(max(1, math.ceil(exceeded.seconds)))})


MAX_NAME = 512
"""Characters of a model's name that an error repeats."""

_LIMIT_HEADERS = {
    kind: tuple(f"x-ratelimit-{figure}-{kind}".encode() for figure in ("limit", "remaining", "reset"))
    for kind in ("requests", "tokens")
}

LIMITS = {
    "parallel": "{} requests at once",
    "rpm": "{} requests a minute",
    "tpm": "{} tokens a minute",
    "tokens-per-day": "{} tokens a day",
}


def _expected_tokens(context: RequestContext) -> int:
    """Tokens of prompt and answer, as far as one can know before."""
    demand, route = context.demand, context.route
    if route is None or not route.runs:
        return 0
    if demand is None:
        return context.body_bytes // BYTES_PER_TOKEN + EXPECTED_OUTPUT
    output = EXPECTED_OUTPUT if demand.output_limit is None else min(demand.output_limit, EXPECTED_OUTPUT)
    return demand.tokens + output


def used_tokens(context: RequestContext) -> int:
    """Tokens of prompt and answer that a request has used: what the host says, else what has passed."""
    if context.outcome is Outcome.CANCELLED and context.tried and context.first_byte is None:
        return context.use.tokens if context.use is not None else 0  # the host has worked for it, nobody knows how much
    prompt, output = prompt_and_output_tokens(context)
    return prompt + output


def prompt_and_output_tokens(context: RequestContext) -> tuple[int, int]:
    """Of an answer that broke off, the prompt's estimate and a token for each piece; of none at all, nothing."""
    watcher = context.watcher
    if watcher is None or context.first_byte is None:
        return 0, 0
    answer, demand = watcher.answer, context.demand
    prompt, output = answer.timings.prompt_eval_count, answer.timings.eval_count
    if prompt is None:
        prompt = demand.tokens if demand is not None and answer.pieces else 0
    return prompt, answer.pieces if output is None else output
