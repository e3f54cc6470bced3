"""Combines the answers of several agents to one management request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from .compact_json import compact

MAX_LINE_BYTES = 64 * 1024
"""A line of progress that is longer is passed on, but not read."""

MAX_MESSAGE = 500


@dataclass(frozen=True)
class Reply:
    """How one agent answered. `status` is None where there was no answer, and `problem` says why or what it said."""

    agent: str
    status: int | None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    problem: str | None = None
    failure: str = ""
    """Without an answer, what kind of failure it was: `connect`, `timeout` or else."""

    @property
    def done(self) -> bool:
        """The agent did what it was asked for."""
        return self.problem is None and self.status is not None and 200 <= self.status < 300

    @property
    def lacks_it(self) -> bool:
        """It could not, for it does not have what the request is about."""
        return self.status == 404

    @property
    def reason(self) -> str:
        return self.problem or error_message(self.body) or f"status {self.status}"


@dataclass(frozen=True)
class Combined:
    """The one answer: an agent's own, or an error with a `message` of the balancer's."""

    status: int
    reply: Reply | None = None
    message: str | None = None


@dataclass(frozen=True)
class Unavailable:
    """Agents that have the model but cannot be asked, as replies that say so.

    `required`: the request fails without them; a deleted model, for example, would come back with its host. Otherwise
    they only explain why no agent could do it.
    """

    replies: tuple[Reply, ...] = ()
    required: bool = False


NONE_UNAVAILABLE = Unavailable()


def combine(
    replies: Sequence[Reply], *, require_all: bool = False, unavailable: Unavailable = NONE_UNAVAILABLE
) -> Combined:
    """Success if an agent did it and none failed for another reason than not having the model; 404 if none has it.

    `require_all`: one that does not have it makes it a 404 (whether a blob is there: it must be everywhere).
    """
    done = [reply for reply in replies if reply.done]
    lacking = [reply for reply in replies if reply.lacks_it]
    failed = [reply for reply in replies if not reply.done and not reply.lacks_it]
    if unavailable.required or not done:
        failed += unavailable.replies
    if failed:
        first = failed[0]
        alike = all((reply.status, reply.body) == (first.status, first.body) for reply in failed)
        if first.status is not None and alike and not done and not lacking:
            return Combined(first.status, first)
        return Combined(first.status or 502, message=_failures(failed, done))
    if lacking and (require_all or not done):
        return Combined(404, lacking[0])
    best = max(done, key=lambda reply: reply.status or 0)  # 201, created, says more than 200
    return Combined(best.status or 200, best)


class LineSplitter:
    """Cuts bytes into whole lines, however they come."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are whole now, each with its newline. A line is cut after 16 * MAX_LINE_BYTES."""
        *ends, rest = chunk.split(b"\n")
        lines = [end + b"\n" for end in ends]
        if lines:
            lines[0] = self.rest() + lines[0]
        self._rest.append(rest)
        self._size += len(rest)
        if self._size > 16 * MAX_LINE_BYTES:
            lines.append(self.rest())
        return lines

    def rest(self) -> bytes:
        """What has come of a line that is not whole."""
        rest = b"".join(self._rest)
        self._rest.clear()
        self._size = 0
        return rest


def read_line(line: bytes) -> dict[str, Any]:
    """A line of progress as an object; empty where it is none."""
    if len(line) > MAX_LINE_BYTES:
        return {}
    try:
        value = from_json(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def is_success(progress: dict[str, Any]) -> bool:
    return progress.get("status") == "success"


def line_error(progress: dict[str, Any]) -> str | None:
    error = progress.get("error")
    return None if error is None else str(error)[:MAX_MESSAGE]


def line_of(agent: str, line: bytes, progress: dict[str, Any]) -> bytes:
    """An agent's line of progress as one of several agents': with the agent's name, and not yet the end.

    The stream goes on when one agent is done or has failed, so that neither `success` nor `error` stands there.
    """
    if is_success(progress):
        progress = progress | {"status": "done"}
    elif (error := line_error(progress)) is not None:
        progress = {"status": f"failed: {error}"}
    elif not progress:
        progress = {"status": line.decode("utf-8", "replace").strip()[:MAX_MESSAGE]}
    return compact(progress | {"agent": agent}) + b"\n"


def last_line(replies: Sequence[Reply], unavailable: Unavailable = NONE_UNAVAILABLE) -> bytes:
    """The end of several agents' progress: success, or an error that names who failed."""
    combined = combine(replies, unavailable=unavailable)
    if combined.reply is not None and combined.reply.done:
        return compact({"status": "success"}) + b"\n"
    failed = [reply for reply in replies if not reply.done]
    return compact({"error": combined.message or _failures(failed, [])}) + b"\n"


def error_message(body: bytes) -> str | None:
    """What an error's JSON body says, in whichever protocol."""
    error = read_line(body).get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return error[:MAX_MESSAGE] if isinstance(error, str) and error else None


def _failures(failed: list[Reply], done: list[Reply]) -> str:
    message = "; ".join(f"{reply.agent}: {reply.reason}" for reply in failed[:10])
    if len(failed) > 10:
        message += f"; and {len(failed) - 10} more"
    return f"{message} (succeeded on {len(done)} other {'agent' if len(done) == 1 else 'agents'})" if done else message
