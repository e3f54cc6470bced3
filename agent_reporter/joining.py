"""Joins a balancer's fleet: a join code becomes this host's own key, which may only report for it."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from .addresses import Endpoint
from .files import replace_file
from .http import Call, CallError, call, parse_json
from .limits import NAME_PATTERN
from .link import ANSWER_LIMIT, CALL_TIMEOUT, error_text
from .options import Token, read_token_file
from .states import log, printable
from .wire import JoinRequest

PATH = "/api/join"


class JoinError(Exception):
    """This host has not joined. The message says why and what to do."""


class Joined(BaseModel):
    """A balancer's answer."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    secret: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")] | None = None


async def join(balancer: Endpoint, file: Path, code: str, name: str, call: Call = call) -> tuple[str, Token]:
    """The name under which this host reports, and its key, which is kept in `file` (mode 0600).

    A host that has joined keeps its key as long as that is valid, and the code is not used. Otherwise `code` is used up
    for a new one; `name` is proposed, and the code may say another. Raises JoinError.
    """
    kept = _kept_key(file)
    if kept is not None:
        status, joined, _ = await _ask(balancer, kept.value, name, call)
        if status == 200 and joined is not None:
            log.info("this host has joined %s already, as %s", balancer.url, joined.name)
            return joined.name, kept
        if not code:
            raise JoinError(
                f"the balancer at {balancer.url} no longer accepts this host's key ({file}): make a code for it with "
                "'ollama-balancer join-code --name NAME' and join again"
            )
    if not code:
        raise JoinError("a join code is needed: 'ollama-balancer join-code' on the balancer's machine makes one")
    _check_writable(file)
    status, joined, problem = await _ask(balancer, code, name, call)
    if status != 201 or joined is None or joined.secret is None:
        raise JoinError(f"the balancer at {balancer.url} did not let this host join ({status}): {problem}")
    try:
        replace_file(file, f"{joined.secret}\n".encode(), 0o600)
    except OSError as error:
        raise JoinError(f"this host's key can't be written to {file}: {error.strerror or error}") from None
    log.info("joined %s as %s; this host's key is in %s", balancer.url, joined.name, file)
    return joined.name, Token(joined.secret, str(file))


def _kept_key(file: Path) -> Token | None:
    try:
        return read_token_file(file, "--join") if file.exists() else None
    except ValueError:
        return None


def _check_writable(file: Path) -> None:
    """A code is used up once: better to fail before."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JoinError(f"--join: can't make {file.parent}: {error.strerror or error}") from None
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise JoinError(f"--join: can't write {file}")


async def _ask(balancer: Endpoint, credential: str, name: str, call: Call) -> tuple[int, Joined | None, str]:
    """Status, answer and, without one, the reason. Raises JoinError if there is no answer at all."""
    try:
        answer = await call(
            "POST",
            balancer.url + PATH,
            content=JoinRequest(name=name).model_dump_json().encode(),
            headers={"Authorization": f"Bearer {credential}", "Content-Type": "application/json"},
            timeout=CALL_TIMEOUT,
            limit=ANSWER_LIMIT,
        )
    except CallError as error:
        raise JoinError(f"the balancer at {balancer.url} does not answer ({error})") from None
    if answer.status not in (200, 201):
        return answer.status, None, printable(error_text(answer.body).replace(credential, "[code]"), 400) or "no reason"
    try:
        return answer.status, Joined.model_validate(parse_json(answer.body)), "it gave no key"
    except ValueError:
        return answer.status, None, "its answer is none of a balancer"
