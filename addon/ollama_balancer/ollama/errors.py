"""Writes errors in the protocol that the client expects, and classifies the errors of hosts by who is to blame."""

import re
import secrets
from enum import StrEnum
from typing import Any

from pydantic_core import from_json

from .compact_json import compact
from .json_scanning import is_light
from .routes import Dialect, Kind, Route

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_OPENAI_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}

_EMBEDDING_PATHS = ("/api/embed", "/api/embeddings", "/v1/embeddings")
_TAGGING_PATHS = ("/api/show", "/v1/models/{}")


def error_object(dialect: Dialect, status: int, message: str) -> dict[str, Any]:
    """The JSON object of an error in the caller's protocol, as the server writes it."""
    match dialect:
        case Dialect.OPENAI | Dialect.RESPONSES:
            kind = _OPENAI_TYPES.get(status, "api_error")
            return {"error": {"message": message, "type": kind, "param": None, "code": _OPENAI_CODES.get(status)}}
        case Dialect.ANTHROPIC:
            kind = _ANTHROPIC_TYPES.get(status, "api_error")
            error = {"type": kind, "message": message}
            return {"type": "error", "error": error, "request_id": f"req_{secrets.token_hex(12)}"}
        case Dialect.OLLAMA:
            return {"error": message}


def error_body(dialect: Dialect, status: int, message: str) -> bytes:
    return compact(error_object(dialect, status, message))


def error_event(dialect: Dialect, content_type: str, message: str) -> bytes:
    """An error as the last event of a stream. It must begin on a new line."""
    event = error_object(dialect, 502, message)
    if "event-stream" not in content_type:
        return compact(event) + b"\n"
    if dialect is Dialect.RESPONSES:
        # The event of that API, and the `error` by which the client package knows that it has to raise.
        event = {"type": "error", "code": "server_error", "message": message, "param": None, **event}
    named = dialect in (Dialect.ANTHROPIC, Dialect.RESPONSES)
    return (b"event: error\n" if named else b"") + b"data: " + compact(event) + b"\n\n"


def not_let_in(status: int) -> str:
    """Explain a 401 or 403 of a host, and what to do."""
    if status == 403:  # the server's check of the Host header, where it listens on loopback
        return "refuses the balancer (status 403): set OLLAMA_HOST=0.0.0.0 there, or check the proxy in front of it"
    return f"refuses the balancer (status {status}): a proxy in front of it asks for credentials"


def model_not_found(model: str, path: str) -> str:
    """The server's message on that route for a model that it does not have."""
    if path in _EMBEDDING_PATHS:
        return f'model "{model}" not found, try pulling it first'
    if path in _TAGGING_PATHS and ":" not in model.rsplit("/", 1)[-1]:
        model += ":latest"
    return f"model '{model}' not found"


class Blame(StrEnum):
    """Who is to blame for an error of a host, which decides what to do next. The values are metric labels."""

    HOST_CANNOT = "status"
    """The host fails: retry on the next one and count a failure."""
    HOST_BUSY = "busy"
    """The host is overloaded: retry on the next one; no failure is counted."""
    HOST_REFUSES = "unauthorized"
    """The host, or a proxy in front of it, refuses the balancer: retry on the next one and avoid it for a while."""
    LACKS_MODEL = "lacks_model"
    """Retry on the next one; it gets no request for the model until it lists it again."""
    LACKS_ROUTE = "lacks_route"
    """An older version, or another server: retry on the next one and avoid it for that route."""
    CANNOT_LOAD = "cannot_load"
    """The host cannot run the model with these options: retry on another one and avoid it for them."""
    CALLER = "caller"
    """The caller gets the error as it is, because another host would return the same."""


MAX_WORDS = 4_096
"""Characters of an error message that are examined."""

MAX_NESTED = 3
"""Levels of errors nested as JSON in the message of another: the server wraps the errors of its runner."""

_LACKS_MODEL = re.compile(r"model (?:'[^']+'|\"[^\"]+\") not found(?:, try pulling it first)?")
_FROM_CLOUD = re.compile(r"ollama cloud is disabled|this server cannot run this remote model|unauthorized$")
_WRONG_SCHEME = re.compile(r"sent an HTTP request to an HTTPS server|plain HTTP request was sent to HTTPS port")

_OUT_OF_MEMORY = re.compile(
    r"out of (?:device )?memory|(?:cuda|hip)malloc failed|failed to allocate|allocation failed|not enough memory"
    r"|insufficient memory|erroroutofmemory|vk_error_out_of_device_memory|signal: killed",
    re.IGNORECASE,
)
_BROKEN_HOST = re.compile(
    r"(?:CUDA|ROCm|HIP|Vulkan) error|no (?:CUDA|ROCm)-capable device|ggml_cuda_init|driver|illegal memory access"
    r"|input/output error|no space left on device|read-only file system|too many open files|permission denied"
    r"|cannot open shared object file|exec format error|resource temporarily unavailable",
    re.IGNORECASE,
)

_Row = tuple[re.Pattern[str], Blame]


def _rows(blame: Blame, *beginnings: str) -> list[_Row]:
    return [(re.compile(beginning), blame) for beginning in beginnings]


# What a 500, or an error in the middle of a 200, says: the first row whose pattern the message *begins* with counts, so
# that what a caller has written and the server quotes accuses nobody. Without a row, it is the caller's.
_MESSAGES: tuple[_Row, ...] = (
    # A load, from WaitUntilRunning. llm/llama.go 0.1.11 to 0.1.17, llm/server.go 0.1.33 to 0.24 ("llama runner"),
    # llm/llama_server.go since 0.30 ("llama-server"). No version words the death of a runner that had loaded so.
    *_rows(
        Blame.CANNOT_LOAD,
        r"(?:llama-server|llama runner) process has terminated",
        # llm/llama_server.go since 0.30
        r"llama-server (?:reported out-of-memory during startup|startup failed)",
        # llm/server.go: 0.1.44 to 0.24
        r"model requires more system memory",
        # x/mlxrunner/client.go since 0.15
        r"model requires \S+ \S+ but only",
        r"mlx runner (?:failed: .* \(exit: |exited unexpectedly)",
        r"MLX (?:on macOS requires|is not supported on)|this model requires MLX",
        # llm/server.go 0.11 to 0.24
        r"memory layout cannot be allocated|failed to (?:allocate|commit) memory for model",
        r"unable to load full model on GPU|split vision models aren't supported",
        r"model failed to load|llama runner: |failed to start a llama runner",
        r"do load request: .*(?:EOF|reset)|failed to initialize (?:model|baa?ckend)|loras are not yet implemented",
        # llm and ggml, put before "this model may be incompatible with your version of Ollama" by server/sched.go
        r"(?:unable|failed) to load model|error loading model|unknown model architecture|unsupported (?:GGUF|model)",
        r"invalid file magic|.*this model may be incompatible with your version of Ollama",
        r"ollama supports only one lora adapter",
    ),
    *_rows(
        Blame.HOST_CANNOT,
        # A runner that had loaded the model: llm/server.go since 0.1.33 ("unknown" until 0.3), llm/llama_server.go
        r"an (?:unknown )?error was encountered while running the model",
        r"(?:llama-server|llama runner) process no longer running",
        # since 0.7
        r"model runner has unexpectedly stopped",
        # llm/llama.go 0.1.11 to 0.1.17, llm/server.go until 0.6
        r"llama runner exited|POST (?:predict|embedding): ",
        r"mlx runner failed",
        # the balancer's own words, ollama/answer_watcher.py
        r"the stream ended without its terminal event",
        r"do (?:embedding|encode|decode|load) request: |read (?:encode|decode|load) request: ",
        r"error (?:reading|closing) (?:llm|llama-server|embed|lm)",
        r"failed reading (?:llm|llama-server)",
        # it does not start, or does not answer
        r"timed out waiting for (?:llama runner|llama-server)|timeout waiting for mlx runner",
        r"unexpected (?:server|ping) status|server (?:not responding|error: )|llama-server error: ",
        r"(?:health|ping) resp|health unmarshal|no slots available after|connection refused",
        r"error starting (?:runner|llama-server|the external llama server)|unable to start server|failed to start mlx",
        r"no (?:suitable llama )?servers found|llama-server binary not found|unable to lookup executable path",
        r"fork/exec |failed to spawn ",
        r'(?:Post|Get) "http://127\.0\.0\.1:\d+/',
        # what the runner itself has said: llm/status.go
        r"(?:CUDA|ROCm|cudaMalloc|hipMalloc|GGML_ASSERT|ggml_|panic: |fatal error: )",
        r"failed to (?:decode|build graph|compute)|Compute error|could not find an available sequence",
        r"open \S+: (?:input/output error|permission denied|too many open files)|read \S+: input/output error",
        r"dial tcp \S+: |read tcp \S+: |write tcp \S+: ",
    ),
)


def message_of(body: bytes) -> str | None:
    """The message of an error in any of the protocols; None if the body is not such an error.

    If the server wraps an error of its runner, this is the runner's message. `body` may be truncated.
    """
    message: str | None = None
    if not is_light(body):
        return None
    for _ in range(MAX_NESTED):
        try:
            value = from_json(body, allow_partial="trailing-strings")
        except ValueError:
            return message
        error = value.get("error") if isinstance(value, dict) else None
        if isinstance(error, dict):
            error = error.get("message")
        if not isinstance(error, str):
            return message
        message = error
        if not error.startswith("{"):
            return message
        body = error.encode("utf-8", "replace")
    return message


def is_object(body: bytes, *, whole: bool = True) -> bool:
    """Whether a body is a JSON object, or, unless `whole`, the beginning of one. A proxy's error page is not."""
    if not is_light(body):
        return False
    try:
        return isinstance(from_json(body, allow_partial="off" if whole else "trailing-strings"), dict)
    except ValueError:
        return False


def classify(status: int, body: bytes, route: Route | None = None, *, asks_to_retry: bool = False) -> Blame:
    """Who is to blame for an unsuccessful answer.

    `body` is the decompressed body or its beginning; `asks_to_retry`: it has a Retry-After header. The messages come
    from recordings and from the server's source, 0.1.11 to 0.33 (server/routes.go, server/sched.go, llm, runner).
    Anything else comes from a proxy in front of the host, or from another server.
    """
    message = message_of(body)
    if status in (401, 403, 407):
        return _refusal(message, body, route)
    if status in (409, 429, 499, 529):  # 499: it has cancelled what it ran, server/routes.go
        return Blame.HOST_BUSY
    if status == 503:
        # server/sched.go: ErrMaxQueue; llama.cpp: "Loading model". A proxy's says that nobody is behind it.
        return Blame.HOST_BUSY if message is not None or asks_to_retry else Blame.HOST_CANNOT
    if status in (404, 405):
        return _not_found(status, message)
    if status == 501:
        return Blame.CALLER if message is not None else Blame.LACKS_ROUTE
    if status == 500:
        # An empty one is a handler that panicked, HTML a proxy's.
        return Blame.HOST_CANNOT if message is None else classify_message(message)
    if status > 500 or 300 <= status < 400:
        return Blame.HOST_CANNOT
    if message is None and _WRONG_SCHEME.search(body.decode("utf-8", "replace")):
        return Blame.HOST_CANNOT
    return Blame.CANNOT_LOAD if message is not None and _FROM_CLOUD.match(message) else Blame.CALLER


def classify_message(message: str) -> Blame:
    """Who is to blame for an error that came with a 500, or in the middle of a stream that had begun with a 200."""
    if _LACKS_MODEL.fullmatch(message):
        return Blame.LACKS_MODEL
    if message.startswith("server busy, please try again"):
        return Blame.HOST_BUSY
    message = message[:MAX_WORDS]
    for pattern, blame in _MESSAGES:
        if pattern.match(message):
            if blame is Blame.CANNOT_LOAD and not _OUT_OF_MEMORY.search(message) and _BROKEN_HOST.search(message):
                return Blame.HOST_CANNOT
            return blame
    return Blame.CALLER


def _refusal(message: str | None, body: bytes, route: Route | None) -> Blame:
    if route is not None and route.kind is Kind.NAMED:
        return Blame.CALLER  # of the account at ollama.com: server/routes.go, WhoamiHandler and others
    if message is not None and (_FROM_CLOUD.match(message) or b'"signin_url"' in body):
        return Blame.CANNOT_LOAD  # not signed in there, or not to use it: another host may be
    return Blame.HOST_REFUSES


def _not_found(status: int, message: str | None) -> Blame:
    if message is None or message == "File Not Found" or status == 405:
        # gin: "404 page not found", text/plain; llama.cpp: "File Not Found"
        return Blame.LACKS_ROUTE
    return Blame.LACKS_MODEL if _LACKS_MODEL.fullmatch(message) else Blame.CALLER
