from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_balancer.ollama.management import (
    MAX_LINE_BYTES,
    LineSplitter,
    Reply,
    Unavailable,
    combine,
    error_message,
    last_line,
    line_of,
    read_line,
)

GONE = Reply("gone", 404, body=b'{"error":"model not found"}')
BROKEN = Reply("broken", 500, body=b'{"error":"disk full"}', problem="disk full")
AWAY = Reply("away", None, problem="refused")


def done(name: str, status: int = 200) -> Reply:
    return Reply(name, status)


def test_it_is_done_if_one_did_it_and_the_others_lack_the_model() -> None:
    combined = combine([GONE, done("a"), GONE])
    assert (combined.status, combined.reply) == (200, done("a"))


def test_a_file_that_one_lacks_is_not_there() -> None:
    assert combine([done("a"), GONE], require_all=True).status == 404
    assert combine([done("a"), done("b")], require_all=True).status == 200


def test_what_was_new_to_one_is_new() -> None:
    assert combine([done("a"), done("b", 201)]).status == 201


def test_it_is_a_404_in_the_words_of_an_agent_if_none_has_it() -> None:
    assert combine([GONE, GONE]).reply is GONE


@pytest.mark.parametrize(("failed", "status", "reason"), [(BROKEN, 500, "disk full"), (AWAY, 502, "refused")])
def test_a_failure_names_who_failed_though_others_did_it(failed: Reply, status: int, reason: str) -> None:
    combined = combine([done("a"), failed, GONE, done("b")])
    assert combined.status == status
    assert combined.reply is None
    assert combined.message == f"{failed.agent}: {reason} (succeeded on 2 other agents)"


def test_a_failure_that_all_have_alike_is_told_in_their_words() -> None:
    assert combine([BROKEN, BROKEN]).reply is BROKEN
    assert combine([BROKEN, Reply("b", 500, body=b"else", problem="else")]).message == "broken: disk full; b: else"
    assert combine([AWAY, AWAY]).message == "away: refused; away: refused"


OFFLINE = Reply("off", 503, problem="it is offline and still has model 'm'")


def test_without_an_agent_that_has_it_and_is_away_a_model_is_not_deleted() -> None:
    required = Unavailable((OFFLINE,), required=True)
    for replies, said in (
        ([GONE, GONE], "off: it is offline and still has model 'm'"),
        ([done("a"), GONE], "off: it is offline and still has model 'm' (succeeded on 1 other agent)"),
        ([BROKEN], "broken: disk full; off: it is offline and still has model 'm'"),
    ):
        combined = combine(replies, unavailable=required)
        assert (combined.status, combined.message) == (500 if BROKEN in replies else 503, said)


def test_an_agent_that_is_away_only_tells_why_none_could_do_what_the_others_can_do_alone() -> None:
    away = Unavailable((OFFLINE,))
    assert combine([done("a"), GONE], unavailable=away).status == 200
    assert combine([GONE], unavailable=away).status == 503
    assert json.loads(last_line([done("a")], away)) == {"status": "success"}
    assert json.loads(last_line([BROKEN], away)) == {
        "error": "broken: disk full; off: it is offline and still has model 'm'"
    }


def test_of_many_failures_some_are_told() -> None:
    message = combine([Reply(f"a{n}", 500, body=b"%d" % n, problem="x") for n in range(1000)]).message
    assert message is not None
    assert message.endswith("; and 990 more")
    assert len(message) < 200


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=20))
def test_lines_do_not_depend_on_how_they_come(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    splitter = LineSplitter()
    lines = [line for a, b in pairwise(places) for line in splitter.feed(data[a:b])]
    assert b"".join(lines) + splitter.rest() == data
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert lines == LineSplitter().feed(data)


def test_a_line_without_end_is_cut() -> None:
    splitter = LineSplitter()
    pieces = [line for _ in range(40) for line in splitter.feed(bytes(MAX_LINE_BYTES))]
    assert len(pieces) == 2
    assert max(map(len, pieces)) == 17 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"status":"pulling","digest":"d","total":5}\n', {"status": "pulling", "digest": "d", "total": 5}),
        (b'{"status":"success"}\n', {"status": "done"}),
        (b'{"error":"no such host"}\n', {"status": "failed: no such host"}),
        (b"garbage\xff\n", {"status": "garbage\ufffd"}),
        (b'["no object"]\n', {"status": '["no object"]'}),
        (b'{"agent":"forged","status":"x"}\n', {"status": "x"}),
    ],
)
def test_a_line_says_whose_it_is_and_is_never_taken_for_the_end(line: bytes, told: dict[str, object]) -> None:
    whole = line_of("a", line, read_line(line))
    assert whole.endswith(b"\n")
    assert json.loads(whole) == told | {"agent": "a"}


def test_the_last_line_is_success_or_an_error() -> None:
    failed = Reply("b", 200, problem="no such host")
    assert json.loads(last_line([done("a"), done("b")])) == {"status": "success"}
    assert json.loads(last_line([done("a"), failed])) == {"error": "b: no such host (succeeded on 1 other agent)"}
    assert json.loads(last_line([failed])) == {"error": "b: no such host"}
    assert json.loads(last_line([done("a"), GONE])) == {"status": "success"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":"x"}', "x"),
        (b'{"error":{"message":"x"}}', "x"),
        (b'{"error":5}', None),
        (b"<html>", None),
        (b"", None),
        (b'{"error":"' + b"x" * 1000 + b'"}', "x" * 500),
    ],
)
def test_an_errors_message_is_found_in_each_protocol(body: bytes, message: str | None) -> None:
    assert error_message(body) == message
