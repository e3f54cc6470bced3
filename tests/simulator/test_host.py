"""The host over real sockets: HTTP, what it reports of itself, and what each phase of a request looks like."""

import asyncio
import json
import socket
import struct
import threading
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import h11
import pytest

from ollama_balancer.simulator import SimulatedModel, SimulatedOllama, Timing, request_log
from ollama_balancer.simulator.connection import BODY_LIMIT

from .support import INSTANT, MODELS, Client, StandingClock, ask, chat, connected, eventually, running

ONE_BY_ONE = Timing(load=5, prefill_rate=1, decode_rate=1, num_parallel=1)


# ---- answers


def test_a_streamed_answer_is_the_text_its_seed_and_prompt_foretell() -> None:
    async def main() -> None:
        async with running(seed=7) as sim:
            events = (await ask(sim, "POST", "/api/chat", chat("why?"))).events()
            assert "".join(event["message"]["content"] for event in events) == sim.expected_text("why?")
            whole = await ask(sim, "POST", "/api/generate", {"model": "qwen3", "prompt": "why?", "stream": False})
            assert whole.json()["response"] == sim.expected_text("why?")
            assert whole.json()["done_reason"] == "stop"
            cut = await ask(sim, "POST", "/v1/chat/completions", chat("why?", max_tokens=3))
            assert cut.json()["choices"][0]["message"]["content"] == sim.expected_text("why?", 3)
            assert cut.json()["choices"][0]["finish_reason"] == "length"

    asyncio.run(main())


def test_a_final_event_tells_the_durations_of_the_timing_model_in_nanoseconds() -> None:
    async def main() -> None:
        clock = StandingClock()
        timing = Timing(load=5, prefill_rate=10, decode_rate=4)
        async with running(timing, sleep=clock.sleep, clock=clock) as sim, connected(sim) as client:
            await client.send("POST", "/api/chat", chat("x" * 80, tokens=8, stream=False))
            for pause in (5, 2, 2):
                await eventually(lambda: clock.sleepers)
                await clock.advance(pause)
            assert {key: value for key, value in (await client.receive()).json().items() if "_" in key} | {
                "created_at": ""
            } == {
                "created_at": "",
                "done_reason": "length",
                "total_duration": 9_000_000_000,
                "load_duration": 5_000_000_000,
                "prompt_eval_count": 20,
                "prompt_eval_duration": 2_000_000_000,
                "eval_count": 8,
                "eval_duration": 2_000_000_000,
            }

    asyncio.run(main())


def test_the_head_comes_with_the_first_token_and_each_token_when_it_is_due() -> None:
    async def main() -> None:
        clock = StandingClock()
        async with running(ONE_BY_ONE, sleep=clock.sleep, clock=clock) as sim, connected(sim) as client:
            await client.send("POST", "/api/chat", chat("x" * 8, tokens=2))
            head = asyncio.create_task(client.head())
            for seconds in (5, 2):
                await eventually(lambda: clock.sleepers)
                await clock.advance(seconds)
                assert not head.done()
            await clock.advance(1)
            assert (await head).framing == "chunked"
            assert json.loads(await client.chunk() or "")["done"] is False
            await clock.advance(1)
            assert [json.loads(await client.chunk() or "")["done"] for _ in range(2)] == [False, True]
            assert await client.chunk() is None

    asyncio.run(main())


def test_ps_lists_a_model_once_it_is_loaded_and_no_longer_when_it_is_unloaded() -> None:
    async def main() -> None:
        async with running() as sim:
            assert (await ask(sim, "GET", "/api/ps")).json() == {"models": []}
            await ask(sim, "POST", "/api/chat", {"model": "qwen3"})
            assert [m["name"] for m in (await ask(sim, "GET", "/api/ps")).json()["models"]] == ["qwen3:latest"]
            assert sim.loaded == ["qwen3:latest"]
            await ask(sim, "POST", "/api/generate", {"model": "QWEN3", "keep_alive": 0})
            assert sim.loaded == []

    asyncio.run(main())


def test_ps_can_tell_that_a_model_stays_for_ever() -> None:
    async def main() -> None:
        async with running() as sim:
            await ask(sim, "POST", "/api/generate", {"model": "qwen3", "keep_alive": -1})
            assert (await ask(sim, "GET", "/api/ps")).json()["models"][0]["expires_at"] > "2300"

    asyncio.run(main())


def test_an_embedding_model_neither_chats_nor_generates() -> None:
    async def main() -> None:
        async with running() as sim:
            answer = await ask(sim, "POST", "/api/chat", chat(model="nomic-embed-text"))
            assert (answer.status, answer.json()) == (400, {"error": '"nomic-embed-text" does not support chat'})

    asyncio.run(main())


# ---- HTTP


def test_one_connection_serves_many_requests_also_such_as_were_sent_ahead() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            for _ in range(3):
                await client.send("POST", "/api/chat", chat(tokens=2))
                await client.send("GET", "/api/version")
                await client.send("HEAD", "/")
            for _ in range(3):
                assert len((await client.receive()).events()) == 3
                assert (await client.receive()).json() == {"version": "0.33.0"}
                assert (await client.receive("HEAD")).status == 200
            assert len(sim.requests) == 9

    asyncio.run(main())


def test_a_request_may_come_byte_by_byte() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            body = json.dumps(chat(tokens=1)).encode()
            request = b"POST /api/chat HTTP/1.1\r\nHost: sim\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            for i in range(len(request)):
                client.writer.write(request[i : i + 1])
                await client.writer.drain()
                await asyncio.sleep(0)
            assert len((await client.receive()).events()) == 2

    asyncio.run(main())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_100_mb_is_refused_and_the_connection_closed(chunked: bool) -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            if chunked:
                await client.send("POST", "/api/chat", None, [("Host", "sim"), ("Transfer-Encoding", "chunked")])
                piece = b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
                for _ in range(BODY_LIMIT // (1 << 20) + 1):
                    client.writer.write(piece)
                    await client.writer.drain()
            else:
                length = [("Host", "sim"), ("Content-Length", str(BODY_LIMIT + 1))]
                await client.send("POST", "/api/chat", None, length)
            answer = await client.receive()
            assert (answer.status, answer.json()) == (413, {"error": "http: request body too large"})
            assert await client.ended() == b""

    asyncio.run(main())


def test_headers_over_a_megabyte_are_refused() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            await client.send("GET", "/", None, [("Host", "sim"), ("X", "x" * 1_500_000)])
            answer = await client.receive()
            assert answer.status_line == "HTTP/1.1 431 Request Header Fields Too Large"

    asyncio.run(main())


def test_answers_over_two_kilobytes_are_chunked_as_the_real_server_does() -> None:
    async def main() -> None:
        async with running() as sim:
            body = {"model": "nomic-embed-text", "input": ["a", "b", "c"]}
            assert (await ask(sim, "POST", "/api/embed", body)).framing == "chunked"
            old = await ask(sim, "POST", "/api/embed", body, version="HTTP/1.0")
            assert old.framing == "until-close"
            assert len(old.json()["embeddings"]) == 3

    asyncio.run(main())


def test_a_streams_framing_is_valid_to_another_http_implementation() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            h = h11.Connection(h11.CLIENT)
            h.send(h11.Request(method="POST", target="/api/chat", headers=[("Host", "sim"), ("Content-Length", "0")]))
            h.send(h11.EndOfMessage())
            await client.send("POST", "/api/chat", chat(), headers=[("Host", "sim"), ("Connection", "close")])
            h.receive_data(await client.ended())
            events = []
            while not isinstance(event := h.next_event(), h11.EndOfMessage):
                events.append(event)
            assert isinstance(events[0], h11.Response)
            text = b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data))
            assert json.loads(text.splitlines()[-1])["done"] is True

    asyncio.run(main())


# ---- what it reports of itself


def test_it_remembers_each_request_and_how_it_ended() -> None:
    async def main() -> None:
        async with running() as sim:
            await ask(sim, "GET", "/api/tags?x=1", headers=[("Host", "sim"), ("X-Some", "Thing")])
            await ask(sim, "POST", "/api/chat", chat(model="Qwen3"))
            await ask(sim, "POST", "/api/chat", chat(model="nope"))
            tags, good, bad = sim.requests
            assert (tags.method, tags.path, tags.headers[1], tags.outcome) == (
                "GET",
                "/api/tags",
                ("X-Some", "Thing"),
                "succeeded",
            )
            assert (good.model, good.outcome, json.loads(good.body)["model"]) == ("Qwen3", "succeeded", "Qwen3")
            assert (bad.model, bad.outcome) == ("nope", "failed")
            assert sim.counts == {"succeeded": 1, "failed": 1}

    asyncio.run(main())


def test_it_forgets_the_oldest_requests_where_there_are_too_many_or_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            for number in range(12):
                await client.ask("HEAD", f"/{number}")
            assert [request.path for request in sim.requests] == [f"/{number}" for number in range(2, 12)]
            for number in range(3):
                await client.ask("POST", f"/large/{number}", bytes(400))
            assert [request.path for request in sim.requests][-2:] == ["/large/1", "/large/2"]
            assert "/large/0" not in {request.path for request in sim.requests}

    monkeypatch.setattr(request_log, "MAX_REQUESTS", 10)
    monkeypatch.setattr(request_log, "MAX_BYTES", 1000)
    asyncio.run(main())


def test_it_counts_who_waits_and_who_runs() -> None:
    async def main() -> None:
        clock = StandingClock()
        async with running(Timing(num_parallel=2), sleep=clock.sleep, clock=clock) as sim:
            idle = sim.load_cpu()
            async with AsyncExitStack() as stack:
                for _ in range(3):
                    client = await stack.enter_async_context(connected(sim))
                    await client.send("POST", "/api/chat", chat())
                await eventually(lambda: sim.in_flight == 3)
                assert sim.running == 0
                await clock.advance(2)
                assert (sim.in_flight, sim.running) == (3, 2)
                assert idle < 10 < 90 < sim.load_cpu() <= 100
                assert repr(sim) == f"<SimulatedOllama sim {sim.url} up running=2 in_flight=3>"
            await eventually(lambda: sim.in_flight == 0)

    asyncio.run(main())


# ---- a client that leaves


def has_in_flight(sim: SimulatedOllama, number: int) -> bool:
    return sim.in_flight == number


async def leave(client: Client, how: str) -> None:
    if how == "half-close":
        client.writer.write_eof()
    elif how == "reset":
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.abort()
    else:
        client.writer.close()


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["waiting", "loading", "prefill", "decoding"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_client_that_leaves_cancels_its_request_in_every_phase_and_the_next_goes_on(
    phase: str, stream: bool, how: str, eager: bool
) -> None:
    async def main() -> None:
        if eager:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        clock = StandingClock()
        async with (
            running(ONE_BY_ONE, sleep=clock.sleep, clock=clock) as sim,
            connected(sim) as first,
            connected(sim) as second,
            connected(sim) as third,
        ):
            for number, client in enumerate((first, second, third), 1):
                await client.send("POST", "/api/chat", chat("x" * 40, tokens=5, stream=stream))
                await eventually(partial(has_in_flight, sim, number))
            await clock.advance({"waiting": 17, "loading": 1, "prefill": 6, "decoding": 17}[phase])
            gone = second if phase == "waiting" else first
            await leave(gone, how)
            await eventually(lambda: sim.in_flight == 2)
            assert sim.counts == {"cancelled": 1}
            assert sim.requests[1 if gone is second else 0].outcome == "cancelled"
            await eventually(lambda: len(clock.sleepers) == 1)  # the next one's, or that of the one which goes on

            for expected in (1, 0):
                while sim.in_flight > expected:
                    await clock.advance(1)
            assert sim.counts == {"cancelled": 1, "succeeded": 2}
            assert (await third.receive()).complete

    asyncio.run(main())


def test_a_client_that_leaves_before_its_request_is_complete_leaves_nothing() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            await client.send("POST", "/api/chat", b"{", [("Host", "sim"), ("Content-Length", "100")])
            client.writer.write_eof()
            assert await client.ended() == b""
            assert sim.requests == []

    asyncio.run(main())


def test_a_client_that_reads_nothing_holds_its_stream_back_and_may_leave() -> None:
    async def main() -> None:
        timing = Timing(time_scale=0, output_tokens=400_000)
        async with running(timing) as sim, connected(sim) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send("POST", "/api/chat", chat())
            await eventually(lambda: any(connection._drained for connection in sim._connections))
            assert sim.running == 1
            client.abort()
            await eventually(lambda: sim.in_flight == 0)
            assert sim.counts == {"cancelled": 1}

    asyncio.run(main())


# ---- up and down


def test_killed_it_aborts_all_connections_and_refuses_new_ones_until_it_starts_again() -> None:
    async def main() -> None:
        clock = StandingClock()
        async with (
            running(ONE_BY_ONE, sleep=clock.sleep, clock=clock) as sim,
            connected(sim) as idle,
            connected(sim) as client,
        ):
            await idle.ask("GET", "/")
            await client.send("POST", "/api/chat", chat(tokens=5))
            await eventually(lambda: sim.in_flight)
            await clock.advance(7)
            assert (await client.head()).status == 200
            url = sim.url
            await sim.kill()
            assert await idle.ended() == b""
            assert b"0\r\n\r\n" not in await client.ended()
            assert sim.counts == {"failed": 1}
            assert (sim.loaded, sim.in_flight, sim.running) == ([], 0, 0)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(sim.host, sim.port)
            await sim.start()
            assert sim.url == url
            assert (await ask(sim, "GET", "/api/version")).status == 200

    asyncio.run(main())


def test_stopped_it_leaves_no_task_and_no_connection_and_may_start_again_on_its_port() -> None:
    async def main() -> None:
        clock = StandingClock()
        sim = SimulatedOllama(models=MODELS, sleep=clock.sleep, clock=clock)
        tasks = asyncio.all_tasks()
        for _ in range(2):
            await sim.start()
            async with connected(sim) as idle, connected(sim) as client:
                await idle.ask("GET", "/")
                await client.send("POST", "/api/chat", chat())
                await eventually(lambda: sim.in_flight)
                await sim.stop()
                assert await client.ended() == await idle.ended() == b""
            assert asyncio.all_tasks() == tasks
            assert (sim.in_flight, len(clock.sleepers)) == (0, 0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(sim.host, sim.port)

    asyncio.run(main())


def test_it_can_be_killed_and_started_in_quick_succession_under_load() -> None:
    async def main() -> None:
        async with running(Timing(time_scale=0.001, num_parallel=4)) as sim:
            stop = False

            async def client() -> None:
                while not stop:
                    try:
                        await ask(sim, "POST", "/api/chat", chat())
                    except (OSError, asyncio.IncompleteReadError):
                        await asyncio.sleep(0)

            clients = [asyncio.create_task(client()) for _ in range(8)]
            for _ in range(10):
                sim.counts.clear()
                await eventually(lambda: sim.counts["succeeded"])
                await sim.kill()
                assert (sim.in_flight, sim.running) == (0, 0)
                await sim.start()
            stop = True
            await asyncio.gather(*clients)

    asyncio.run(main())


def test_starting_twice_is_an_error() -> None:
    async def main() -> None:
        async with running() as sim:
            with pytest.raises(RuntimeError, match="already up"):
                await sim.start()

    asyncio.run(main())


def test_a_port_that_is_taken_is_an_error() -> None:
    async def main() -> None:
        async with running() as sim:
            with pytest.raises(OSError, match="in use"):
                await SimulatedOllama(port=sim.port).start()

    asyncio.run(main())


@pytest.mark.parametrize("eager", [False, True])
def test_two_hundred_streams_at_once_are_all_served_whole(eager: bool) -> None:
    async def main() -> None:
        if eager:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        timing = Timing(num_parallel=200, time_scale=0.01)
        async with running(timing) as sim:
            answers = await asyncio.gather(*(ask(sim, "POST", "/api/chat", chat(f"{i}")) for i in range(200)))
            for i, answer in enumerate(answers):
                text = "".join(event["message"]["content"] for event in answer.events())
                assert text == sim.expected_text(f"{i}")

    asyncio.run(main())


# ---- faults


INFERENCE: list[tuple[str, dict[str, Any]]] = [
    ("/api/chat", chat()),
    ("/api/chat", chat(stream=False)),
    ("/api/generate", {"model": "llama3.2", "prompt": "x"}),
    ("/api/embed", {"model": "nomic-embed-text", "input": "x"}),
    ("/v1/chat/completions", chat()),
    ("/v1/chat/completions", chat(stream=True)),
]


@pytest.mark.parametrize(("path", "body"), INFERENCE)
def test_a_status_fault_answers_inference_with_that_status_in_the_callers_protocol(
    path: str, body: dict[str, Any]
) -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            sim.faults.status = 503
            answer = await client.ask("POST", path, body)
            error = answer.json()["error"]
            assert answer.status == 503
            assert (error["type"] if path.startswith("/v1") else error) in (
                "api_error",
                "server busy, please try again.  maximum pending requests exceeded",
            )
            assert (await client.ask("GET", "/api/version")).status == 200
            sim.faults.status = None
            assert (await client.ask("POST", path, body)).status == 200
            assert sim.counts == {"failed": 1, "succeeded": 1}

    asyncio.run(main())


@pytest.mark.parametrize(("path", "body"), INFERENCE)
def test_a_connection_may_be_reset_or_closed_instead_of_an_answer(path: str, body: dict[str, Any]) -> None:
    async def main() -> None:
        async with running() as sim:
            sim.faults.close_before_head = True
            async with connected(sim) as client:
                await client.send("POST", path, body)
                assert await client.ended() == b""
            sim.faults.reset_before_head = True
            async with connected(sim) as client:
                await client.send("POST", path, body)
                with pytest.raises(ConnectionResetError):
                    await client.ended()
            assert sim.counts == {"failed": 2}
            assert (await ask(sim, "GET", "/api/version")).status == 200

    asyncio.run(main())


def test_a_host_that_hangs_answers_its_version_and_no_inference_until_it_recovers() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client, connected(sim) as leaver:
            sim.faults.hang = True
            for each in (client, leaver):
                await each.send("POST", "/api/chat", chat())
            await eventually(lambda: sim.in_flight == 2)
            assert (await ask(sim, "GET", "/api/version")).status == 200
            leaver.abort()
            await eventually(lambda: sim.in_flight == 1)
            sim.faults.hang = False
            assert (await client.receive()).complete
            assert sim.counts == {"cancelled": 1, "succeeded": 1}

    asyncio.run(main())


def test_a_host_that_hangs_altogether_answers_nothing_until_it_recovers() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client, connected(sim) as other, connected(sim) as leaver:
            sim.faults.hang_all = True
            await client.send("GET", "/api/version")
            await leaver.send("GET", "/api/version")
            await other.send("POST", "/api/chat", b"malformed")
            await eventually(lambda: len(sim.requests) == 3)
            assert {request.outcome for request in sim.requests} == {"running"}
            leaver.abort()
            await eventually(lambda: sim.requests[1].outcome == "cancelled" or sim.requests[0].outcome == "cancelled")
            sim.faults.hang_all = False
            assert (await client.receive()).status == 200
            assert (await other.receive()).status == 400

    asyncio.run(main())


def test_a_refusing_host_keeps_its_open_connections_and_takes_new_ones_again_at_once() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            await client.ask("GET", "/")
            for _ in range(3):
                sim.faults.refuse = True
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(sim.host, sim.port)
                assert (await client.ask("POST", "/api/chat", chat())).complete
                sim.faults.refuse = False
                assert (await ask(sim, "GET", "/")).status == 200

    asyncio.run(main())


def test_a_host_may_start_refusing() -> None:
    async def main() -> None:
        sim = SimulatedOllama(models=[SimulatedModel("a")], timing=INSTANT)
        sim.faults.refuse = True
        await sim.start()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(sim.host, sim.port)
        sim.faults = type(sim.faults)()
        assert (await ask(sim, "GET", "/")).status == 200
        await sim.stop()

    asyncio.run(main())


def test_faults_may_be_switched_from_another_thread() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            sim.faults.hang = True
            await client.send("POST", "/api/chat", chat())
            await eventually(lambda: sim.in_flight)
            thread = threading.Thread(target=setattr, args=(sim.faults, "hang", False))
            thread.start()
            assert (await client.receive()).complete
            thread.join()

    asyncio.run(main())


STREAMS = [("/api/chat", chat()), ("/api/generate", {"model": "qwen3", "prompt": "x"})]
STREAMS += [("/v1/chat/completions", chat(stream=True))]


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize("count", [0, 3])
def test_a_stream_may_be_cut(path: str, body: dict[str, Any], count: int) -> None:
    async def main() -> None:
        async with running() as sim:
            sim.faults.cut_after_chunks = count
            answer = await ask(sim, "POST", path, body)
            assert (answer.status, len(answer.chunks), answer.complete) == (200, count, False)
            assert sim.counts == {"failed": 1}

    asyncio.run(main())


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize("count", [0, 3])
def test_a_stream_may_end_without_its_terminal_event(path: str, body: dict[str, Any], count: int) -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            sim.faults.end_without_done_after_chunks = count
            answer = await client.ask("POST", path, body)
            assert (answer.status, len(answer.chunks), answer.complete) == (200, count, True)
            assert "[DONE]" not in answer.body
            assert '"done":true' not in answer.body
            assert (await client.ask("GET", "/")).status == 200
            assert sim.counts == {"failed": 1}

    asyncio.run(main())


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_a_crashed_runner_ends_a_stream_with_its_event(path: str, body: dict[str, Any]) -> None:
    async def main() -> None:
        async with running() as sim:
            sim.faults.error_event_after_chunks = 3
            answer = await ask(sim, "POST", path, body)
            assert (answer.status, len(answer.chunks), answer.complete) == (200, 4, True)
            last = answer.events()[-1]
            if path.startswith("/v1"):
                assert (last["model"], last["choices"][0]["delta"]) == ("", {"content": ""})
                assert last["choices"][0]["finish_reason"] is None
            else:
                assert last == {"error": "an error was encountered while running the model: unexpected EOF"}
            assert sim.counts == {"failed": 1}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [(path, body, 0) for path, body in STREAMS]
    + [("/api/chat", chat(stream=False), 3), ("/v1/chat/completions", chat(), 3)],
)
def test_a_runner_that_crashes_before_the_first_byte_is_a_500(path: str, body: dict[str, Any], count: int) -> None:
    async def main() -> None:
        async with running() as sim:
            sim.faults.error_event_after_chunks = count
            answer = await ask(sim, "POST", path, body)
            assert answer.status == 500
            assert "unexpected EOF" in answer.body

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["cut_after_chunks", "end_without_done_after_chunks", "error_event_after_chunks"])
def test_a_fault_due_beyond_the_answers_length_strikes_instead_of_its_end(fault: str) -> None:
    async def main() -> None:
        async with running() as sim:
            setattr(sim.faults, fault, 1000)
            answer = await ask(sim, "POST", "/api/chat", chat(tokens=5))
            assert '"done":true' not in answer.body
            assert answer.body.count('"done":false') == 5
            assert sim.counts == {"failed": 1}

    asyncio.run(main())


def test_an_answer_that_is_not_streamed_is_cut_before_its_head() -> None:
    async def main() -> None:
        async with running() as sim, connected(sim) as client:
            sim.faults.cut_after_chunks = 2
            await client.send("POST", "/api/chat", chat(stream=False))
            assert await client.ended() == b""

    asyncio.run(main())
