"""Passes bytes on and does nothing else: `python forwarder.py UPSTREAM_PORT` prints the port that it listens on.

What a proxy in Python costs at the least: for each piece that comes a wait, a receive and a send, and nothing is looked
at. Listens on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys


def main() -> None:
    upstream = int(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    ends: dict[int, tuple[socket.socket, socket.socket]] = {}
    """By file descriptor: the connection, and that to which its bytes go."""
    buffer = memoryview(bytearray(65536))
    while True:
        # The listener last: what is accepted may get the number of a connection that has just been closed.
        for descriptor, _ in sorted(poll.poll(), key=lambda event: event[0] == listener.fileno()):
            if descriptor == listener.fileno():
                client, agent = listener.accept()[0], socket.create_connection(("127.0.0.1", upstream))
                for end, other in ((client, agent), (agent, client)):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    poll.register(end, select.EPOLLIN)
                    ends[end.fileno()] = end, other
            elif descriptor in ends:
                end, other = ends[descriptor]
                with contextlib.suppress(OSError):
                    size = end.recv_into(buffer)
                    if size:
                        other.sendall(buffer[:size])
                        continue
                for each in (end, other):
                    del ends[each.fileno()]
                    each.close()


if __name__ == "__main__":
    main()
