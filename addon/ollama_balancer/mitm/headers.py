"""The head of a mitmproxy request as its agent gets it."""

from mitmproxy import http

from ..core.address import Address
from ..gateway.callers import Target
from ..gateway.headers import AGENT_HEADER, ATTEMPTS_HEADER, for_agent
from ..gateway.messages import AgentRequest, ClientRequest, Fields, header
from ..gateway.request_ids import REQUEST_ID_HEADER


def first_header(headers: http.Headers, name: bytes) -> str | None:
    """The first header of that name alone. The name is in lower case."""
    for written, value in headers.fields:
        if len(written) == len(name) and written.lower() == name:
            return value.decode("utf-8", "surrogateescape")
    return None


def asks_for_websocket(request: http.Request) -> bool:
    """Whether an HTTP/1.1 request wants its connection to become a WebSocket."""
    wanted = header(request.headers.fields, b"upgrade")
    return wanted is not None and "websocket" in wanted.lower() and request.http_version == "HTTP/1.1"


def allow_origin(response: http.Response, origin: str) -> None:
    """Let web pages of that origin read the answer."""
    response.headers["Access-Control-Allow-Origin"] = origin
    response.headers["Access-Control-Expose-Headers"] = f"{AGENT_HEADER}, {ATTEMPTS_HEADER}, {REQUEST_ID_HEADER}"
    response.headers["Vary"] = "Origin"


def keep_alive(request: http.Request, response: http.Response) -> None:
    """Tell a client of HTTP/1.0 that its connection goes on, where it does: it would wait for the end otherwise."""
    if response.data.http_version != b"HTTP/1.0" and "content-length" in response.headers:
        connection = (header(request.headers.fields, b"connection") or "").lower()
        if connection == "keep-alive":
            response.headers["Connection"] = connection


def client_request(request: http.Request) -> ClientRequest:
    """What the client asks for."""
    return ClientRequest(
        request.method,
        request.path,
        request.raw_content,
        header(request.headers.fields, b"content-type") or "",
        first_header(request.headers, b"content-encoding") or "",
        request.method == "GET" and asks_for_websocket(request),
    )


def request_to_agent(
    request: http.Request,
    via: str | None = None,
    credentials: Fields = (),
    address: Address | None = None,
    target: Target | None = None,
    request_id: str = "",
) -> http.Request:
    """A request without a body, whose head is that which the agent at that address gets.

    The request itself stays as the client sent it: that is what people see, save, and send again. `target`: a path and
    query in which secrets are masked, and what the agent gets in their place. A person may have set another one since.
    """
    data = request.data
    needs_length = data.content or request.method in ("POST", "PUT", "PATCH")
    length = None if request.stream else len(data.content or b"") if needs_length else -1
    host = None if address is None else address.authority.encode()
    fields = for_agent(
        data.headers.fields,
        content_length=length,
        via=via,
        credentials=credentials,
        host=host,
        request_id=request_id,
    )
    # Not by mitmproxy's constructors, whose checks the data has passed already.
    headers = http.Headers.__new__(http.Headers)
    headers.fields = fields
    head = http.Request.__new__(http.Request)
    head.data = type(data).__new__(type(data))
    vars(head.data).update(vars(data), headers=headers, content=None, trailers=None)
    if target is not None and data.path == target[0]:
        head.data.path = target[1]
    if address is not None:
        vars(head.data).update(scheme=b"http", authority=b"", host=address.host, port=address.port)
    return head


def request_to_agents(
    request: http.Request, via: str, credentials: Fields, target: Target | None, request_id: str = ""
) -> AgentRequest:
    """The same for several agents, whose answers are read and made into one."""
    head = request_to_agent(request, via, credentials, target=target, request_id=request_id)
    fields = [field for field in head.headers.fields if field[0].lower() != b"accept-encoding"]
    fields.append((b"Accept-Encoding", b"identity"))
    body = None if request.stream else request.raw_content or b""
    return AgentRequest(head.method, head.path, tuple(fields), body, head.http_version == "HTTP/1.0")
