"""The stream of one request, which chooses its agent just before the request is sent.

The route is requested when the request is complete and not intercepted, so that a user who edits a prompt holds no
slot, and again when an agent fails before the first byte. The connection of an abandoned agent is forgotten at once, so
that nothing it still sends reaches the client.
"""

import time

from mitmproxy import flow, http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpErrorHook,
    HttpEvent,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    SendHttp,
)

from ..gateway.attempts import Failure
from ..gateway.messages import Response
from ..gateway.refusals import blame_of, for_caller
from ..ollama.errors import Blame
from .flows import from_mitmproxy, to_mitmproxy
from .shared_stream import SharedStream
from .stream_hooks import FailedStream, LongAnswerHook, SendingHook, StreamFailedHook

BODY_PIECE = 256 * 1024
"""Bytes of the body that are written to the agent's connection at once."""

BUFFERED_ANSWER = 4 * 1024 * 1024
"""Bytes up to which an answer that is not streamed is buffered, so that a failure becomes a clean 502."""

REFUSAL_BYTES = 64 * 1024
"""Bytes of an error response that are read to decide who is to blame."""

REFUSAL_SECONDS = 5.0
"""Seconds for that."""

STALE_SECONDS = 1.0
"""Seconds within which a failed reused connection counts as closed while idle; later, the agent has failed."""


class BalancedStream(SharedStream):
    """A request for one agent, or one after the other until one answers."""

    refusal: http.Response | None = None
    refusal_head: ResponseHeaders | None = None
    refusal_limit: commands.RequestWakeup | None = None
    reused_connection = False
    sent_at = 0.0

    def _handle(self, event: events.Event) -> layer.CommandGenerator[None]:
        if not isinstance(event, events.Wakeup) or event.command is not self.refusal_limit:
            yield from super()._handle(event)
        elif self.server_state == self.state_consume_refusal:
            yield from self.classify_refusal()

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Send the request to an agent; False, as mitmproxy has nothing to send itself."""
        if (yield from self.reach_agent()):
            yield from self.send_request()
        return False

    def reach_agent(self) -> layer.CommandGenerator[bool]:
        """Route and connect until an agent is reached or the flow has another answer."""
        while True:
            yield from self.ask_for_route()
            if (yield from self.check_killed(True)):
                return False
            ours = self.ours
            if ours is not None and ours.fan_out is not None:
                yield from self.pass_on(ours.fan_out)
                return False
            if ours is None or ours.address is None:
                if self.flow.response is None:
                    # The hook raised: mitmproxy logs that and goes on. An unrouted request must not.
                    self.flow.response = self.balanced_layer.internal_error(self.flow)
                yield from self.answer()
                return False
            err = yield from self.connect()
            if (yield from self.check_killed(True)):
                return False
            if err is None and not ours.timed_out and ours.abort_reason is None:
                return True
            ours.failure = Failure(err or "timeout", connected=err is None, retriable=True)

    def connect(self) -> layer.CommandGenerator[str | None]:
        """Connect to the chosen agent; returns an error, or None."""
        assert self.ours and self.ours.address
        address = (self.ours.address.host, self.ours.address.port)
        yield from self.balanced_layer.close_idle(keep=address)
        connection, err = yield GetHttpConnection(address, False, None, "tcp")
        if err is not None:
            self.balanced_layer.forget_failed(address)
            return str(err)
        self.reused_connection = connection in self.balanced_layer.used
        self.balanced_layer.used.add(connection)
        self.context.server = self.flow.server_conn = connection
        return None

    def send_request(self) -> layer.CommandGenerator[None]:
        """Send the complete request to the connected agent."""
        self.sent_at = time.monotonic()
        request, server = self.flow.request, self.context.server
        content = request.raw_content
        yield SendHttp(RequestHeaders(self.stream_id, request, not content), server)
        for at in range(0, len(content or b""), BODY_PIECE):
            if at:
                # All at once would keep everybody else waiting. What comes meanwhile is dealt with after it.
                yield SendingHook(self.flow)
                if (yield from self.check_killed(True)):
                    yield from self.balanced_layer.abandon(server)
                    return
                if server not in self.balanced_layer.connections:
                    return
            assert content is not None
            yield SendHttp(RequestData(self.stream_id, content[at : at + BODY_PIECE]), server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), server)

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> layer.CommandGenerator[None]:
        status = event.response.status_code
        if self.ours is not None and self.client_state == self.state_done:
            if status < 200:
                # It changes the protocol, which nobody has asked for; others do not come here.
                yield from self.balanced_layer.abandon(self.context.server)
                yield from self.try_next(Failure(f"unexpected status {status}", connected=True, retriable=True))
                return
            if status >= 300 and status != 304:
                self.refusal = event.response
                self.refusal_head = event
                self.server_state = self.state_consume_refusal
                self.refusal_limit = commands.RequestWakeup(REFUSAL_SECONDS)
                yield self.refusal_limit
                return
        yield from super().state_wait_for_response_headers(event)

    def state_consume_response_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self.ours is not None:
            self.ours.note_activity()
        yield from super().state_consume_response_body(event)
        buffering = self.server_state == self.state_consume_response_body
        if buffering and isinstance(event, ResponseData) and not self.may_buffer(len(self.response_body_buf)):
            # More than is worth to be held: what is there goes out, and the rest as it comes.
            held = bytes(self.response_body_buf)
            self.response_body_buf.clear()
            yield LongAnswerHook(self.flow)
            yield from self.start_response_stream()
            yield from self.state_stream_response_body(ResponseData(self.stream_id, held))

    def may_buffer(self, size: int) -> bool:
        """Whether that many bytes of an answer may be buffered."""
        if self.answer_reservation is None:
            self.answer_reservation = self.balanced_layer.budget.hold()
        return size <= BUFFERED_ANSWER and self.answer_reservation.grow(size)

    def state_consume_refusal(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Read an error response to decide who is to blame."""
        if isinstance(event, ResponseData):
            self.response_body_buf += event.data
            if len(self.response_body_buf) > REFUSAL_BYTES:
                yield from self.classify_refusal()
        elif isinstance(event, ResponseEndOfMessage):
            yield from self.classify_refusal(event)

    def classify_refusal(self, end: ResponseEndOfMessage | None = None) -> layer.CommandGenerator[None]:
        """Pass the error to the caller if it is the caller's fault, else try the next agent. Without `end`, more of it
        is to come.
        """
        assert self.refusal and self.ours
        refusal = from_mitmproxy(self.refusal, bytes(self.response_body_buf))
        blame = blame_of(refusal, self.ours.route)
        if blame is Blame.CALLER:
            yield from self.pass_refusal_on(refusal, end)
            return
        if end is None:
            yield from self.balanced_layer.abandon(self.context.server)
        reason = f"status {refusal.status}"
        yield from self.try_next(Failure(reason, connected=True, retriable=True, refusal=refusal, blame=blame))

    def pass_refusal_on(self, refusal: Response, end: ResponseEndOfMessage | None) -> layer.CommandGenerator[None]:
        """Pass on the error, in the caller's protocol."""
        head, body = self.refusal_head, refusal.body
        assert head and self.ours
        self.refusal = self.refusal_head = None
        self.response_body_buf.clear()
        self.server_state = self.state_wait_for_response_headers
        translated = for_caller(refusal, self.ours.dialect, head=self.ours.head_only)
        if translated is not None:
            if end is None:
                yield from self.balanced_layer.abandon(self.context.server)
            body, end = translated.body, ResponseEndOfMessage(self.stream_id)
            head = ResponseHeaders(self.stream_id, to_mitmproxy(Response(translated.status, translated.fields)))
        yield from super().state_wait_for_response_headers(head)
        if body:
            yield from self.server_state(ResponseData(self.stream_id, body))
        if end is not None:
            yield from self.server_state(end)

    def try_next(self, failure: Failure) -> layer.CommandGenerator[None]:
        """The attempt has failed: route again."""
        assert self.ours
        self.refusal = self.refusal_head = None
        self.response_body_buf.clear()
        self.flow.response = None
        self.server_state = self.state_wait_for_response_headers
        self.ours.failure = failure
        yield from self.make_server_connection()

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        if self.relay is not None:
            self.relay.stop()
        if (
            not isinstance(event, ResponseProtocolError)
            or self.ours is None
            or self.ours.address is None
            or self.client_state != self.state_done
        ):
            yield from super().handle_protocol_error(event)
        elif self.server_state in (self.state_wait_for_response_headers, self.state_consume_refusal):
            yield from self.balanced_layer.abandon(self.context.server)
            stale = self.reused_connection and time.monotonic() - self.sent_at < STALE_SECONDS
            final = self.ours.timed_out or self.ours.abort_reason is not None or not self.ours.resendable
            if stale and self.refusal is None and not final:
                # An idle connection that the agent closed just now says nothing about the agent.
                err = yield from self.connect()
                if (yield from self.check_killed(True)):
                    return
                if err is None and not self.ours.timed_out and self.ours.abort_reason is None:
                    yield from self.send_request()
                    return
                yield from self.try_next(Failure(err or "timeout", connected=err is None, retriable=True))
                return
            yield from self.try_next(Failure(event.message, connected=True, retriable=True))
        elif self.server_state == self.state_consume_response_body:
            yield from self.end_failed_answer(event)
        elif self.server_state == self.state_stream_response_body:
            yield from self.end_failed_stream(event)
        else:
            yield from super().handle_protocol_error(event)

    def end_failed_answer(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        """The agent failed in the middle of a buffered answer."""
        failed = FailedStream(self.flow, event.message, body=bytes(self.response_body_buf))
        yield from self.balanced_layer.abandon(self.context.server)
        yield StreamFailedHook(failed)
        if (yield from self.check_killed(True)):
            return
        if failed.whole:
            yield from self.state_consume_response_body(ResponseEndOfMessage(self.stream_id))
        else:
            yield from self.try_next(Failure(event.message, connected=True, retriable=False))

    def end_failed_stream(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        """Append an error event in the format of the stream and end it properly."""
        assert self.ours
        failed = FailedStream(self.flow, self.ours.abort_reason or event.message)
        yield from self.balanced_layer.abandon(self.context.server)
        yield StreamFailedHook(failed)
        if (yield from self.check_killed(True)):
            return
        if failed.whole:
            yield from self.state_stream_response_body(ResponseEndOfMessage(self.stream_id))
            return
        if not failed.error_trailer:
            yield from super().handle_protocol_error(event)
            return
        self.flow.error = flow.Error(event.message)
        yield HttpErrorHook(self.flow)
        self.server_state = self.state_errored
        self.flow.live = False
        yield SendHttp(ResponseData(self.stream_id, failed.error_trailer), self.context.client)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)
