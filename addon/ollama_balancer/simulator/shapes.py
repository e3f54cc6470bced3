"""What the protocols have in common in writing what a model has made: text, tool calls, embeddings and figures."""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .answers import Answer, Headers, dumps, nanoseconds

ID_LETTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class ToolCall:
    """A call of one of the tools that a request offers."""

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: "call_" + "".join(random.choices(ID_LETTERS, k=8)))

    @property
    def json(self) -> str:
        """The arguments as JSON in a string, which is how all but Ollama's own API pass them."""
        return dumps(self.arguments).decode()


Piece = str | ToolCall
"""What a stream has in one event: a token's text or a whole tool call."""


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def calls_of(pieces: Sequence[Piece]) -> list[ToolCall]:
    return [piece for piece in pieces if isinstance(piece, ToolCall)]


@dataclass(frozen=True)
class Statistics:
    """What the last event of an answer tells. Durations in seconds, counts in tokens."""

    done_reason: str
    total: float = 0.0
    load: float = 0.0
    prompt_count: int = 0
    prompt: float = 0.0
    output_count: int = 0
    output: float = 0.0

    def fields(self) -> dict[str, int]:
        """As Ollama writes them: durations in nanoseconds, none of them 0."""
        return {
            "total_duration": nanoseconds(self.total),
            "load_duration": nanoseconds(self.load),
            "prompt_eval_count": self.prompt_count,
            "prompt_eval_duration": nanoseconds(self.prompt),
            "eval_count": self.output_count,
            "eval_duration": nanoseconds(self.output),
        }


class Shape(Protocol):
    """How one endpoint writes an answer. Bytes are the payload of one HTTP chunk."""

    stream_type: str

    def opening(self, first: Piece) -> tuple[bytes, ...]:
        """What comes before the events of the pieces, the first of which is known."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """The event of one piece."""
        ...

    def end(self, statistics: Statistics) -> tuple[bytes, ...]:
        """All that follows the pieces."""
        ...

    def crash(self) -> bytes:
        """The last event when the runner has crashed; none: empty."""
        ...

    def whole(self, pieces: Sequence[Piece], statistics: Statistics) -> Answer:
        """The answer when it isn't streamed."""
        ...

    def done(self, reason: str) -> Answer:
        """The answer to a request that only loads or unloads."""
        ...


@dataclass(frozen=True)
class EmbeddingResult:
    """Embeddings, and what they took: `total` and `load` in seconds, `count` in tokens."""

    spelling: str
    vectors: list[list[float]]
    total: float = 0.0
    load: float = 0.0
    count: int = 0


def server_event(value: dict[str, Any], *, sort_keys: bool = False) -> bytes:
    """A server-sent event that is named as its `type`."""
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), dumps(value, sort_keys=sort_keys))


SSE_HEADERS: Headers = (("Cache-Control", "no-cache"), ("Connection", "keep-alive"))
"""What the newer event streams send beside the type, also with an error in place of the stream."""
