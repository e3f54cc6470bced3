"""What it takes to look at, and to search, a small request that unpacks into 400 MB: python -m benches.viewing

In a process of its own each: as mitmproxy does it, and as it is done with the balancer's limits.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
import zlib
from collections.abc import Callable

from mitmproxy import contentviews, flowfilter
from mitmproxy.test import taddons, tflow, tutils

from ollama_balancer.mitm import patches
from ollama_balancer.mitm.inspection.contentview import OllamaContentview

MIB = 1 << 20


def bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([packer.compress(bytes(MIB)) for _ in range(400)]) + packer.flush()


def measure(what: str, bounded: bool) -> None:
    contentviews.add(OllamaContentview)
    if bounded:
        patches.apply()
    headers = ((b"content-encoding", b"gzip"), (b"content-type", b"application/json"))
    flow = tflow.tflow(req=tutils.treq(path=b"/api/chat", headers=headers, content=bomb()))
    matches = flowfilter.parse("~b hello")
    with taddons.context() as context:
        context.options.add_option("protobuf_definitions", str, "", "")
        does: dict[str, Callable[[], object]] = {
            "opened": lambda: contentviews.prettify_message(flow.request, flow),
            "opened as Raw": lambda: contentviews.prettify_message(flow.request, flow, "raw"),
            "searched": lambda: matches(flow),
        }
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        does[what]()
        took = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(f"| {what} | {'within bounds' if bounded else 'by mitmproxy'} | {took:.2f} | {grown} |", flush=True)


def main() -> None:
    print("| it is | | seconds | MiB more |")
    print("|---|---|---|---|", flush=True)
    for what in ("opened", "opened as Raw", "searched"):
        for bounded in (False, True):
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(what, bounded))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
