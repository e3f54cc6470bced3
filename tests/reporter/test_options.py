from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_reporter.limits import NAME_PATTERN
from agent_reporter.options import DEFAULT_BALANCER, Options, fit_name, parse_options

TOKEN = {"OLLAMA_BALANCER_TOKEN": "from-environment"}


def options(*arguments: str, **environ: str) -> Options:
    return parse_options(arguments, TOKEN | environ)


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("gpu-box-1", "gpu-box-1"),
        ("gpu.example.org", "gpu.example.org"),
        ("Büro PC", "Buro-PC"),
        ("-odd-", "odd"),
        ("", "ollama-host"),
        ("日本", "ollama-host"),
        ("x" * 80, "x" * 64),
        ("host\n", "host"),
    ],
)
def test_a_hostname_is_made_to_fit(hostname: str, name: str) -> None:
    assert fit_name(hostname) == name


@given(st.text(max_size=100))
def test_every_hostname_gives_a_name_that_fits(hostname: str) -> None:
    assert re.fullmatch(NAME_PATTERN, fit_name(hostname))


def test_without_options_the_local_balancer_and_the_local_ollama_are_used() -> None:
    read = options()
    assert [balancer.url for balancer in read.balancers] == [DEFAULT_BALANCER]
    assert read.ollama.url == "http://127.0.0.1:11434"
    assert read.interval == 10
    assert read.advertise is None
    assert re.fullmatch(NAME_PATTERN, read.name)
    assert not read.once
    assert not read.print


def test_balancers_come_from_the_options_else_from_the_environment_each_once() -> None:
    environ = {"OLLAMA_BALANCER_URL": "http://a:1, b ,,http://a:1"}
    assert [balancer.url for balancer in options(**environ).balancers] == ["http://a:1", "http://b:8080"]
    given_both = options("--balancer", "http://c", "--balancer", "https://d:9/", **environ)
    assert [balancer.url for balancer in given_both.balancers] == ["http://c:80", "https://d:9"]


def test_the_ollama_option_goes_before_its_environment_variable() -> None:
    assert options(OLLAMA_HOST=":11500").ollama.url == "http://127.0.0.1:11500"
    assert options("--ollama", "http://127.0.0.1:1", OLLAMA_HOST=":11500").ollama.port == 1


def test_a_token_comes_from_its_option_then_its_file_then_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    by_option = options("--token", "from-option").token
    by_file = options("--token-file", str(file)).token
    by_environ = options().token
    assert by_option is not None
    assert by_file is not None
    assert by_environ is not None
    assert (by_option.value, by_option.source) == ("from-option", "--token")
    assert (by_file.value, by_file.source) == ("from-file", f"--token-file {file}")
    assert (by_environ.value, by_environ.source) == ("from-environment", "$OLLAMA_BALANCER_TOKEN")
    assert parse_options([], {}).token is None


def test_a_token_does_not_show_in_the_representation_of_the_options() -> None:
    assert "from-environment" not in repr(options())


@pytest.mark.parametrize(
    ("arguments", "environ", "complaint"),
    [
        (["--interval", "0"], {}, "--interval must be a number of seconds from 0.1"),
        (["--interval", "nan"], {}, "--interval"),
        (["--interval", "soon"], {}, "--interval"),
        (["--name", "two words"], {}, "--name must be"),
        (["--name", "trailing\n"], {}, "--name must be"),
        (["--balancer", "ftp://a"], {}, "--balancer must begin with"),
        (["--balancer", ""], {}, "--balancer must be http://host:port"),
        ([], {"OLLAMA_BALANCER_URL": "http://a:x"}, "OLLAMA_BALANCER_URL must have a port"),
        (["--ollama", "a/b"], {}, "--ollama must be"),
        ([], {"OLLAMA_HOST": "a b"}, "OLLAMA_HOST must have a host"),
        (["--advertise", "10.0.0.1:11434"], {}, "--advertise must be http://host:port"),
        (["--token", "a", "--token-file", "b"], {}, "not both"),
        (["--token-file", "/nowhere/at/all"], {}, "--token-file: can't read /nowhere/at/all: No such file"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(arguments: list[str], environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_options(arguments, TOKEN | environ)


@pytest.mark.parametrize(
    "arguments",
    [["--token", "s3cret word"], ["--token", "s3cr\u00e8t"], ["--tokn", "s3cret"], ["--tokn=s3cret"], ["s3cret"]],
)
def test_an_error_about_a_token_does_not_repeat_it(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"token|unknown option|only options") as caught:
        parse_options(arguments, TOKEN)
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"two words", b"x" * 5000, b"\xff\xfe"])
def test_a_token_file_that_holds_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="--token-file"):
        options("--token-file", str(file))


def test_print_needs_no_token() -> None:
    assert parse_options(["--print"], {"OLLAMA_BALANCER_TOKEN": ""}).print
