"""`--join`: a code becomes this host's own key, which is kept, and used as long as it is valid."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent_reporter.addresses import parse_endpoint
from agent_reporter.http import Answer, ConnectError
from agent_reporter.joining import JoinError, join
from agent_reporter.options import JOIN_CODE, parse_options
from tests.reporter.stubs import Program

BALANCER = parse_endpoint("http://balancer:8080", default_port=80)
CODE, SECRET = "join_code", "ob_" + "s" * 43


class Stub:
    """What a balancer answers to each credential."""

    def __init__(self, **answers: tuple[int, object]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, object]] = []

    async def call(self, method: str, url: str, *, content: bytes, headers: dict[str, str], **_: Any) -> Answer:
        assert (method, url) == ("POST", "http://balancer:8080/api/join")
        credential = headers["Authorization"].removeprefix("Bearer ")
        self.asked.append((credential, json.loads(content)))
        if credential not in self.answers:
            raise ConnectError("connection refused")
        status, body = self.answers[credential]
        return Answer(status, body if isinstance(body, bytes) else json.dumps(body).encode())


def run(stub: Stub, file: Path, code: str = CODE) -> tuple[str, str]:
    name, token = asyncio.run(join(BALANCER, file, code, "own-name", stub.call))
    assert str(file) in token.source
    return name, token.value


JOINED = {"name": "gpu-1", "key": "host@gpu-1", "secret": SECRET}
KNOWN = {"name": "gpu-1", "key": "host@gpu-1", "secret": None}


def test_a_code_becomes_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "key"
    stub = Stub(**{CODE: (201, JOINED)})
    assert run(stub, file) == ("gpu-1", SECRET)
    assert stub.asked == [(CODE, {"name": "own-name"})]
    assert file.read_text() == f"{SECRET}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_who_has_joined_keeps_name_and_key_and_uses_no_code(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(SECRET)
    for code in (CODE, ""):
        stub = Stub(**{SECRET: (200, KNOWN), CODE: (201, JOINED)})
        assert run(stub, file, code) == ("gpu-1", SECRET)
        assert [credential for credential, _ in stub.asked] == [SECRET]


@pytest.mark.parametrize("kept", ["ob_old", "", "not a key"])
def test_a_key_that_is_no_longer_valid_is_replaced_by_a_code(tmp_path: Path, kept: str) -> None:
    file = tmp_path / "key"
    file.write_text(kept)
    stub = Stub(ob_old=(401, {"error": "unknown"}), **{CODE: (201, JOINED)})
    assert run(stub, file) == ("gpu-1", SECRET)
    assert file.read_text() == f"{SECRET}\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": f"{CODE} has been used"}), r"\(401\): \[code\] has been used"),
        ((500, b"<html>"), r"\(500\): no reason"),
        ((201, {"name": "gpu-1", "secret": None}), "it gave no key"),
        ((201, {"name": "gpu-1", "secret": "two\nlines"}), "none of a balancer"),
        ((201, {"name": "../x", "secret": SECRET}), "none of a balancer"),
        ((201, b"[" * 100_000), "none of a balancer"),
        (None, r"does not answer \(connection refused\)"),
    ],
)
def test_what_goes_wrong_is_said_without_the_code(tmp_path: Path, answer: Any, said: str) -> None:
    file = tmp_path / "key"
    with pytest.raises(JoinError, match=said) as raised:
        run(Stub(**({} if answer is None else {CODE: answer})), file)
    assert CODE not in str(raised.value)
    assert not file.exists()


def test_without_a_code_it_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="'ollama-balancer join-code' on the balancer's machine"):
        run(Stub(), tmp_path / "key", "")
    (tmp_path / "key").write_text("ob_old")
    with pytest.raises(JoinError, match="no longer accepts this host's key"):
        run(Stub(ob_old=(401, {})), tmp_path / "key", "")


def test_a_code_is_not_used_up_where_its_key_could_not_be_kept(tmp_path: Path) -> None:
    stub = Stub(**{CODE: (201, JOINED)})
    (tmp_path / "file").write_text("")
    for file in (tmp_path, tmp_path / "file" / "key"):
        with pytest.raises(JoinError, match="--join: can't"):
            run(stub, file)
    assert stub.asked == []


def test_the_option_stands_for_a_token(tmp_path: Path) -> None:
    own = ("--balancer", "http://b:1", "--join", str(tmp_path / "key"))
    options = parse_options(own, {JOIN_CODE: f" {CODE}\n", "OLLAMA_BALANCER_TOKEN": "t"})
    assert (options.join, options.join_code, options.token) == (tmp_path / "key", CODE, None)
    for more in (("--token", "t"), ("--token-file", "f"), ("--balancer", "http://c:1"), ("--discover",), ("--print",)):
        with pytest.raises(ValueError, match="--join"):
            parse_options((*own, *more), {})
    with pytest.raises(ValueError, match="--join"):
        parse_options(own[2:], {})


@pytest.mark.e2e
def test_a_program_that_has_not_joined_ends_with_1(tmp_path: Path) -> None:
    program = Program(
        ["--balancer", "http://127.0.0.1:9", "--join", str(tmp_path / "key")], tmp_path, **{JOIN_CODE: CODE}
    )
    try:
        assert program.wait() == 1
    finally:
        program.close()
    assert "ERROR the balancer at http://127.0.0.1:9 does not answer" in program.err
    assert CODE not in program.err
    assert os.listdir(tmp_path) == []
