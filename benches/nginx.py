"""nginx, where it is installed, in front of the hosts of a bench."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin"
"""Where Debian has what only an administrator is expected to call."""

_TEMPLATE = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream fleet {{
        least_conn;
{servers}
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        client_max_body_size 64m;
        client_body_buffer_size 1m;
        location / {{
            proxy_pass http://fleet;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_next_upstream {retried};
            proxy_read_timeout 600s;
{more}
        }}
    }}
}}
"""


def installed(name: str) -> str | None:
    """The program's path, also where only an administrator is expected to look."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}")


def version(program: str) -> str:
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True)
    line = (said.stdout or said.stderr).splitlines()[0]
    return line.removeprefix("nginx version: ").replace(" version", "").split(" 20")[0]


def configuration(
    port: int, folder: Path, hosts: Sequence[int], *, keepalive: bool, ejected: float | None = None
) -> str:
    """One worker that passes all on to these ports; `keepalive`: over connections that are used again.

    A request is sent to the next host where one cannot be reached, which gets no others for `ejected` seconds; None: no
    host is ever left out.
    """
    failing = "max_fails=0" if ejected is None else f"fail_timeout={max(1, round(ejected))}s"
    servers = [f"server 127.0.0.1:{each} {failing};" for each in hosts]
    more = []
    if keepalive:
        servers.append("keepalive 1024;")
        more.append('proxy_set_header Connection "";')
    return _TEMPLATE.format(
        port=port,
        folder=folder,
        servers="\n".join(f"        {line}" for line in servers),
        retried="off" if ejected is None else "error timeout",
        more="\n".join(f"            {line}" for line in more),
    )


def command(program: str, folder: Path, file: Path) -> list[str]:
    return [program, "-e", "stderr", "-p", str(folder), "-c", str(file)]
