"""The parts of the comparison of proxies that are pure: what is read from answers, and what the tables say."""

import asyncio
import json
from pathlib import Path

import pytest

from benches import nginx, proxy
from benches.client import OLLAMA, OPENAI, Stream
from benches.proxy import BARE, DIRECT, FOUR, ONE, Figures, Load, Side
from benches.upstream import HostConnection, Pace

STREAMS = Load("streams", 400, 3.5)


def event(sent_at: int, *, last: bool = False) -> bytes:
    data = json.dumps({"message": {"content": f"t={sent_at} "}, "done": last}, separators=(",", ":")).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_stream_has_the_delay_of_each_chunk_however_the_bytes_are_cut() -> None:
    data = event(100) + event(200) + event(300)
    stream = Stream(OLLAMA.last)
    counts = [stream.received(data[at : at + 7], 1000) for at in range(0, len(data), 7)]
    assert sum(counts) == 3
    assert stream.delays == [900, 800, 700]


@pytest.mark.parametrize("last", [b'{"done":true}\n', b'data: {"finish_reason":"stop"}\n'])
def test_a_stream_is_whole_with_its_last_event_and_its_end(last: bytes) -> None:
    stream = Stream(OLLAMA.last if b"done" in last else OPENAI.last)
    stream.received(last, 0)
    assert not stream.whole
    stream.received(b"\r\n0\r\n\r\n", 0)
    assert stream.whole


def test_chunks_that_have_not_come_are_late_by_what_has_passed_since_they_were_due() -> None:
    stream = Stream(OLLAMA.last)
    stream.received(event(1000), 1005)
    assert stream.missing(chunks=5, interval=100, now=1250) == [150, 50]
    assert Stream(OLLAMA.last).missing(chunks=5, interval=100, now=1250) == []


def test_a_request_is_for_the_api_that_it_goes_to() -> None:
    head, _, body = OPENAI.chat(80, chunks=7, key="sk-1").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions ")
    assert b"Authorization: Bearer sk-1" in head
    assert (json.loads(body)["max_tokens"], json.loads(body)["stream"]) == (7, True)
    body = OLLAMA.chat(80, chunks=7, rate=100).partition(b"\r\n\r\n")[2]
    assert json.loads(body)["options"] == {"num_predict": 7, "interval_ms": 10}
    assert json.loads(OLLAMA.chat(80).partition(b"\r\n\r\n")[2])["stream"] is False


class Transport(asyncio.Transport):
    closing = False
    written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing


def test_the_upstream_sends_all_that_is_due_and_says_when_the_next_is() -> None:
    async def sends() -> None:
        connection, transport = HostConnection(Pace()), Transport()
        connection.connection_made(transport)
        connection.started, connection.interval, connection.sent, connection.total = 10.0, 0.5, 0, 4
        assert connection.send_due(10.75) == 11.0
        assert transport.written.count(b'"content":"t=') == 2
        assert connection.send_due(99.0) is None
        assert transport.written.count(b'"content":"t=') == 4
        assert transport.written.endswith(b"\r\n0\r\n\r\n")

    asyncio.run(sends())


def test_the_upstream_sends_nothing_to_a_client_that_has_left() -> None:
    async def sends() -> None:
        connection, transport = HostConnection(Pace()), Transport()
        connection.connection_made(transport)
        transport.closing = True
        assert connection.send_due(99.0) is None
        assert transport.written == b""

    asyncio.run(sends())


def test_a_round_s_figures_are_taken_from_what_the_client_tells() -> None:
    figures = Figures()
    steady = {"seconds": 2.0, "chunks": 20_000, "cpu": [1.0, 0.5, 0.1, 0.8]}
    result = {"sent": 50_000, "ms": [1.0, 2.0, 3.0], "errors": 0, "cut": 1, "steady": steady}
    proxy.note(figures, STREAMS, result, 2.0)
    assert (figures.kept_up, figures.upstream, figures.client) == ([50.0], [50.0], [40.0])
    assert figures.steady_us == [pytest.approx(30.0)]
    assert figures.cpu_us == [pytest.approx(40.0)]
    assert figures.cut == 1


def test_without_a_time_in_which_all_streams_run_there_is_no_figure_of_it() -> None:
    figures = Figures()
    proxy.note(figures, STREAMS, {"sent": 2, "ms": [1.0, 2.0], "errors": 0, "cut": 0, "steady": None}, 2.0)
    assert figures.kept_up == []
    assert figures.steady_us == [None]


def test_the_balancers_own_time_is_read_from_its_metrics() -> None:
    assert proxy.processing_seconds("# HELP x\nollama_balancer_proxy_processing_seconds_total 0.25\n") == 0.25
    assert proxy.processing_seconds("") is None


def test_shares_are_of_the_same_round() -> None:
    assert proxy.over([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]
    assert proxy.over([1.0, None, 4.0], [None, 2.0, 2.0]) == [2.0]
    assert proxy.over([1.0], [2.0, 2.0]) == []


def test_a_long_delay_is_told_in_seconds() -> None:
    assert proxy.time_of([12.34], 2) == "12.34 (12.34–12.34)"
    assert proxy.time_of([1500.0, 2500.0, 900.0], 2) == "1.5 (0.9–2.5) s"


def test_a_target_is_met_only_with_one_agent_and_with_four() -> None:
    bare = Figures(steady_us=[90.0], p99_ms=[5000.0])
    sides = {DIRECT: Figures(), BARE: bare, ONE: Figures(steady_us=[27.0], p99_ms=[60.0])}
    sides[FOUR] = Figures(steady_us=[36.0], p99_ms=[70.0])
    lines = proxy.targets_table({STREAMS: sides}).splitlines()[2:]
    assert [line.split(" | ")[1:] for line in lines] == [
        ["400 streams", "0.30 (0.30–0.30)", "0.40 (0.40–0.40)", "not met |"],
        ["400 streams", "60.0 (60.0–60.0)", "70.0 (70.0–70.0)", "met |"],
    ]
    sides[FOUR].steady_us.clear()
    assert proxy.targets_table({STREAMS: sides}).splitlines()[2].endswith("| not measured |")


def test_a_chunk_is_not_compared_with_one_of_a_mitmdump_that_reads_several_at_once() -> None:
    sides = {name: Figures(steady_us=[9.0], p99_ms=[60.0]) for name in (DIRECT, ONE, FOUR)}
    sides[BARE] = Figures(steady_us=[20.0], p50_ms=[19.0, 19.9, 90.0])
    lines = proxy.targets_table({STREAMS: sides}).splitlines()[2:]
    assert [line.split(" | ")[-1] for line in lines] == ["not met |", "met |"]
    sides[BARE].p50_ms[1] = 20.0
    lines = proxy.targets_table({STREAMS: sides}).splitlines()[2:]
    assert [line.split(" | ")[-1] for line in lines] == ["mitmdump is late |", "met |"]
    assert "0.45 (0.45–0.45)" in lines[0]


def test_streams_last_longer_than_it_takes_to_begin_them() -> None:
    for load in proxy.LOADS:
        if load.kind == "streams":
            assert load.length(0.1) > load.ramp


def test_a_side_may_be_spared_loads_that_are_too_much_for_it() -> None:
    side = Side("slow", 1, None, most_streams=100)
    assert [side.takes(load) for load in (Load("requests", 800, 1), Load("streams", 100, 1), STREAMS)] == [
        True,
        True,
        False,
    ]


def test_nginx_keeps_connections_to_the_hosts_only_where_it_is_told_to() -> None:
    without = nginx.configuration(80, Path("folder"), [1, 2], keepalive=False)
    assert "server 127.0.0.1:2 max_fails=0;" in without
    assert "keepalive 1024" not in without
    assert "keepalive 1024;" in nginx.configuration(80, Path("folder"), [1, 2], keepalive=True)
