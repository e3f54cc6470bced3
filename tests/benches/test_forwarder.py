"""The bench's forwarder passes bytes on in both directions, and the end of a connection."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

FORWARDER = Path(__file__).parents[2] / "benches" / "forwarder.py"


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="it takes an epoll")
def test_bytes_and_ends_are_passed_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        command = [sys.executable, str(FORWARDER), str(upstream.getsockname()[1])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            port = int(process.stdout.readline())
            for ends_first in ("client", "agent"):
                with socket.create_connection(("127.0.0.1", port), 30) as client:
                    agent, _ = upstream.accept()
                    with agent:
                        agent.settimeout(30)
                        client.sendall(b"asked")
                        assert agent.recv(100) == b"asked"
                        agent.sendall(b"answered")
                        assert client.recv(100) == b"answered"
                        first, other = (client, agent) if ends_first == "client" else (agent, client)
                        first.close()
                        assert other.recv(100) == b""
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
