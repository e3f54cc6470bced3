"""addon/deploy: what the Dockerfile runs is run here, in folders that stand for its own; the rest meets its schemas."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from tests.e2e.harness import PATIENCE, ROOT, TOKEN, Hosts, Proxy, environment, free_port, mitmproxy_tool, wait_until

DEPLOY = ROOT / "addon" / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


class Image:
    """One stage of the Dockerfile: its folders are below `root`, its commands those of this machine's Python."""

    def __init__(self, root: Path, stage: str) -> None:
        self.root = root
        self.lines: list[tuple[str, str]] = []
        text = (DEPLOY / "Dockerfile").read_text()
        stages = re.split(r"^FROM ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
        for part in stages:
            head, *lines = part.splitlines()
            if head.endswith(f" AS {stage}"):
                self.lines = [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]
        assert self.lines, stage

    def all(self, word: str) -> list[str]:
        return [self.here(rest) for each, rest in self.lines if each == word]

    def here(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt|src|data)\b", rf"{self.root}/\1", text)

    def env(self) -> dict[str, str]:
        pairs = [pair.partition("=") for line in self.all("ENV") for pair in shlex.split(line)]
        return {name: value.replace("$PATH", os.environ["PATH"]) for name, _, value in pairs}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stage builds."""
    root = tmp_path_factory.mktemp("root")
    image = Image(root, "build")
    copied = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            (root / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / "src" / name)
    env = environment(**image.env(), PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_COMPILE="1")
    del env["PIP_NO_CACHE_DIR"]  # as the index has given them to this machine before
    python = root / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    for line in image.all("RUN"):
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=root / "src", env=env)
        assert done.returncode == 0, line + done.stderr
    return root


def test_the_balancers_image_starts_and_is_healthy_once_a_host_is(root: Path, hosts: Hosts) -> None:
    image = Image(root, "balancer")
    [entry], [words] = (map(json.loads, image.all(word)) for word in ("ENTRYPOINT", "CMD"))
    [health] = image.all("HEALTHCHECK")
    port = free_port()
    check = json.loads(health.partition("CMD ")[2].replace(":8080", f":{port}"))
    env = environment(**image.env(), OLLAMA_BALANCER_TOKEN=TOKEN)
    program = shutil.which(entry[0], path=env["PATH"])
    assert program
    assert program.startswith(str(root))
    process = subprocess.Popen(
        [program, *entry[1:], *words, "--listen-port", str(port), "--listen-host", "127.0.0.1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        cwd=root / "data",
    )
    proxy = Proxy(process, port, root / "data" / ".mitmproxy")
    reporter = None
    try:
        wait_until(lambda: proxy.http.get("/health"), "it listens")
        assert subprocess.run(check, env=env, capture_output=True).returncode == 1
        [line] = Image(root, "reporter").all("ENTRYPOINT")
        reporter = subprocess.Popen(
            [*json.loads(line), "--balancer", proxy.url, "--name", "ollama-1", "--ollama", hosts.start().url],
            env=environment(OLLAMA_BALANCER_TOKEN=TOKEN),
        )
        wait_until(lambda: proxy.agents().get("ollama-1", {}).get("metrics"), "a report")
        assert subprocess.run(check, env=env, capture_output=True).returncode == 0
    finally:
        if reporter:
            reporter.terminate()
            reporter.wait(PATIENCE)
        print(proxy.log)
        assert proxy.stop() == 0
    assert {path.name for path in (root / "data").iterdir()} == {".mitmproxy"}


def test_the_last_stages_have_what_is_copied_to_them_and_no_more_users_than_one() -> None:
    for stage in ("balancer", "reporter"):
        image = Image(Path("/x"), stage)
        assert image.all("RUN") == []
        assert image.all("USER") == ["10001:10001"]


def test_compose_is_of_its_schema_and_starts_programs_that_know_their_flags() -> None:
    compose = DEPLOY / "compose.yaml"
    command = [mitmproxy_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(compose)]
    assert subprocess.run(command, capture_output=True, env=environment()).returncode == 0
    services = YAML(typ="safe").load(compose)["services"]
    for name in ("reporter-1", "reporter-2"):
        words = services[name]["command"]
        once = [sys.executable, "-m", "agent_reporter", *words, "--print"]
        assert subprocess.run(once, capture_output=True, env=environment()).returncode == 0
    stages = re.findall(r"^FROM .* AS (\w+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for service in services.values():
        if build := service.get("build"):
            assert (DEPLOY / build["context"]).resolve() == ROOT
            assert (ROOT / build["dockerfile"]).exists()
            assert build["target"] in stages


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_of_kubernetes_schemas(path: Path) -> None:
    manifests = list(YAML(typ="safe").load_all(path))
    for manifest in manifests:
        for version in ("1.29", "1.34"):
            kubernetes_validate.validate(manifest, version, strict=True)
    labels = {
        m["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]
        for m in manifests
        if "template" in m["spec"]
    }
    selected = {
        (m["spec"]["selector"].get("matchLabels") or m["spec"]["selector"])["app.kubernetes.io/name"]
        for m in manifests
        if "selector" in m["spec"]
    }
    assert labels == selected


@pytest.mark.parametrize(
    ("schema", "path"),
    [("github-workflows", ".github/workflows/tests.yaml"), ("dependabot", ".github/dependabot.yml")],
)
def test_what_a_forge_reads_is_of_its_schema(schema: str, path: str) -> None:
    command = [mitmproxy_tool("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", str(ROOT / path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout
