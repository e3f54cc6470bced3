"""What another addon sees of a balanced request is the same with lean hooks and without."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.harness import Hosts, running_proxy

WITNESS = """
import asyncio
from pathlib import Path

class Witness:
    def __init__(self):
        self.file = Path(FILE).open("a", buffering=1)

    def tell(self, hook, flow):
        answer = flow.response
        told = [hook, flow.request.path, flow.request.port, bool(flow.live), flow.comment, sorted(flow.metadata)]
        told += [sorted(answer.headers), answer.status_code] if answer else []
        print(*told, file=self.file)

    def requestheaders(self, flow):
        self.tell("requestheaders", flow)

    async def request(self, flow):
        await asyncio.sleep(0)
        self.tell("request", flow)

    def responseheaders(self, flow):
        self.tell("responseheaders", flow)
        raise ValueError("a mistake of the witness")

    async def response(self, flow):
        self.tell("response", flow)
        await asyncio.sleep(0.01)

    def error(self, flow):
        self.tell("error", flow)

addons = [Witness()]
"""


def told(folder: Path, hosts: Hosts, lean: str) -> list[str]:
    folder.mkdir()
    script = folder / "witness.py"
    script.write_text(WITNESS.replace("FILE", repr(str(folder / "told"))))
    host = hosts.start("one")
    agents = f"balancer_agents=one={host.url}"
    with running_proxy(folder, "--set", agents, "--set", f"balancer_lean={lean}", "-s", str(script)) as proxy:
        proxy.wait_online("one")
        assert proxy.generate().status_code == 200
        assert proxy.generate(stream=True).status_code == 200
        assert proxy.generate("no-such-model").status_code == 404
        assert proxy.http.get("/api/tags").status_code == 200
        host.faults.status = 503
        assert proxy.generate().status_code == 503
        assert "a mistake of the witness" in proxy.log
    lines = [line for line in (folder / "told").read_text().splitlines() if "/api/agents" not in line]
    return [
        re.sub(rf"\b({host.port}|{proxy.port})\b", "PORT", re.sub(r"[0-9.]+ (ms|s|tok/s)\b", "N", line))
        for line in lines
    ]


def test_another_addon_sees_the_same_with_lean_hooks_and_without(tmp_path: Path, hosts: Hosts) -> None:
    lean, ordinary = (told(tmp_path / value, hosts, value) for value in ("true", "false"))
    assert len(lean) >= 4 * 5
    assert lean == ordinary
