"""The two distributions, built and installed without a checkout as their users do."""

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import agent_reporter
from tests.e2e.harness import PATIENCE, ROOT, TOKEN, Hosts, Proxy, environment, free_port, mitmproxy_tool, wait_until

UV = mitmproxy_tool("uv")
VERSION = agent_reporter.__version__


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a program prints; it is to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what this one tracks, as it is now, committed."""
    if not (ROOT / ".git").exists():
        pytest.skip("releases are made from a clone")
    folder = tmp_path_factory.mktemp("repository")
    for name in run("git", "ls-files", "-z").split("\0")[:-1]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", ".", cwd=folder)
    run("git", "-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "--quiet", "-m", "x", cwd=folder)
    return folder


def release(repository: Path, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(repository / ".ci" / "release"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(UV=UV, **env))


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a release: both wheels, built from both sdists, and their SBOMs."""
    folder = tmp_path_factory.mktemp("release")
    done = release(repository, folder, ALLOW_UNRELEASED="1")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_release_refuses_changes_and_files_of_another_one(repository: Path, built: Path, tmp_path: Path) -> None:
    assert "is not empty" in release(repository, built).stderr
    assert "unreleased: write the date" in release(repository, tmp_path / "dist").stderr
    (repository / "left.py").write_text("")
    try:
        done = release(repository, tmp_path / "dist")
    finally:
        (repository / "left.py").unlink()
    assert done.returncode == 1
    assert "not committed" in done.stderr
    assert "left.py" in done.stderr


def test_the_sbom_names_what_is_installed(built: Path) -> None:
    for name, own in (
        ("ollama_balancer", {"mitmproxy", "ollama-agent-reporter"}),
        ("ollama_agent_reporter", {"psutil"}),
    ):
        bom = json.loads((built / f"{name}-{VERSION}.cdx.json").read_text())
        versions = {each["name"]: each["version"] for each in bom["components"]}
        assert own < set(versions)
        assert versions[name.replace("_", "-")] == VERSION


def installed(folder: Path, *packages: str | Path) -> Path:
    """The programs' folder of a new environment with these packages."""
    run(UV, "venv", "--quiet", "--python", sys.executable, folder)
    run(UV, "pip", "install", "--quiet", "--python", folder, *packages, cwd=folder)
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


@contextlib.contextmanager
def started(home: Path, *command: str | Path) -> Iterator[Proxy]:
    """A balancer that a command of the installed package starts, by default with `home` as the user's folder."""
    port = free_port()
    process = subprocess.Popen(
        [*command, "--listen-host", "127.0.0.1", "--listen-port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(HOME=str(home), UV_CACHE_DIR=run(UV, "cache", "dir").strip(), OLLAMA_BALANCER_TOKEN=TOKEN),
        cwd=home,
    )
    proxy = Proxy(process, port, home / ".mitmproxy")
    try:
        wait_until(lambda: process.poll() is not None or proxy.http.get("/health"), "the proxy listens")
        assert process.poll() is None, proxy.log
        yield proxy
    finally:
        print(proxy.log)
        assert proxy.stop() == 0


def answer(proxy: Proxy) -> str:
    """What the demo says to a prompt, from its stream."""
    proxy.wait_online("demo-1")
    with proxy.http.stream("POST", "/api/generate", json={"model": "llama3.2", "prompt": "hi"}) as response:
        lines = [json.loads(line) for line in response.iter_lines()]
    assert lines[-1]["done"] is True
    return "".join(line["response"] for line in lines)


def test_no_file_is_in_both_wheels_and_nothing_is_missing(built: Path) -> None:
    names = {}
    for wheel in built.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names[wheel.name.partition("-")[0]] = set(archive.namelist())
    assert not names["ollama_balancer"] & names["ollama_agent_reporter"]
    left_out = {"README.md", "pyproject.toml", "LICENSE"}
    for name, folder in (("ollama_balancer", ROOT / "addon"), ("ollama_agent_reporter", ROOT)):
        package = folder / name.removeprefix("ollama_") if folder == ROOT else folder / name
        sources = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        expected = {path.relative_to(folder).as_posix() for path in sources if path.name not in left_out}
        assert {each for each in names[name] if ".dist-info/" not in each} == expected
        assert any(each.endswith("/licenses/LICENSE") for each in names[name])
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "agent_reporter" / "LICENSE").read_bytes()


def test_both_have_one_version_and_the_balancer_wants_it(built: Path) -> None:
    assert sorted(file.name for file in built.iterdir() if file.suffix != ".json") == [
        f"ollama_agent_reporter-{VERSION}-py3-none-any.whl",
        f"ollama_agent_reporter-{VERSION}.tar.gz",
        f"ollama_balancer-{VERSION}-py3-none-any.whl",
        f"ollama_balancer-{VERSION}.tar.gz",
    ]
    with tarfile.open(built / f"ollama_balancer-{VERSION}.tar.gz") as archive:
        file = archive.extractfile(f"ollama_balancer-{VERSION}/PKG-INFO")
        assert file
        lines = file.read().decode().splitlines()
    wanted = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    reporter = next(each for each in wanted if each.name == "ollama-agent-reporter")
    assert VERSION in reporter.specifier


@pytest.mark.parametrize("kind", ["whl", "tar.gz"])
def test_an_environment_without_the_checkout_runs_both(built: Path, tmp_path: Path, hosts: Hosts, kind: str) -> None:
    programs = installed(tmp_path / "venv", *built.glob(f"*.{kind}"))
    assert run(programs / "ollama-balancer", "--version") == f"{VERSION}\n"
    with started(tmp_path, programs / "ollama-balancer", "--demo", "2") as proxy:
        assert len(answer(proxy)) > 10
        assert set(proxy.agents()) == {"demo-1", "demo-2"}
        see_a_report(programs, proxy, hosts.start().url)
        see_the_reporters_wheel(built, proxy)
    if kind == "whl":
        script = run(programs / "ollama-balancer", "path").strip()
        assert str(ROOT) not in script
        with started(tmp_path, programs / "mitmdump", "-s", script, "--set", "balancer_demo=1") as proxy:
            assert answer(proxy)


def test_mitmproxys_launcher_finds_it(built: Path, tmp_path: Path) -> None:
    programs = installed(tmp_path / "venv", *built.glob("*.whl"), "mitmproxy-addon-launcher")
    with started(tmp_path, programs / "mitmdump-addon-launcher", "--set", "balancer_demo=1") as proxy:
        assert answer(proxy)


def see_a_report(programs: Path, proxy: Proxy, ollama: str) -> None:
    words = ("--balancer", proxy.url, "--name", "gpu-1", "--ollama", ollama)
    env = environment(OLLAMA_BALANCER_TOKEN=TOKEN)
    reporter = subprocess.Popen([programs / "ollama-agent-reporter", *words], env=env, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: proxy.agents().get("gpu-1", {}).get("metrics"), "a report", PATIENCE)
    finally:
        reporter.terminate()
        reporter.wait(PATIENCE)


def see_the_reporters_wheel(built: Path, proxy: Proxy) -> None:
    """What the balancer serves to hosts that join is what was built, but for the list of its files and its maker."""
    wheel = built / f"ollama_agent_reporter-{VERSION}-py3-none-any.whl"
    served = proxy.http.get(f"/join/{wheel.name}").content
    assert f"sha256='{hashlib.sha256(served).hexdigest()}'" in proxy.http.get("/join").text
    with zipfile.ZipFile(io.BytesIO(served)) as ours, zipfile.ZipFile(wheel) as theirs:
        assert set(ours.namelist()) == set(theirs.namelist())
        own = {name for name in ours.namelist() if name.endswith((".dist-info/RECORD", ".dist-info/WHEEL"))}
        assert [name for name in ours.namelist() if name not in own and ours.read(name) != theirs.read(name)] == []


def test_uvx_runs_it_without_an_installation(built: Path, tmp_path: Path) -> None:
    balancer = built / f"ollama_balancer-{VERSION}-py3-none-any.whl"
    reporter = built / f"ollama_agent_reporter-{VERSION}-py3-none-any.whl"
    uvx = (UV, "tool", "run", "--python", sys.executable, "--from", balancer, "--with", reporter, "ollama-balancer")
    with started(tmp_path, *uvx, "--demo", "3") as proxy:
        assert len(answer(proxy)) > 10
