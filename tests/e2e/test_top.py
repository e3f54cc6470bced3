"""The fleet in a terminal, as people start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_balancer.cli.top import ENTER, LEAVE
from tests.e2e.harness import Hosts, environment, free_port, running_proxy, wait_until

PROGRAM = [sys.executable, "-m", "ollama_balancer.cli.top"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_it_shows_what_goes_on_until_it_is_interrupted(tmp_path: Path, hosts: Hosts) -> None:
    import pty

    one = hosts.start("one")
    with running_proxy(tmp_path, "--set", f"balancer_agents=gpu-1={one.url}") as proxy:
        proxy.wait_online("gpu-1")
        ours, theirs = pty.openpty()
        top = subprocess.Popen(
            [*PROGRAM, "--balancer", proxy.url, "--interval", "0.1"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(TERM="xterm", COLUMNS="150", LINES="30"),
            # In the background of a shell the tests ignore Ctrl-C, and would have the program do so.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        seen = ""

        def shows(pattern: str) -> bool:
            nonlocal seen
            seen += os.read(ours, 65536).decode()
            return re.search(pattern, seen) is not None

        try:
            wait_until(lambda: shows(r"gpu-1 +online"), "the host is shown")
            proxy.generate()
            wait_until(lambda: shows(r"succeeded +llama3\.2 → gpu-1"), "the request is shown")
            top.send_signal(signal.SIGINT)
            wait_until(lambda: shows(re.escape(LEAVE)), "the terminal is as it was")
            assert top.wait(30) == 0
            assert seen.startswith(ENTER)
            assert seen.rstrip().endswith(LEAVE)
        finally:
            top.kill()
            top.wait()
            os.close(ours)


def test_into_a_pipe_it_prints_once(tmp_path: Path, hosts: Hosts) -> None:
    one, two = hosts.start("one"), hosts.start("two")
    with running_proxy(tmp_path, "--set", f"balancer_agents=gpu-1={one.url},gpu-2={two.url}") as proxy:
        proxy.wait_online("gpu-1", "gpu-2")
        command = [*PROGRAM, "--balancer", proxy.url.removeprefix("http://"), "--filter", "gpu-2"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
        assert "mode adaptive: 2 online" in told
        assert "gpu-2" in told
        assert "gpu-1" not in told
        assert "\x1b" not in told


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--balancer", "http://127.0.0.1:{port}"], 1, "http://127.0.0.1:{port}: it does not answer"),
        (["--interval", "0"], 2, "--interval takes a number of seconds"),
        (["--sort", "colour"], 2, "--sort: invalid choice"),
        (["--balancer", "http://[::1"], 2, "--balancer: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], status: int, says: str) -> None:
    port = str(free_port())
    command = [*PROGRAM, *(argument.replace("{port}", port) for argument in arguments)]
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert told.returncode == status
    assert says.replace("{port}", port) in told.stderr
    assert "Traceback" not in told.stderr
