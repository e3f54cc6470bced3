"""Starts mitmproxy's programs without the second of CPU time that their imports take.

Run as a program it imports mitmproxy and the balancer, and forks itself for each program that is asked for. The child
runs what the program's own script would run, with an environment, a directory, standard streams and signals of its own.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

MODULES = (
    "mitmproxy.tools.main",
    "mitmproxy.tools.dump",
    "mitmproxy.tools.web.master",
    "ollama_balancer.mitm.addons",
    "ollama_balancer.hosts.prober",
    "ollama_balancer.api.app",
    "httpcore",
    "anyio._backends._asyncio",
)


class Forked:
    """A child of the zygote, with the methods of a `subprocess.Popen` that tests use."""

    def __init__(self, arguments: list[str], stdout: IO[str], status: int) -> None:
        self.args = arguments
        self.stdout = stdout
        self.returncode: int | None = None
        self._status = open(status, encoding="ascii")  # noqa: SIM115 - open for as long as the child lives
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._look(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def available() -> bool:
    return sys.platform == "linux"


def start(arguments: list[str], env: dict[str, str], cwd: Path) -> Forked:
    """As `subprocess.Popen` does with both outputs in one pipe."""
    output, its_output = os.pipe()
    status, its_status = os.pipe()
    try:
        request = json.dumps({"arguments": arguments, "env": env, "cwd": str(cwd)}).encode()
        _zygote(os.getpid()).sendmsg(
            [request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [its_output, its_status]))]
        )
    finally:
        os.close(its_output)
        os.close(its_status)
    return Forked(arguments, open(output, encoding="utf-8"), status)


@functools.cache
def _zygote(_owner: int) -> socket.socket:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())],
            pass_fds=[its.fileno()],
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> None:
    for module in MODULES:
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and these end this
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        if not message:
            return
        output, status = descriptors
        if os.fork() == 0:
            requests.close()
            _attend(json.loads(message), output, status)
        os.close(output)
        os.close(status)


def _attend(request: dict[str, Any], output: int, status: int) -> None:
    """Between the zygote and the program: tells the program's number, waits for it and tells how it ended."""
    child = os.fork()
    if child == 0:
        os.close(status)
        _become(request, output)
    os.close(output)
    os.write(status, b"%d\n" % child)
    _, ended = os.waitpid(child, 0)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
    os._exit(0)


def _become(request: dict[str, Any], output: int) -> None:
    from mitmproxy.tools import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.argv = request["arguments"]
    sys.path[0] = str(Path(sys.executable).parent)
    code = 1
    try:
        getattr(main, Path(sys.argv[0]).name)()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        os._exit(code)  # without taking down all that was imported, object by object


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
