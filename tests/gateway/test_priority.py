"""Priorities of whole requests through the gateway, with a fake adapter and clock."""

from __future__ import annotations

import asyncio
import json

import pytest

from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.leases import Lease
from ollama_balancer.core.priority import Priority
from ollama_balancer.core.tickets import QueueKey
from ollama_balancer.gateway.callers import Caller
from ollama_balancer.gateway.context import RequestContext
from ollama_balancer.gateway.decisions import Forward
from ollama_balancer.gateway.gateway import Direction
from ollama_balancer.gateway.messages import Response
from tests.gateway.whole_request import Scene

INTERACTIVE, NORMAL, BATCH = Priority


class Requests(Scene):
    """Two busy hosts, and a queue before them."""

    def __init__(self, size: int = 10) -> None:
        super().__init__()
        self.queue = self.gateway.router.queue
        self.queue.size = size

    def begun(self, of: Priority = NORMAL, asked: str | None = None, path: str = "/api/chat") -> RequestContext:
        context = self.gateway.arrived(Caller("c", "10.0.0.7", priority=of), path, None)
        self.gateway.begin(context, None, asked)
        return context

    async def fill(self) -> list[RequestContext]:
        running = [self.begun(), self.begun()]
        for context in running:
            assert isinstance(await self.gateway.route(context), Forward)
        return running

    async def wait(self, context: RequestContext) -> asyncio.Task[Direction]:
        self.adapter.waiting_now.clear()
        routed = asyncio.create_task(self.gateway.route(context))
        await self.adapter.waiting_now.wait()
        return routed


@pytest.mark.parametrize(
    ("of", "asked", "expected"),
    [
        (NORMAL, None, NORMAL),
        (NORMAL, "batch", BATCH),
        (NORMAL, "interactive", NORMAL),
        (INTERACTIVE, None, INTERACTIVE),
        (INTERACTIVE, "normal", NORMAL),
        (BATCH, "interactive", BATCH),
        (BATCH, "Batch", BATCH),
    ],
)
def test_a_request_can_lower_the_priority_of_its_caller_and_not_raise_it(
    of: Priority, asked: str | None, expected: Priority
) -> None:
    context = Requests().begun(of, asked)
    assert (context.priority, context.wrong_priority) == (expected, None)
    assert context.record()["priority"] == expected.label


@pytest.mark.parametrize("asked", ["", "urgent", "0", "batch, batch"])
def test_an_unknown_priority_is_a_400_that_says_which_there_are(asked: str) -> None:
    async def scene() -> None:
        requests = Requests()
        context = requests.begun(NORMAL, asked)
        answer = await requests.gateway.route(context)
        assert isinstance(answer, Response)
        assert answer.status == 400
        message = json.loads(answer.body)["error"]
        assert message.startswith("X-Balancer-Priority: ")
        assert message.endswith("accepted are interactive, normal, batch")
        assert context.outcome is Outcome.REJECTED
        assert not requests.gateway.live

    asyncio.run(scene())


def test_a_slot_goes_to_the_highest_class_and_the_flow_says_as_what_it_waited() -> None:
    async def scene() -> None:
        requests = Requests()
        running = await requests.fill()
        batch, interactive = requests.begun(NORMAL, "batch"), requests.begun(INTERACTIVE)
        routed = [await requests.wait(batch), await requests.wait(interactive)]
        running[0].end(Outcome.SUCCEEDED)
        assert isinstance(await routed[1], Forward)
        assert not routed[0].done()
        assert interactive.why.endswith("in the queue as interactive")
        running[1].end(Outcome.SUCCEEDED)
        assert isinstance(await routed[0], Forward)
        assert batch.why.endswith("in the queue as batch")

    asyncio.run(scene())


PROTOCOLS = pytest.mark.parametrize(
    ("path", "place"),
    [("/api/chat", ("error",)), ("/v1/chat/completions", ("error", "message")), ("/v1/messages", ("error", "message"))],
)


@PROTOCOLS
def test_who_is_shed_gets_a_503_in_its_protocol_and_leaves_nothing_behind(path: str, place: tuple[str, ...]) -> None:
    async def scene() -> None:
        requests = Requests(size=1)
        running = await requests.fill()
        shed = requests.begun(NORMAL, "batch", path)
        told = await requests.wait(shed)
        stays = requests.begun()
        routed = await requests.wait(stays)
        answer = await told
        assert isinstance(answer, Response)
        assert answer.status == 503
        assert int(answer.header(b"retry-after") or "") >= 1
        message = json.loads(answer.body)
        for key in place:
            message = message[key]
        assert "balancer_queue_size" in message
        assert "this batch request had to make room for one of a higher priority" in message
        assert (shed.ticket, shed.lease, shed.outcome) == (None, None, Outcome.FAILED)
        assert requests.ended == [shed]
        assert requests.queue.describe()["priorities"] == {"interactive": 0, "normal": 1, "batch": 0}

        refused = await requests.gateway.route(requests.begun())
        assert isinstance(refused, Response)
        assert refused.status == 503
        assert b"already in the queue, which is full" in refused.body
        running[0].end(Outcome.SUCCEEDED)
        assert isinstance(await routed, Forward)
        for context in (running[1], stays):
            context.end(Outcome.SUCCEEDED)
        assert (len(requests.queue), requests.registry.in_flight, len(requests.gateway.live)) == (0, 0, 0)

    asyncio.run(scene())


def test_who_leaves_in_the_moment_that_it_is_shed_ends_once() -> None:
    async def scene() -> None:
        requests = Requests(size=1)
        await requests.fill()
        leaver = requests.begun(NORMAL, "batch")
        told = await requests.wait(leaver)
        higher = requests.begun()
        ticket = leaver.ticket
        assert ticket is not None
        notify = ticket.notify

        def leave(lease: Lease | None) -> None:
            notify(lease)
            leaver.end(Outcome.CANCELLED)

        ticket.notify = leave
        routed = await requests.wait(higher)
        assert ticket.shed
        assert await told is None
        assert requests.ended == [leaver]
        assert len(requests.queue) == 1
        higher.end(Outcome.CANCELLED)
        assert await routed is None
        assert len(requests.queue) == 0

    asyncio.run(scene())


def test_a_batch_request_that_arrives_gets_no_free_slot_before_a_higher_one_that_waits() -> None:
    """Who waits has declined the free agent for now, and may want it soon."""

    async def scene() -> None:
        requests = Requests()
        running = await requests.fill()
        running[0].end(Outcome.SUCCEEDED)
        # As if it had preferred to wait for the other host.
        requests.queue.join(QueueKey("m:latest"), "c", lambda lease: None, priority=INTERACTIVE)
        batch = requests.begun(BATCH)
        routed = await requests.wait(batch)
        assert not routed.done()
        assert isinstance(await requests.gateway.route(requests.begun(INTERACTIVE)), Forward)
        batch.end(Outcome.CANCELLED)
        assert await routed is None

    asyncio.run(scene())
