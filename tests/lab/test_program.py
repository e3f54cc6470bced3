"""The lab from the files to what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_balancer.core.policies import POLICIES
from ollama_balancer.lab.__main__ import experiment, main
from ollama_balancer.lab.caveats import Settings
from ollama_balancer.lab.flows import read
from ollama_balancer.lab.rates import learn
from ollama_balancer.lab.recorded_workload import LONGEST_PAUSE, as_recorded, workload
from ollama_balancer.lab.workload import Workload
from tests.lab.flowfiles import final, flow, record, write
from tests.lab.test_flows import JSON


def replayed(path: Path, load: float = 1.0) -> Workload:
    recording = read([path])
    return workload(recording, learn(recording), load)


def told(path: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([str(path), "--json", *arguments]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_a_request_alone_takes_in_every_mode_what_it_took_when_it_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flows = [flow(10 * n, {"model": "m", "prompt": f"{n}?"}) for n in range(10)]
    report = told(write(tmp_path / "flows", flows), capsys=capsys)
    assert list(report["modes"]) == list(POLICIES)
    for figures in (report["recorded"], *report["modes"].values()):
        assert (figures["requests"], figures["served"], figures["goodput"]) == (10, 10, 100)
        assert figures["first_token"] == pytest.approx({"p50": 1, "p95": 1, "p99": 1}, abs=0.01)
        assert figures["total"] == pytest.approx({"p50": 2, "p95": 2, "p99": 2}, abs=0.01)
        assert figures["shares"] == {"a": 100}
        assert figures["loads"] == 0


def test_a_request_of_unknown_length_has_the_usual_one(tmp_path: Path) -> None:
    cancelled = flow(5, metadata=record(outcome="cancelled"), answer=b'{"response": "a"}\n')
    assert [request.output for request in replayed(write(tmp_path / "flows", [flow(), cancelled])).requests] == [50, 50]


def test_a_higher_load_brings_the_same_requests_in_less_time(tmp_path: Path) -> None:
    path = write(tmp_path / "flows", [flow(0), flow(30), flow(90)])
    assert [request.at for request in replayed(path).requests] == pytest.approx([0, 30, 90])
    assert [request.at for request in replayed(path, 1.5).requests] == pytest.approx([0, 20, 60])


def test_a_long_pause_is_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path / "flows", [flow(0), flow(1e9)])
    assert [request.at for request in replayed(path).requests] == [0, LONGEST_PAUSE]


def test_what_was_known_of_a_prompt_is_counted_in_its_own_tokens(tmp_path: Path) -> None:
    text = "word " * 400
    first = flow(0, {"model": "m", "messages": [{"content": text}]}, path="/api/chat")
    again = {"model": "m", "messages": [{"content": text}, {"content": "why"}, {"content": text}]}
    second = flow(9, again, [final(prompt=2000)], path="/api/chat")
    one, two = replayed(write(tmp_path / "flows", [first, second])).requests
    assert (one.known, one.conversation) == (0, two.conversation)
    assert two.known == pytest.approx(1000, rel=0.02)


def test_the_recorded_row_counts_what_became_of_the_requests_and_each_load_once(tmp_path: Path) -> None:
    slow = record(first_byte_ms=11_000.0, total_ms=12_000.0)
    flows = [
        flow(0, answer=[final(load=9)], metadata=slow),
        flow(1, answer=[final(load=8)], metadata=slow),
        flow(20),
        flow(30, metadata=record(agent=None, outcome="failed", first_byte_ms=None), status=503),
        flow(40, metadata=record(outcome="cancelled")),
    ]
    recording = read([write(tmp_path / "flows", flows)])
    result = as_recorded(recording, learn(recording))
    assert (result.asked, result.good, result.loads) == (5, 1, 1)
    assert result.outcomes == {"served": 3, "failed": 1, "cancelled": 1}
    assert result.agents == {"a": 4}


def test_the_first_token_of_an_answer_that_came_whole_is_told_by_its_timings_else_by_the_pace(tmp_path: Path) -> None:
    whole = record(first_byte_ms=2000.0)
    native = flow(0, answer=json.dumps(final(answer=0.5)).encode(), metadata=whole, kind="application/json")
    usage = b'{"choices": [], "usage": {"completion_tokens": 50}}'
    other = flow(10, answer=usage, metadata=whole, kind="application/json", path="/v1/chat/completions")
    recording = read([write(tmp_path / "flows", [native, other])])
    first = as_recorded(recording, learn(recording)).first
    assert first[0] == pytest.approx(1.5)
    assert 1 < first[1] < 2


def test_what_cannot_be_known_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flows = [
        flow(0),
        flow(1, metadata=record(agent="b", model="n", pinned=True)),
        flow(2, metadata=record(model="gone", agent=None, outcome="failed"), status=503),
        flow(3, status=404),
        flow(4, metadata="odd"),
        flow(5000, metadata=record(outcome="cancelled", failures=[{"agent": "c", "reason": "refused"}])),
    ]
    assert main([str(write(tmp_path / "flows", flows))]) == 0
    text = capsys.readouterr().out
    for words in (
        "Read 6 flows: 4 requests",
        "2 of 4 pairs of host and model",
        "Hosts that were not seen with m:latest, n:latest are assumed to have it",
        "1 request not served completely when recorded, 1 because the client disconnected",
        "1 request pinned to a host",
        "The flows do not show how fast the hosts load models",
        "Pauses of more than 10 minutes are shortened",
        "Left out: 1 request for gone:latest, which no host is known to have",
        "Left out: 1 request rejected because of the caller's mistake",
        "Left out: 1 flow whose record or request could not be read",
        "Left out: hosts that answered nothing (c)",
    ):
        assert words in text, words


def test_loads_that_answers_do_not_tell_of_are_said_to_be_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n'
    flows = [flow(0), flow(10, answer=stream, kind="text/event-stream", path="/v1/chat/completions")]
    assert main([str(write(tmp_path / "flows", flows)), "--modes", "metrics"]) == 0
    assert "1 answer did not report loads" in capsys.readouterr().out


def test_the_tables_have_a_row_for_each_mode_and_each_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flows = [flow(n, metadata=record(agent="ab"[n % 2])) for n in range(4)]
    assert main([str(write(tmp_path / "flows", flows)), "--modes", "adaptive, roundrobin,adaptive"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [row for row in rows if row in ("recorded", *POLICIES)] == ["recorded", "adaptive", "roundrobin"]
    assert [row for row in rows if row in "ab"] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ([], "contains no flows"),
        (b"hello", "is not a file of mitmproxy flows"),
        ([flow(metadata=record(model=None))], "none of its 1 flows is an inference request that this balancer routed"),
        ([flow(metadata=record(outcome="failed"))], "no request in it was served by a host"),
        ([flow(metadata=record(agent="a")), flow(metadata=record(agent="f" * 65))], None),
    ],
)
def test_where_nothing_can_be_simulated_one_line_says_why_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, words: str | None
) -> None:
    path = tmp_path / "flows"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, content)
    status = main([str(path)])
    out, err = capsys.readouterr()
    if words is None:
        assert (status, err) == (0, "")
        return
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert "save flows with: mitmdump -s addon/balancer.py -w FILE" in err


def test_a_damaged_file_is_warned_of_and_the_rest_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = write(tmp_path / "cut", [flow(0), flow(1)])
    cut.write_bytes(cut.read_bytes()[:-1])
    assert main([str(cut), str(tmp_path / "missing"), "--modes", "metrics"]) == 0
    out, err = capsys.readouterr()
    assert "Read 1 flow: 1 request" in out
    assert [line.startswith("lab: warning: ") for line in err.splitlines()] == [True, True]


@pytest.mark.parametrize(
    "arguments",
    ["", "f --modes best", "f --modes ,", "f --load 0", "f --load nan", "f --slots -1", "f --patience never"],
)
def test_a_wrong_argument_is_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.dictionaries(st.sampled_from(sorted(record())), JSON, max_size=4), max_size=4))
def test_whatever_the_records_hold_there_is_a_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    flows = [flow(n, metadata=record(**fields)) for n, fields in enumerate(records)]
    report = experiment([write(tmp_path / "flows", [*flows, flow(9)])], ["adaptive"], Settings())
    assert report.as_text()
    value = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert value["modes"]["adaptive"]["requests"] == value["recorded"]["requests"] >= 1
