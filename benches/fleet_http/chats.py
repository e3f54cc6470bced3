"""The requests of a trace as chats: what clients send, turn after turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from ollama_balancer.lab.workload import Request

BYTES_A_TOKEN = 4
FILLER = "And so it goes on, as people write to each other and to machines. "


@dataclass(frozen=True)
class Truth:
    """What only the simulated hosts know of a request: tokens of the whole prompt and of the answer to come."""

    number: int
    """In the trace."""
    conversation: int
    prompt: int
    output: int

    @classmethod
    def of(cls, body: dict[str, Any]) -> Self:
        """As clients send it, or among the options, where LiteLLM puts what it doesn't know."""
        return cls(**(body.get("simulated") or body["options"]["simulated"]))


def bodies(
    requests: Iterable[Request], first: int = 0, document: int = 0, tools: Sequence[dict[str, Any]] = ()
) -> Iterator[bytes]:
    """The body of each request, of which the first one has the number `first` in the trace.

    A conversation's next turn has the messages of the one before, the answer, and one. Its first one begins with a
    system message of `document` tokens, if there are any. `tools` are those that the model may call.
    """
    spoken: dict[int, tuple[list[bytes], Request]] = {}
    for place, request in enumerate(requests, first):
        number = request.conversation
        messages, before = spoken.get(number, ([], None))
        new = request.prompt - request.known
        if before is not None:
            messages = [*messages, message("assistant", before.output, f"{number}.{len(messages)}")]
        elif request.known:
            messages = [message("user", request.known, f"{number}.0")]
        elif document:
            messages, new = [message("system", document, f"{number}.0")], new - document
        messages = [*messages, message("user", new, f"{number}.{len(messages)}")]
        spoken[number] = messages, request
        truth = Truth(place, number, request.prompt, request.output)
        known = {"model": request.model.name, "simulated": asdict(truth)} | ({"tools": tools} if tools else {})
        head = json.dumps(known).encode()
        yield head[:-1] + b', "messages": [' + b", ".join(messages) + b"]}"


def message(role: str, tokens: int, mark: str) -> bytes:
    """About as many bytes of JSON as that many tokens have; no other message with that mark begins as this one does."""
    bare = json.dumps({"role": role, "content": f"{mark} "}).encode()
    size = max(0, tokens * BYTES_A_TOKEN - len(bare) - len(", "))
    filler = (FILLER * (size // len(FILLER) + 1))[:size].encode()
    return bare[:-2] + filler + bare[-2:]
