"""The control API of a real mitmdump against its own document of OpenAPI: whatever it allows, forbids or promises."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.e2e.harness import ROOT, TOKEN, Hosts, environment, mitmproxy_tool, running_proxy

EXAMPLES = 8
"""Made up for each call and phase, besides those for each bound and type of its parameters, some 20 a call."""


def test_the_control_api_keeps_to_its_document(tmp_path: Path, hosts: Hosts) -> None:
    host = hosts.start("gpu-1")
    options = ("--set", f"balancer_agents=gpu-1={host.url}", "--set", "balancer_trusted_proxies=127.0.0.1")
    # The keys that it adds close no door, as it also tries what needs none.
    with running_proxy(tmp_path, *options, "--set", "balancer_access=open") as proxy:
        proxy.wait_online("gpu-1")
        document = proxy.http.get("/api/openapi.json").json()
        assert document["openapi"].startswith("3.1.")
        OpenAPIV31SpecValidator(document).validate()
        calls = sum(method != "parameters" for item in document["paths"].values() for method in item)
        run = subprocess.run(
            [
                mitmproxy_tool("schemathesis"),
                "run",
                f"{proxy.url}/api/openapi.json",
                f"--header=Authorization: Bearer {TOKEN}",
                "--checks=all",
                "--mode=all",
                f"--max-examples={EXAMPLES}",
                "--generation-deterministic",
                "--request-timeout=30",
                "--no-color",
            ],
            env=environment(
                SCHEMATHESIS_HOOKS="tests.api.schemathesis_hooks",
                PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "addon"))),
            ),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert f"Tested: {calls - 1}\n" in run.stdout, run.stdout  # it does not try that which gives it the document
        assert "Traceback" not in proxy.log
        assert proxy.register("gpu-1", host.url)
        proxy.wait_online("gpu-1")
        assert proxy.generate().status_code == 200
