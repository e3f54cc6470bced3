"""How long after a client has left a host still works for it, in every phase: python -m benches.cancelling"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from tests.e2e.harness import Hosts, running_proxy
from tests.e2e.leaving import PHASES, leave

ROUNDS = 15


def main() -> None:
    hosts = Hosts()
    host = hosts.start("one")
    options = ("--set", "balancer_slots=1", "--set", "balancer_connect_timeout=60")
    print(f"milliseconds from the client's close to the end of it, {ROUNDS} times each: median, highest")
    with (
        tempfile.TemporaryDirectory() as folder,
        running_proxy(Path(folder), "--set", f"balancer_agents=one={host.url}", *options) as proxy,
    ):
        proxy.wait_online("one")
        for phase in PHASES:
            for stream in (True, False):
                times = [1000 * leave(proxy, host, hosts, phase, stream=stream) for _ in range(ROUNDS)]
                kind = "streamed" if stream else "whole"
                print(f"{phase:>10} {kind:>8}  {statistics.median(times):6.1f}  {max(times):6.1f}")
    hosts.stop()


if __name__ == "__main__":
    main()
