from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ollama_balancer.storage import token as credentials


@pytest.fixture(autouse=True)
def no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(credentials.ENVIRONMENT, raising=False)


def test_a_token_is_made_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    confdir = tmp_path / "not" / "there" / "yet"
    token = credentials.load("", str(confdir))
    path = confdir / credentials.FILE_NAME
    assert token.file == path
    assert path.read_text() == token.value + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token.value) >= 32
    assert credentials.load("", str(confdir)) == token
    assert list(confdir.iterdir()) == [path]


def test_two_places_get_two_tokens(tmp_path: Path) -> None:
    assert credentials.load("", str(tmp_path / "a")).value != credentials.load("", str(tmp_path / "b")).value


def test_starts_that_race_agree_on_one_token(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    tokens: list[str] = []

    def start() -> None:
        barrier.wait()
        tokens.append(credentials.load("", str(tmp_path)).value)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 8
    assert len(set(tokens)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_who_comes_second_takes_the_token_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / credentials.FILE_NAME
    path.write_text("the-first-one\n")
    monkeypatch.setattr(Path, "exists", lambda self: False)  # it looked a moment before
    assert credentials.load("", str(tmp_path)).value == "the-first-one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_option_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(credentials.ENVIRONMENT, "from-environment")
    assert credentials.load("from-option", str(tmp_path)) == credentials.Token("from-option")
    assert credentials.load("", str(tmp_path)) == credentials.Token("from-environment")
    places = [credentials.load(option, str(tmp_path)).place for option in ("from-option", "")]
    assert places == [
        "The token is the value of the option balancer_token on the balancer's machine.",
        "The token is the value of the environment variable OLLAMA_BALANCER_TOKEN on the balancer's machine.",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("token", ["short", "has a blank in it", "ümlautümlaut", "x" * 513, "new\nline-inside", " \t "])
def test_an_unusable_token_is_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    with pytest.raises(ValueError, match="8 to 512 visible ASCII") as refused:
        credentials.load(token, str(tmp_path))
    assert token not in str(refused.value)
    monkeypatch.setenv(credentials.ENVIRONMENT, token)
    with pytest.raises(ValueError, match=rf"\${credentials.ENVIRONMENT}") as refused:
        credentials.load("", str(tmp_path))
    assert token not in str(refused.value)


@pytest.mark.parametrize("content", ["", "\n", "short\n", "two words are bad\n"])
def test_a_file_without_a_usable_token_is_named_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / credentials.FILE_NAME
    path.write_text(content)
    with pytest.raises(ValueError, match=credentials.FILE_NAME) as refused:
        credentials.load("", str(tmp_path))
    assert content.strip() == "" or content.strip() not in str(refused.value)
    assert path.read_text() == content


def test_blanks_around_a_token_do_not_count(tmp_path: Path) -> None:
    (tmp_path / credentials.FILE_NAME).write_text("  some-token-1 \r\n")
    assert credentials.load("", str(tmp_path)).value == "some-token-1"
    assert credentials.check(" some-token-2\n") == "some-token-2"


def test_a_place_where_nothing_can_be_written_is_an_os_error(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(OSError, match="file"):
        credentials.load("", str(in_the_way))


def test_a_token_matches_itself_only_and_does_not_show_itself() -> None:
    token = credentials.Token("some-token")
    assert token.matches("some-token")
    for other in ("", "some-toke", "some-token ", "some-tokeñ", "\udcff"):
        assert not token.matches(other)
    assert "some-token" not in repr(token)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_file_that_others_may_read_is_closed_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    path = tmp_path / credentials.FILE_NAME
    path.write_text("some-token-1\n")
    path.chmod(mode)
    assert credentials.load("", str(tmp_path)).value == "some-token-1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"could be read by other users (mode 0{mode:o})" in caplog.text
    assert "some-token-1" not in caplog.text
    caplog.clear()
    credentials.load("", str(tmp_path))
    assert caplog.text == ""


@pytest.mark.parametrize("aim", ["there", "gone"])
def test_a_link_to_a_token_is_not_followed(tmp_path: Path, aim: str) -> None:
    (tmp_path / "there").write_text("some-token-1\n")
    (tmp_path / credentials.FILE_NAME).symlink_to(tmp_path / aim)
    with pytest.raises(OSError, match="it is a symbolic link, which is not followed"):
        credentials.load("", str(tmp_path))


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / credentials.FILE_NAME)
    with pytest.raises(OSError, match="it is not a regular file"):
        credentials.load("", str(tmp_path))


@pytest.mark.parametrize("around", [b"%b", b'"%b"', b"x%b", b"%bx", b"\xff%b\x00", b"a" * 100_000 + b"%b"])
def test_a_token_is_found_wherever_it_is(around: bytes) -> None:
    for value in ("some-token", "aaaaaaaa", "aabaabaab"):
        token = credentials.Token(value)
        assert token.is_in(around.replace(b"%b", value.encode()))
        assert not token.is_in(around.replace(b"%b", value[:-1].encode() + b"!").replace(b"a" * 100_000, b""))
