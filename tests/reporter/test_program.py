"""The program as a process, against real servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent_reporter.wire import AgentMetrics

from .stubs import TOKEN, StubBalancer, StubOllama, free_port, program, wait_until

pytestmark = pytest.mark.e2e

FAST = ["--interval", "0.1", "--name", "host-1"]
GIVEN = {"OLLAMA_BALANCER_TOKEN": TOKEN}

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")


def at(*balancers: StubBalancer) -> list[str]:
    return [word for balancer in balancers for word in ("--balancer", balancer.url)]


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_registers_and_reports_and_drains_on_a_signal(tmp_path: Path, number: int) -> None:
    with StubBalancer() as balancer, StubOllama() as ollama:
        with program([*FAST, *at(balancer), "--ollama", ollama.url], tmp_path, **GIVEN) as reporter:
            wait_until(lambda: len(balancer.reports) >= 3, "three reports came")
            assert reporter.terminate(number) == 0
        assert [(r.name, r.url, r.port) for r in balancer.registrations] == [("host-1", None, ollama.port)]
        assert balancer.drains == [{"until": "registration"}]
        assert balancer.wrong == []
        report = balancer.reports[-1]
        assert report.ollama_ok is True
        assert report.ollama_version == "0.33.0"
        assert [model.name for model in report.models or []] == ["tiny:latest"]
        assert reporter.out == ""
        lines = reporter.err.splitlines()
        assert len(lines) == 2
        assert f"reporting every 0.1 s to balancer {balancer.url} as host-1" in lines[0]
        assert f"drained at balancer {balancer.url}" in lines[1]


def test_it_registers_the_advertised_url(tmp_path: Path) -> None:
    with StubBalancer() as balancer:
        arguments = ["--once", *at(balancer), "--advertise", "http://10.0.0.9:11434"]
        with program(arguments, tmp_path, **GIVEN) as reporter:
            assert reporter.wait() == 0
        assert balancer.registrations[0].url == "http://10.0.0.9:11434"


def test_it_registers_anew_when_a_balancer_has_forgotten_it(tmp_path: Path) -> None:
    with StubBalancer() as balancer, program([*FAST, *at(balancer)], tmp_path, **GIVEN) as reporter:
        wait_until(lambda: balancer.reports, "a report came")
        balancer.forget()
        wait_until(lambda: len(balancer.registrations) >= 2, "it registered anew")
        seen = len(balancer.reports)
        wait_until(lambda: len(balancer.reports) > seen, "it reports again")
        assert reporter.err.count("no longer knows this agent") == 1


def test_a_balancer_that_starts_late_or_comes_back_is_reported_to(tmp_path: Path) -> None:
    balancer = StubBalancer(free_port())
    with program([*FAST, *at(balancer)], tmp_path, **GIVEN) as reporter:
        wait_until(
            lambda: "does not answer (connection refused); trying again" in reporter.err, "it is said to be away"
        )
        with balancer:
            wait_until(lambda: reporter.err.count("reporting every") == 1, "it says that it reports")
        away = f"balancer {balancer.url} does not answer"
        wait_until(lambda: reporter.err.count(away) == 2, "it is said to be away again")
        seen = len(balancer.reports)
        with balancer:
            wait_until(lambda: reporter.err.count("reporting every") == 2, "it says that it reports again")
        assert len(balancer.reports) > seen


def test_a_dead_balancer_keeps_no_report_from_a_live_one(tmp_path: Path) -> None:
    dead = StubBalancer(free_port())
    with StubBalancer() as balancer:
        with program([*FAST, *at(dead, balancer)], tmp_path, **GIVEN):
            wait_until(lambda: len(balancer.reports) >= 3, "three reports came")
        with program(["--once", *at(dead, balancer)], tmp_path, **GIVEN) as reporter:
            assert reporter.wait() == 1
        assert f"balancer {dead.url} does not answer" in reporter.err


def test_a_refused_token_names_its_source_and_is_tried_until_it_is_taken(tmp_path: Path) -> None:
    with StubBalancer() as balancer:
        balancer.token = "another"
        with program([*FAST, *at(balancer)], tmp_path, **GIVEN) as reporter:
            wait_until(lambda: "refused the token (401): check $OLLAMA_BALANCER_TOKEN" in reporter.err, "it is said")
            balancer.token = TOKEN
            wait_until(lambda: balancer.reports, "a report came")
            assert reporter.err.count("refused the token") == 1


def test_once_exits_with_1_when_the_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "my-token"
    file.write_text(TOKEN)
    with StubBalancer() as balancer:
        balancer.token = "another"
        with program(["--once", *at(balancer), "--token-file", str(file)], tmp_path) as reporter:
            assert reporter.wait() == 1
    assert f"check --token-file {file}" in reporter.err


def test_once_registers_and_reports_to_each_balancer_once_and_exits_with_0(tmp_path: Path) -> None:
    with StubBalancer() as first, StubBalancer() as second:
        with program(["--once", "--name", "host-1", "--token", TOKEN, *at(first, second)], tmp_path) as reporter:
            assert reporter.wait() == 0
        for balancer in (first, second):
            assert [registration.name for registration in balancer.registrations] == ["host-1"]
            assert len(balancer.reports) == 1
            assert balancer.drains == []


def test_a_balancer_that_refuses_the_report_makes_once_fail_with_its_words(tmp_path: Path) -> None:
    with StubBalancer() as balancer:
        balancer.refuse["metrics"] = (400, {"error": f"cpu_usage: out of range {TOKEN}"})
        with program(["--once", *at(balancer)], tmp_path, **GIVEN) as reporter:
            assert reporter.wait() == 1
    assert "answered the report with status 400: cpu_usage: out of range [token]" in reporter.err


def test_print_writes_one_report_as_json_and_needs_no_balancer_and_no_token(tmp_path: Path) -> None:
    with StubOllama() as ollama:
        with program(["--print"], tmp_path, OLLAMA_HOST=f"0.0.0.0:{ollama.port}") as reporter:
            assert reporter.wait() == 0
        assert reporter.err == ""
    report = AgentMetrics.model_validate(json.loads(reporter.out))
    assert report.ollama_ok is True
    assert [model.name for model in report.loaded_models or []] == ["tiny:latest"]


@needs_signals
def test_print_ends_quietly_when_its_reader_has_left() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with StubOllama() as ollama:
        command = [sys.executable, "-m", "agent_reporter", "--print", "--ollama", ollama.url]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_once_and_print_together_report_and_show_what_was_reported(tmp_path: Path) -> None:
    with StubBalancer() as balancer, StubOllama() as ollama:
        arguments = ["--once", "--print", "--name", "host-1", *at(balancer), "--ollama", ollama.url]
        with program(arguments, tmp_path, **GIVEN) as reporter:
            assert reporter.wait() == 0
        assert balancer.reports == [AgentMetrics.model_validate(json.loads(reporter.out))]
        assert "reported to" in reporter.err
        with program(["--once", "--print", *at(balancer)], tmp_path) as reporter:
            assert reporter.wait() == 2
        assert "no token" in reporter.err
    with program(["--once", "--print", "--balancer", f"127.0.0.1:{free_port()}"], tmp_path, **GIVEN) as reporter:
        assert reporter.wait() == 1
    assert "cpu_usage" in json.loads(reporter.out)


def test_a_dead_ollama_is_reported_as_such_and_said_once(tmp_path: Path) -> None:
    arguments = [*FAST, "--ollama", f"127.0.0.1:{free_port()}"]
    with StubBalancer() as balancer, program([*arguments, *at(balancer)], tmp_path, **GIVEN) as reporter:
        wait_until(lambda: len(balancer.reports) >= 3, "three reports came")
        assert {report.ollama_ok for report in balancer.reports} == {False}
        assert reporter.err.count("does not answer (connection refused); it is reported as down") == 1


def test_a_connection_to_the_ollama_port_is_an_active_request_unless_the_balancer_is_here(tmp_path: Path) -> None:
    with StubOllama() as ollama:
        for balancer, expected in (("http://192.0.2.1:8080", 1), ("http://127.0.0.1:8080", 0)):
            with (
                socket.create_connection(("127.0.0.1", ollama.port)),
                program(["--print", "--balancer", balancer, "--ollama", ollama.url], tmp_path) as reporter,
            ):
                assert reporter.wait() == 0
            assert json.loads(reporter.out)["active_requests"] == expected


def test_the_token_that_a_balancer_of_this_host_keeps_is_used(tmp_path: Path) -> None:
    (tmp_path / ".mitmproxy").mkdir()
    (tmp_path / ".mitmproxy" / "ollama-balancer-token").write_text(f"{TOKEN}\n")
    with StubBalancer() as balancer:
        with program(["--once", *at(balancer)], tmp_path) as reporter:
            assert reporter.wait() == 0
        assert len(balancer.reports) == 1
    with program(["--once", "--balancer", "http://192.0.2.1:8080"], tmp_path) as reporter:
        assert reporter.wait() == 2
    assert "http://192.0.2.1:8080 is not on this host" in reporter.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--once"], "no token ("),
        (["--interval", "never"], "error: --interval must be a number of seconds"),
        (["--balancer", "ftp://x"], "error: --balancer must begin with http:// or https://"),
        (["--print", "--install"], "error: --print goes with --once or alone"),
        (["--tokne", TOKEN], "error: unknown option: --tokne"),
        (["--token", f"{TOKEN} {TOKEN}"], "error: --token: the token must be printable ASCII"),
    ],
)
def test_a_wrong_option_or_no_token_ends_it_with_a_word_on_what_to_do(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    with program(arguments, tmp_path) as reporter:
        assert reporter.wait() == 2
    assert said in reporter.err
    assert "Traceback" not in reporter.err


def test_help_names_every_option(tmp_path: Path) -> None:
    with program(["--help"], tmp_path) as reporter:
        assert reporter.wait() == 0
    modes = ("once", "print", "install", "uninstall")
    for option in ("balancer", "token", "token-file", "name", "ollama", "advertise", "interval", "yes", *modes):
        assert f"--{option}" in reporter.out
