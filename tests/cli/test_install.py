"""The balancer as a service: what is written, and that it runs."""

from __future__ import annotations

import plistlib
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest

from agent_reporter.service import setup
from agent_reporter.service.base import Service
from ollama_balancer.cli.service import (
    NAME,
    Plan,
    _paths,
    command_line,
    launchd_job,
    read,
    systemd_unit,
    windows_task,
)
from tests.e2e.harness import PATIENCE, ROOT, environment, free_port, wait_until

SECRET = 'a-"secret"-$HOME-`x`-of-tests'
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd is not here")


def plan(*arguments: str, **environ: str) -> Plan:
    return read(arguments, environ)[0]


def run_nothing(calls: list[str]) -> setup.Run:
    def run(words: Sequence[str]) -> None:
        calls.append(" ".join(words))

    return run


def set_up(service: Service, wanted: Plan, calls: list[str] | None = None) -> int:
    command = command_line(wanted, service.data[-1])
    run = run_nothing([] if calls is None else calls)
    return setup.install(service, command, wanted.token, confirm=None, run=run, sleep=lambda _: None)


def files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(folder)) for path in found)


def linux(root: Path, wanted: Plan | None) -> Service:
    (root / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
    return systemd_unit(wanted, root, is_root=True)


def lines_of(service: Service) -> list[str]:
    return service.definition.read_text().splitlines()


def test_the_arguments_become_those_of_the_service() -> None:
    words = ["--set", "balancer_agents=a=http://a:1", "-p", "9000", "--listen-host", "::1", "--demo", "2"]
    wanted, asks_not = read([*words, "--yes"], {"LOAD_BALANCER_MODE": "metrics"})
    assert asks_not
    assert command_line(wanted, Path("/data"))[1:] == [
        *("-m", "ollama_balancer.cli.main", "serve", "--set", "confdir=/data"),
        *("--set", "balancer_agents=a=http://a:1", "--set", "balancer_mode=metrics", "--listen-port", "9000"),
        *("--listen-host", "::1", "--demo", "2"),
    ]
    assert not read([], {})[1]
    assert plan("--set", "balancer_stop_timeout=100").stop_seconds == 115
    assert plan("--set", "listen_port=80").port == 80
    assert plan("--web").arguments[-1] == "--no-web-open-browser"
    assert plan("--set", "balancer_mode=adaptive", LOAD_BALANCER_MODE="metrics").arguments[1:] == (
        "balancer_mode=adaptive",
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--console"], "no terminal"),
        (["--set", "confdir=/x"], "leave out confdir"),
        (["--set=confdir=/x"], "leave out confdir"),
        (["--set", "balancer_token=short"], "balancer_token: a token has"),
        (["--proxyauth", "me:secret"], "proxyauth would stand in"),
        (["--upstream-auth=me:secret"], "upstream_auth would stand in"),
        (["--set", "web_password=secret"], "web_password would stand in"),
        (["--se", "balancer_token=secret-secret"], "balancer_token would stand in"),
        (["--mode", "upstream:http://me:secret@proxy:1"], "URL with a password"),
    ],
)
def test_what_a_service_cannot_have_is_refused(arguments: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        plan(*arguments)
    assert "secret" not in str(refused.value)


def test_the_unit_keeps_its_files_and_gives_requests_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = plan("--set", f"balancer_token={SECRET}", "--set", "balancer_stop_timeout=60")
    service, calls = linux(tmp_path, wanted), list[str]()
    assert set_up(service, wanted, calls) == 0
    lines = lines_of(service)
    for line in (
        "DynamicUser=yes",
        "StateDirectory=ollama-balancer",
        "TimeoutStopSec=75",
        "LimitNOFILE=1048576",
        "Restart=on-failure",
        "CapabilityBoundingSet=",
        f"EnvironmentFile=-{tmp_path}/etc/ollama-balancer/environment",
    ):
        assert line in lines
    filters = [line for line in lines if line.startswith("SystemCallFilter=")]
    assert filters == ["SystemCallFilter=@system-service", "SystemCallFilter=~@privileged"]  # the first one decides
    assert calls[1] == "systemctl enable ollama-balancer"
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err + service.definition.read_text() + " ".join(calls)
    assert "The token from balancer_token is copied to" in said.out
    variables = tmp_path / "etc/ollama-balancer/environment"
    assert variables.read_text() == 'OLLAMA_BALANCER_TOKEN="a-\\"secret\\"-\\$HOME-\\`x\\`-of-tests"\n'
    assert variables.stat().st_mode & 0o777 == 0o600


def test_a_port_that_only_root_has_takes_one_capability(tmp_path: Path) -> None:
    wanted = plan("-p", "443")
    service = linux(tmp_path, wanted)
    assert set_up(service, wanted) == 0
    lines = lines_of(service)
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in lines
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE" in lines
    assert "PrivateUsers=yes" not in lines


def test_uninstalling_keeps_keys_and_usage_unless_they_are_to_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = plan(OLLAMA_BALANCER_TOKEN="a-token-of-tests")
    service, calls = linux(tmp_path, wanted), list[str]()
    assert set_up(service, wanted) == 0
    state = tmp_path / "var/lib/private" / NAME
    state.mkdir(parents=True)
    (state / "ollama-balancer-keys.db").write_text("")
    (tmp_path / "var/lib" / NAME).symlink_to(state)
    run = run_nothing(calls)
    assert setup.uninstall(linux(tmp_path, None), run=run, sleep=lambda _: None) == 0
    assert calls[0] == "systemctl disable --now ollama-balancer"
    assert files(tmp_path) == [f"var/lib/{NAME}", f"var/lib/private/{NAME}/{NAME}-keys.db"]
    assert f"kept {tmp_path}/var/lib/{NAME}; --purge removes it too" in capsys.readouterr().out
    assert setup.uninstall(linux(tmp_path, None), purge=True, run=run, sleep=lambda _: None) == 0
    assert files(tmp_path) == []
    assert not state.exists()
    assert setup.uninstall(linux(tmp_path, None), purge=True, run=run, sleep=lambda _: None) == 0
    assert "Nothing is installed." in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="it has no users by number")
def test_a_launchd_job_comes_and_goes(tmp_path: Path) -> None:
    wanted = plan("--set", f"balancer_token={SECRET}")
    service, uid = launchd_job(wanted, uid=501, home=tmp_path), 501
    assert set_up(service, wanted) == 0
    job = plistlib.loads(service.definition.read_bytes())
    folder = tmp_path / "Library/Application Support/ollama-balancer"
    assert job["ProgramArguments"][3:] == ["serve", "--set", f"confdir={folder}"]
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert job["ExitTimeOut"] == 45
    assert SECRET not in service.definition.read_text()
    assert (folder / "ollama-balancer-token").read_text() == f"{SECRET}\n"
    assert folder.stat().st_mode & 0o777 == 0o700
    run = run_nothing([])
    assert setup.uninstall(launchd_job(None, uid=uid, home=tmp_path), run=run, sleep=lambda _: None) == 0
    assert files(tmp_path) == ["Library/Application Support/ollama-balancer/ollama-balancer-token"]
    assert setup.uninstall(launchd_job(None, uid=uid, home=tmp_path), purge=True, run=run, sleep=lambda _: None) == 0
    assert not folder.exists()


def test_a_scheduled_task_comes_and_goes(tmp_path: Path) -> None:
    environ = {"LOCALAPPDATA": str(tmp_path), "USERDOMAIN": "HOST", "USERNAME": "me"}
    wanted = plan("-p", "9000")
    service, calls = windows_task(wanted, environ, is_admin=True), list[str]()
    assert set_up(service, wanted, calls) == 0
    task = ElementTree.fromstring(service.definition.read_bytes())
    arguments = task.findtext(".//{*}Arguments") or ""
    assert arguments.endswith("--listen-port 9000")
    assert f"confdir={tmp_path}" in arguments
    assert "--token-file" not in arguments
    assert calls[1].startswith("schtasks /Create /TN ollama-balancer /XML")
    gone = windows_task(None, environ, is_admin=True)
    assert setup.uninstall(gone, purge=True, run=run_nothing(calls), sleep=lambda _: None) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
@needs_systemd
@pytest.mark.parametrize("port", ["8080", "443"])
def test_systemd_accepts_the_unit_and_rates_it_as_safe(tmp_path: Path, port: str) -> None:
    assert ANALYZE is not None
    wanted = plan("--set", "balancer_agents=a=http://a:1", "-p", port)
    path = tmp_path / f"{NAME}.service"
    path.write_text(systemd_unit(wanted, is_root=True).text(command_line(wanted, Path("/var/lib") / NAME)))
    words = [ANALYZE, "verify", "--man=no", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    words = [ANALYZE, "security", "--offline=true", "--no-pager", "--threshold=25", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd rates running units only")
    assert done.returncode == 0, done.stdout


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_what_the_unit_starts_serves_and_ends(tmp_path: Path) -> None:
    port = free_port()
    wanted = plan("--demo", "1", "--listen-host", "127.0.0.1", "-p", str(port), "--set", f"balancer_token={SECRET}")
    service = linux(tmp_path, wanted)
    assert set_up(service, wanted) == 0
    (tmp_path / "var/lib" / NAME).mkdir(parents=True)
    started = next(line for line in lines_of(service) if line.startswith("ExecStart="))
    command = shlex.split(started.removeprefix("ExecStart="))
    # A shell reads such quotes as systemd does.
    with_variables = ["/bin/sh", "-c", 'set -a; . "$0"; exec "$@"', str(tmp_path / "etc/ollama-balancer/environment")]
    process = subprocess.Popen(
        [*with_variables, *command],
        cwd=tmp_path / "var/lib" / NAME,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as client:
            wait_until(lambda: process.poll() is not None or client.get("/health").status_code == 200, "it serves")
            headers = {"Authorization": f"Bearer {SECRET}"}
            assert client.post("/api/agents/demo-1/drain", headers=headers).status_code == 200
        context = ssl._create_unverified_context()
        with httpx.Client(verify=context, trust_env=False, timeout=PATIENCE) as client:
            assert client.get(f"https://127.0.0.1:{port}/api/version").status_code == 200
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == 0, said  # else systemd would start it again
        assert SECRET not in said
    finally:
        process.kill()
        process.wait()


@pytest.mark.e2e
def test_the_program_without_a_terminal_shows_the_service_and_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ollama_balancer.cli.main", "install", "--demo", "3", "-p", "9000"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(HOME=str(tmp_path), OLLAMA_BALANCER_TOKEN="a-token-of-tests"),
        timeout=60,
    )
    assert done.returncode == 1
    assert "serve --set confdir=" in done.stdout
    assert "--listen-port 9000 --demo 3" in done.stdout
    assert "a-token-of-tests" not in done.stdout + done.stderr
    assert re.search(r"add --yes|run it (with|in)", done.stderr)
    assert files(tmp_path) == []
    refused = subprocess.run(
        [sys.executable, "-m", "ollama_balancer.cli.main", "install", "--console"],
        capture_output=True,
        text=True,
        env=environment(HOME=str(tmp_path)),
        timeout=60,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("ollama-balancer install: error: a service has no terminal")
    assert refused.stdout == ""


def test_files_that_arguments_name_are_shown_to_the_unit(tmp_path: Path) -> None:
    script = tmp_path / "other.py"
    script.write_text("")
    assert list(_paths(["-s", str(script), f"x={script}", "relative", "/no/such"])) == [script, script]
