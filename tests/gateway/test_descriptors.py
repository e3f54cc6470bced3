from __future__ import annotations

import asyncio
import errno
import logging
import os

import pytest

from ollama_balancer.gateway.descriptors import QuietAccept, is_local_failure, most_clients


def chained() -> Exception:
    try:
        try:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        except OSError as e:
            raise RuntimeError("all connection attempts failed") from e
    except RuntimeError as e:
        return e


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENFILE, "Too many open files in system"),
        OSError(errno.EADDRNOTAVAIL, "no port left"),
        chained(),
        ExceptionGroup("several", [OSError(errno.ECONNREFUSED, "refused"), OSError(errno.EMFILE, "no more")]),
        str(OSError(errno.EMFILE, "Too many open files")),
        "Multiple exceptions: [Errno 111] Connect call failed, [Errno 24] Too many open files"
        if errno.EMFILE == 24
        else f"[Errno {errno.EMFILE}]",
    ],
)
def test_what_this_machine_lacks_is_told_from_what_another_does(error: Exception | str) -> None:
    assert is_local_failure(error)


@pytest.mark.parametrize(
    "error",
    [
        None,
        "",
        "timeout",
        "[Errno 111] Connect call failed ('10.0.0.24', 24)",
        OSError(errno.ECONNREFUSED, "refused"),
        TimeoutError(),
        ExceptionGroup("several", [OSError(errno.ECONNREFUSED, "refused")]),
    ],
)
def test_what_another_does_is_not_ours(error: Exception | str | None) -> None:
    assert not is_local_failure(error)


@pytest.mark.parametrize("limit", [64, 200, 256, 1024, 4096, 524_288, 1_048_576])
def test_clients_leave_descriptors_for_their_hosts_and_for_the_api(limit: int) -> None:
    clients = most_clients(limit)
    assert clients >= 8
    if limit >= 200:
        assert 2 * clients <= limit - 64
        assert clients >= limit / 4 or limit < 256


def test_a_flood_of_refused_accepts_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    now = 0.0
    others: list[str] = []
    loop.set_exception_handler(lambda loop, context: others.append(context["message"]))
    quiet = QuietAccept(loop, lambda: now)
    refused = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(errno.EMFILE, "Too many open files"),
    }
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            loop.call_exception_handler(refused)
        now = 61.0
        loop.call_exception_handler(refused)
        loop.call_exception_handler({"message": "else", "exception": OSError(errno.EMFILE, "no more")})
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "ulimit -n" in caplog.text
    assert others == ["else"]
    quiet.restore()
    loop.call_exception_handler(refused)
    assert others == ["else", refused["message"]]
    loop.close()
