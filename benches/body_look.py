"""What finding out a request's model costs next to mitmproxy's own handling: `python -m benches.body_look [--quick]`.

POST /api/chat with images in base64, and with text, goes through a bare mitmdump, without the balancer, to a server
that reads it and answers. `read_request` is called with the same bodies in this process, in turns with that. Then
bodies that are meant to take long: `read_request` alone, without a proxy.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import threading
import time
from base64 import b64encode
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from ollama_balancer.ollama.requests import read_request
from ollama_balancer.ollama.routes import find_route

from .proxy import Side, cpu_seconds, machine, spread, start_mitmdump

PATH = "/api/chat"
MODEL = "bench:latest"
TARGET = 15
"""Percent of mitmproxy's own CPU time."""

_ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"done":true}'


@dataclass
class Load:
    """A request's body, how many times it is sent and read in a round, and what was measured: a figure a round."""

    name: str
    body: bytes
    requests: int
    looks: int
    median_us: list[float] = field(default_factory=list)
    lowest_us: list[float] = field(default_factory=list)
    proxy_us: list[float] = field(default_factory=list)


def chat(size: int, messages: int = 1) -> bytes:
    """A chat of that many bytes, nearly all of them images, two in each message."""
    randomness = random.Random(1)
    image = size * 3 // 8 // messages
    return json.dumps(
        {
            "model": MODEL,
            "messages": [
                {
                    "role": "user",
                    "content": 'What is in these pictures?\nAnswer with one word, "cat" or "dog".',
                    "images": [b64encode(randomness.randbytes(image - 80)).decode() for _ in range(2)],
                }
                for _ in range(messages)
            ],
            "stream": True,
        }
    ).encode()


def conversation(size: int) -> bytes:
    """A chat of that many bytes in messages of about 500 characters, with line ends and quotes in them."""
    message = {"role": "user", "content": 'The quick brown fox says "hello" to the lazy dog.\n' * 10}
    return json.dumps({"model": MODEL, "messages": [message] * (size // 590), "stream": True}).encode()


def hostile(size: int) -> dict[str, bytes]:
    """Bodies whose values, of about that many bytes, are meant to take long."""
    values = {
        "array of zeros": b"[" + b"0," * (size // 2) + b"0]",
        "1,000,000 arrays in one another": b"[" * 1_000_000 + b"]" * 1_000_000,
        "9,000 arrays in one another, again and again": b"["
        + (b"[" * 9_000 + b"]" * 9_000 + b",") * (size // 18_001)
        + b"0]",
        "empty arrays": b"[" + b"[]," * (size // 3) + b"0]",
        "empty strings": b"[" + b'"",' * (size // 3) + b'""]',
        "strings of 60 characters": b"[" + (b'"' + b"x" * 60 + b'",') * (size // 63) + b'""]',
        "strings of 32 escaped quotes": b"[" + (b'"' + b'\\"' * 32 + b'",') * (size // 67) + b'""]',
        "quotes": b"[" + b'"' * size + b"]",
        "escaped quotes in one string": b'"' + b'\\"' * (size // 2) + b'"',
        "escaped quotes in many strings": b"[" + b'"\\"",' * (size // 5) + b'""]',
        "backslashes in one string": b'"' + b"\\\\" * (size // 2) + b'"',
        "backslashes and quotes in one string": b'"' + b'\\\\\\"' * (size // 4) + b'"',
        "spaces": b" " * size + b"0",
        "digits": b"1" * size,
    }
    bodies = {name: b'{"model":"bench","x":' + value + b"}" for name, value in values.items()}
    bodies["members"] = b'{"model":"bench"' + b',"a":0' * (size // 6) + b"}"
    bodies["a model's name"] = b'{"model":"' + b"\\u0000" * (size // 6) + b'"}'
    return bodies


def look(body: bytes) -> float:
    """Microseconds that one call takes."""
    route = find_route(PATH)
    assert route is not None
    began = time.perf_counter_ns()
    read_request(route, PATH, body)
    return (time.perf_counter_ns() - began) / 1e3


class Sink:
    """A server on 127.0.0.1 that reads requests and throws them away, each connection in a thread."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while stream.readline():
                size = 0
                while (line := stream.readline().strip()) != b"":
                    name, _, value = line.partition(b":")
                    size = int(value) if name.lower() == b"content-length" else size
                while size:
                    size -= len(stream.read(min(size, 1 << 20))) or size
                connection.sendall(_ANSWER)


def send(connection: socket.socket, body: bytes, times: int) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    for _ in range(times):
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b'{"done":true}'):
            data = connection.recv(65_536)
            if not data:
                raise SystemExit(f"mitmdump did not answer as it should: {answer[:200]!r}")
            answer += data


def measure(side: Side, loads: list[Load], rounds: int) -> None:
    with socket.create_connection(("127.0.0.1", side.port)) as connection:
        for load in loads:
            send(connection, load.body, max(2, load.requests // 10))
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for load in loads:
                before = cpu_seconds(side)
                send(connection, load.body, load.requests)
                load.proxy_us.append((cpu_seconds(side) - before) / load.requests * 1e6)
                taken = [look(load.body) for _ in range(load.looks)]
                load.median_us.append(median(taken))
                load.lowest_us.append(min(taken))


def table(loads: list[Load]) -> str:
    lines = ["| body | bytes | read_request, us | lowest, us | mitmproxy's CPU, us a request | percent |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for load in loads:
        shares = [100 * look / proxy for look, proxy in zip(load.median_us, load.proxy_us, strict=True)]
        figures = [spread(load.median_us, 1), f"{min(load.lowest_us):.1f}", spread(load.proxy_us, 0), spread(shares, 2)]
        lines.append(f"| {' | '.join([load.name, f'{len(load.body):,}', *figures])} |")
    return "\n".join(lines)


def hostile_table(size: int, rounds: int) -> str:
    route = find_route(PATH)
    assert route is not None
    lines = ["| body | MB | read_request, ms | read |", "| --- | --- | --- | --- |"]
    for name, body in hostile(size).items():
        taken = [look(body) / 1e3 for _ in range(rounds)]
        read = "yes" if read_request(route, PATH, body).readable else "no"
        lines.append(f"| {name} | {len(body) / 1e6:.0f} | {spread(taken, 1)} | {read} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.body_look", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds, about 15 seconds")
    parser.add_argument("--rounds", type=int, help="rounds over all bodies (default 7, with --quick 2)")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (2 if arguments.quick else 7)
    if rounds < 1:
        parser.error("--rounds takes 1 or more")
    part = 4 if arguments.quick else 1
    loads = [
        Load("images, 1 kB", chat(1_000), 400 // part, 2_000 // part),
        Load("images, 100 kB", chat(100_000), 200 // part, 2_000 // part),
        Load("images, 10 MB", chat(10_000_000, messages=4), 12 // part, 200 // part),
        Load("text, 100 kB", conversation(100_000), 200 // part, 400 // part),
        Load("text, 10 MB", conversation(10_000_000), 12 // part, 4),
    ]
    with tempfile.TemporaryDirectory(prefix="bench-body-") as folder, ExitStack() as stack:
        sink = Sink()
        bare = ("--mode", f"reverse:http://127.0.0.1:{sink.port}", "--set", "connection_strategy=lazy")
        measure(start_mitmdump(stack, Path(folder), "mitmdump", *bare, token=""), loads, rounds)
    command = "python -m benches.body_look" + (" --quick" if arguments.quick else "")
    print(f"{machine()}\n`{command}`: {rounds} rounds, median (lowest–highest round); target: {TARGET} %\n")
    print(table(loads), end="\n\n")
    print("Bodies that are meant to take long:\n")
    print(hostile_table(20_000_000, rounds))


if __name__ == "__main__":
    main()
