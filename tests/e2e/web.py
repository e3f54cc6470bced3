"""A real mitmweb with the balancer, spoken to through mitmweb's own API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.harness import PATIENCE, TOKEN, Proxy, free_port, running_proxy, wait_until

PASSWORD = "a-password-for-tests"
XSRF = "ab" * 16

type Flow = dict[str, Any]


class Web:
    """mitmweb's list of flows and its commands."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(
            base_url=self.url,
            # The page gets its XSRF token with its websocket; the server only wants cookie and header to be the same.
            headers={"Authorization": f"Bearer {PASSWORD}", "X-XSRFToken": XSRF},
            cookies={"_xsrf": XSRF, "_mitmproxy_xsrf": XSRF},  # its name before and since mitmproxy 12.2.3
            trust_env=False,
            verify=False,
            timeout=PATIENCE,
            follow_redirects=True,
        )

    def flows(self, path: str = "") -> list[Flow]:
        """Those whose path holds that, in the order of the list."""
        return [flow for flow in self.http.get("/flows").json() if path in flow["request"]["path"]]

    def held(self) -> str:
        """Wait until a flow is held; its id."""
        return wait_until(lambda: next((f["id"] for f in self.flows() if f["intercepted"]), ""), "a flow is held")

    def act(self, flow_id: str, action: str) -> None:
        response = self.http.post(f"/flows/{flow_id}/{action}")
        assert response.status_code == 200, response.text

    def command(self, name: str, *arguments: str) -> Any:
        answer = self.http.post(f"/commands/{name}", json={"arguments": arguments}).json()
        assert "error" not in answer, answer
        return answer["value"]

    def refused(self, name: str, *arguments: str) -> str:
        """What is wrong with a command."""
        answer = self.http.post(f"/commands/{name}", json={"arguments": arguments}).json()
        return str(answer["error"])

    def content(self, flow_id: str, message: str = "response") -> bytes:
        return self.http.get(f"/flows/{flow_id}/{message}/content.data").content

    def view(self, flow_id: str, message: str = "response", view: str = "auto") -> dict[str, str]:
        """The content as the page shows it: `text` and `view_name`."""
        shown: dict[str, str] = self.http.get(f"/flows/{flow_id}/{message}/content/{view}.json").json()
        return shown

    def events(self) -> str:
        return "\n".join(event["message"] for event in self.http.get("/events").json())


@contextmanager
def running_mitmweb(
    confdir: Path,
    *arguments: str,
    token: str | None = TOKEN,
    env: dict[str, str] | None = None,
    by_script: bool = False,
) -> Iterator[tuple[Proxy, Web]]:
    port = free_port()
    own = ["--no-web-open-browser", "--web-port", str(port), "--set", "web_host=127.0.0.1"]
    own += ["--set", f"web_password={PASSWORD}"]
    with running_proxy(confdir, *own, *arguments, token=token, env=env, tool="mitmweb", by_script=by_script) as proxy:
        web = Web(port)
        try:
            yield proxy, web
        finally:
            web.http.close()
