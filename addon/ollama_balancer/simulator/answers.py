"""The shapes of a host's answers: JSON documents, stream events and errors, as the real server writes them."""

import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from .models import SimulatedModel

JSON = "application/json; charset=utf-8"
V1_JSON = "application/json"
PLAIN = "text/plain"
CRASHED = "an error was encountered while running the model: unexpected EOF"
BUSY = "server busy, please try again.  maximum pending requests exceeded"
CONTEXT_LENGTH = 32768
EMBEDDING_LENGTH = 64


@dataclass(frozen=True)
class Answer:
    """A complete answer; Date and framing are the connection's."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def dumps(value: object) -> bytes:
    """Compact JSON in UTF-8, non-ASCII as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def api_answer(value: object, status: int = 200) -> Answer:
    return Answer(status, JSON, dumps(value))


def v1_answer(value: object, status: int = 200) -> Answer:
    return Answer(status, V1_JSON, dumps(value) + b"\n")


def api_error(status: int, message: str) -> Answer:
    return api_answer({"error": message}, status)


def v1_error(status: int, message: str, *, unread: bool = False) -> Answer:
    """An error in OpenAI's shape; `unread`: of a body that could not be read, which is written a little differently."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    value = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return api_answer(value, status) if unread else v1_answer(value, status)


def not_found() -> Answer:
    return Answer(404, PLAIN, b"404 page not found")


def method_not_allowed(allowed: Iterable[str]) -> Answer:
    return Answer(405, PLAIN, b"405 method not allowed", (("Allow", ", ".join(allowed)),))


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC, to the nanosecond."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    return f"{_second(seconds)}.{fraction:09d}Z"


_last_second = (0, "1970-01-01T00:00:00")


def _second(seconds: int) -> str:
    # A stream stamps each chunk: dividing up the date once a second keeps that cheap.
    global _last_second
    if _last_second[0] != seconds:
        _last_second = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return _last_second[1]


# ---- the host and its models -----------------------------------------------------------------------------------------


def _parameters(model: SimulatedModel) -> str:
    # About 0.6 bytes a parameter, as with Q4_K_M.
    count = model.size / 0.6
    for unit, digits in ((1e9, 1), (1e6, 2)):
        if count >= unit:
            return f"{count / unit:.{digits}f}{'B' if unit == 1e9 else 'M'}"
    return f"{count / 1e3:.0f}K"


def _details(model: SimulatedModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": _parameters(model),
        "quantization_level": "Q4_K_M",
    }


def _capabilities(model: SimulatedModel) -> list[str]:
    return ["embedding"] if model.embedding else ["completion", "tools"]


def tags(models: Iterable[SimulatedModel], modified: int) -> Answer:
    """The models the host has; `modified` in nanoseconds since the epoch."""
    entries = [
        {
            "name": model.full_name,
            "model": model.full_name,
            "modified_at": timestamp(modified),
            "size": model.size,
            "digest": model.digest,
            "details": _details(model) | {"context_length": CONTEXT_LENGTH, "embedding_length": EMBEDDING_LENGTH},
            "capabilities": _capabilities(model),
        }
        for model in models
    ]
    return api_answer({"models": entries})


def ps(loaded: Iterable[tuple[SimulatedModel, int]]) -> Answer:
    """The loaded models, each with the time in nanoseconds since the epoch when it will be unloaded."""
    entries = [
        {
            "name": model.full_name,
            "model": model.full_name,
            "size": model.size,
            "digest": model.digest,
            "details": _details(model),
            "expires_at": timestamp(expires),
            "size_vram": model.size,
            "context_length": 4096,
        }
        for model, expires in loaded
    ]
    return api_answer({"models": entries})


def show(model: SimulatedModel, modified: int) -> Answer:
    """What the host knows of one model."""
    family = model.family
    template = "{{- if .System }}{{ .System }}\n{{ end }}{{- range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"
    tensors = [{"name": "token_embd.weight", "type": "Q4_K", "shape": [EMBEDDING_LENGTH, 577]}]
    tensors += [
        {"name": f"blk.{block}.{part}.weight", "type": "Q4_K", "shape": [EMBEDDING_LENGTH, EMBEDDING_LENGTH]}
        for block in range(4)
        for part in ("attn_k", "attn_norm", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")
    ]
    info: dict[str, Any] = {
        "general.architecture": family,
        "general.file_type": 15,
        "general.parameter_count": round(model.size / 0.6),
        "general.quantization_version": 2,
        f"{family}.attention.head_count": 4,
        f"{family}.attention.head_count_kv": 4,
        f"{family}.attention.layer_norm_rms_epsilon": 0.00001,
        f"{family}.block_count": 4,
        f"{family}.context_length": CONTEXT_LENGTH,
        f"{family}.embedding_length": EMBEDDING_LENGTH,
        f"{family}.feed_forward_length": 128,
        f"{family}.rope.dimension_count": 16,
        f"{family}.rope.freq_base": 10000,
        f"{family}.vocab_size": 577,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 260,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": None,
        "tokenizer.ggml.token_type": None,
        "tokenizer.ggml.tokens": None,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return api_answer(
        {
            "modelfile": f'# Modelfile generated by "ollama show"\nFROM {model.full_name}\nTEMPLATE """{template}"""\n',
            "parameters": 'stop                           "user:"',
            "template": template,
            "details": _details(model),
            "model_info": info,
            "tensors": tensors,
            "capabilities": _capabilities(model),
            "modified_at": timestamp(modified),
        }
    )


def v1_models(models: Iterable[SimulatedModel], modified: int) -> Answer:
    """The models the host has, in OpenAI's shape."""
    created = modified // 1_000_000_000
    data = [{"id": model.full_name, "object": "model", "created": created, "owned_by": "library"} for model in models]
    return v1_answer({"object": "list", "data": data})


# ---- inference -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statistics:
    """What the last event of an answer tells. Durations in seconds, counts in tokens."""

    done_reason: str
    total: float
    load: float
    prompt_count: int
    prompt: float
    output_count: int
    output: float

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

    def usage(self) -> dict[str, int]:
        """As OpenAI writes them."""
        return {
            "prompt_tokens": self.prompt_count,
            "completion_tokens": self.output_count,
            "total_tokens": self.prompt_count + self.output_count,
        }


def nanoseconds(seconds: float) -> int:
    return max(1, round(seconds * 1e9))


class Shape(Protocol):
    """How one endpoint writes generated text. What returns bytes returns the payload of one HTTP chunk."""

    stream_type: str

    def token(self, text: str) -> bytes:
        """One event of text."""
        ...

    def end(self, statistics: Statistics) -> bytes:
        """All that follows the text."""
        ...

    def crash(self) -> bytes:
        """The last event when the runner has crashed."""
        ...

    def whole(self, text: str, statistics: Statistics) -> Answer:
        """The answer when it isn't streamed."""
        ...

    def done(self, reason: str) -> Answer:
        """The answer to a request that only loads or unloads."""
        ...

    def error(self, status: int, message: str) -> Answer: ...


class OllamaShape:
    """`/api/generate` and `/api/chat`: newline-delimited JSON."""

    stream_type = "application/x-ndjson"

    def __init__(self, spelling: str, *, chat: bool) -> None:
        self._model = dumps(spelling)
        self._chat = chat
        self._before = b'{"model":' + self._model + b',"created_at":"'
        self._between = b'","message":{"role":"assistant","content":"' if chat else b'","response":"'
        self._after = b'"},"done":false}\n' if chat else b'","done":false}\n'

    def token(self, text: str) -> bytes:
        # Pseudo-words hold nothing that JSON would escape.
        stamp = timestamp(time.time_ns()).encode()
        return b"".join((self._before, stamp, self._between, text.encode(), self._after))

    def end(self, statistics: Statistics) -> bytes:
        return self._document("", statistics.done_reason, statistics) + b"\n"

    def crash(self) -> bytes:
        return dumps({"error": CRASHED}) + b"\n"

    def whole(self, text: str, statistics: Statistics) -> Answer:
        return Answer(200, JSON, self._document(text, statistics.done_reason, statistics))

    def done(self, reason: str) -> Answer:
        return Answer(200, JSON, self._document("", reason, None))

    def error(self, status: int, message: str) -> Answer:
        return api_error(status, message)

    def _document(self, text: str, reason: str, statistics: Statistics | None) -> bytes:
        value: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self._chat else {"response": text}
        )
        value |= {"done": True, "done_reason": reason}
        if statistics is not None:
            if not self._chat:
                # The real one holds every token of the conversation; what reads it here only passes it on.
                value["context"] = list(range(259, 259 + min(64, statistics.prompt_count + statistics.output_count)))
            value |= statistics.fields()
        return self._before + timestamp(time.time_ns()).encode() + b'",' + dumps(value)[1:]


@dataclass
class CompletionShape:
    """`/v1/chat/completions`: server-sent events."""

    model: str
    include_usage: bool = False
    stream_type: str = "text/event-stream"
    _first: bool = True
    _id: str = field(default_factory=lambda: f"chatcmpl-{random.randrange(1000)}")
    _created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        before, after = self._chunk(self.model, {"content": "@"}, None).split(b"@")
        self._before, self._after = before, after

    def token(self, text: str) -> bytes:
        if self._first:
            self._first = False
            return self._chunk(self.model, {"role": "assistant", "content": text}, None)
        return self._before + text.encode() + self._after

    def end(self, statistics: Statistics) -> bytes:
        events = [self._chunk(self.model, {}, statistics.done_reason)]
        if self.include_usage:
            value = self._head("chat.completion.chunk", self.model) | {"choices": [], "usage": statistics.usage()}
            events.append(b"data: " + dumps(value) + b"\n\n")
        return b"".join((*events, b"data: [DONE]\n\n"))

    def crash(self) -> bytes:
        # An empty delta of no model, and no [DONE]: all that tells a client of a crash here.
        return self._chunk("", {"content": ""}, None)

    def whole(self, text: str, statistics: Statistics) -> Answer:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": statistics.done_reason,
        }
        head = self._head("chat.completion", self.model)
        return v1_answer(head | {"choices": [choice], "usage": statistics.usage()})

    def done(self, reason: str) -> Answer:
        return self.whole("", Statistics(reason, 0, 0, 0, 0, 0, 0))

    def error(self, status: int, message: str) -> Answer:
        return v1_error(status, message)

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }

    def _chunk(self, model: str, delta: dict[str, str], finish_reason: str | None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        return b"data: " + dumps(self._head("chat.completion.chunk", model) | {"choices": choices}) + b"\n\n"
