"""The documentation agrees with the code: links, tables of options, metrics, routes and flags, and commands."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from agent_reporter.collectors import COLLECTORS
from agent_reporter.wire import AgentMetrics
from ollama_balancer.api.calls import CALLS, Call
from ollama_balancer.api.paths import is_control_path
from ollama_balancer.core.access import Right
from ollama_balancer.ollama.routes import ROUTES, find_route
from tests.api.test_app import METRICS, Api
from tests.conftest import KINDS
from tests.e2e.harness import Hosts, running_proxy
from tests.markdown import (
    DOCS,
    PAGES,
    README,
    ROOT,
    anchors,
    blocks,
    code,
    commands,
    inline_code,
    links,
    table,
    text_of,
)

REPORTER = ROOT / "agent_reporter" / "README.md"
BENCHES = ROOT / "benches" / "README.md"
CHANGES = ROOT / "CHANGELOG.md"

OTHERS = {
    "apt",
    "cd",
    "claude",
    "curl",
    "docker",
    "echo",
    "git",
    "journalctl",
    "kubectl",
    "ollama",
    "py",
    "sh",
    "systemctl",
}
"""Programs that are not ours, nor our packages'."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@cache
def output(*words: str) -> str:
    """What a program of this environment prints."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LOAD_BALANCER", "OLLAMA"))
    }
    environment["COLUMNS"] = "200"
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, f"{words}: {done.stderr}"
    return done.stdout


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@cache
def options() -> dict[str, Any]:
    """The balancer's options with their defaults, as mitmdump has them."""
    defaults = YAML(typ="safe").load(output(program("mitmdump"), "-s", "addon/balancer.py", "--options"))
    return {name: value for name, value in defaults.items() if name.startswith("balancer_")}


def test_the_readme_is_a_front_page() -> None:
    lines = text_of(README).splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []
    assert "<!-- test command -->" in lines
    assert len(text_of(BENCHES).splitlines()) <= 300


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not (target.exists() and target.is_relative_to(ROOT)) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    assert [name_of(page) for page in PAGES if page != README and page not in linked] == []


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "addon" / "README.md"], ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = [text for text in inline_code(page) if re.fullmatch(r"[\w./]+(?:/|\.\w+)", text)]
    assert named
    folders = (ROOT, ROOT / "addon", ROOT / "addon" / "ollama_balancer")
    assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []


def test_every_room_is_described() -> None:
    rooms = {code(row[0])[0] for row in table(ROOT / "addon" / "README.md", "room")}
    package = ROOT / "addon" / "ollama_balancer"
    files = (file.relative_to(package) for file in package.rglob("*") if file.suffix != ".pyc" and file.is_file())
    assert {f"{file.parts[0]}/" for file in files if len(file.parts) > 1} <= rooms


@pytest.mark.e2e
def test_the_table_of_options_is_the_one_in_the_code() -> None:
    printed = output(sys.executable, "-m", "ollama_balancer.settings.options")
    assert f"\n\n{printed}\n" in text_of(DOCS / "options.md")


@pytest.mark.e2e
def test_every_option_is_documented_with_its_default() -> None:
    rows = table(DOCS / "options.md", "option", "default")
    assert [code(row[0]) for row in rows] == [[name] for name in dict.fromkeys(code(row[0])[0] for row in rows)]
    documented = {code(name)[0]: default for name, default, *_ in rows}
    assert set(documented) == set(options())
    for name, value in options().items():
        default = documented[name]
        match value:
            case []:
                assert default == "none", name
            case "":
                assert default, name
            case bool():
                assert default == str(value).lower(), name
            case int():
                assert default == str(value), name
            case _:
                assert code(default)[-1] == value, name


@pytest.mark.e2e
@each_page
def test_options_that_a_page_names_exist(page: Path) -> None:
    if page != CHANGES:
        named = set(re.findall(r"(?<![\w/])balancer_[a-z_]+(?![\w/*])", text_of(page)))
        assert named <= set(options())


@pytest.mark.e2e
def test_every_metric_is_documented(tmp_path: Path, hosts: Hosts) -> None:
    gpu = {"name": "a", "utilization": 1.0, "memory_used": 1, "memory_total": 2, "temperature": 3.0, "power": 4.0}
    more: dict[str, Any] = {"gpus": [gpu], "load_average": [1.0, 1.0, 1.0], "cpu_count": 1}
    more["collectors"] = [{"name": "cpu", "ok": True, "seconds": 0.1}]
    more |= {"disk_free": 1, "disk_total": 2, "network_received": 1.0, "network_sent": 1.0}
    with running_proxy(tmp_path, "--set", f"balancer_agents=gpu-1={hosts.start('gpu-1').url}") as proxy:
        proxy.wait_online("gpu-1")
        proxy.generate()
        proxy.generate(stream=True)
        proxy.generate(model="no-such-model")
        proxy.report("gpu-1", **more)
        page = proxy.http.get("/metrics").text
    found = {family.name.removeprefix("ollama_balancer_"): family for family in text_string_to_metric_families(page)}
    documented = {
        code(name)[0].removesuffix("_total" if kind == "counter" else "\0"): (kind, labels)
        for name, kind, labels, _ in table(DOCS / "metrics.md", "metric", "type", "labels")
    }
    assert {name: family.type for name, family in found.items()} == {
        name: kind for name, (kind, _) in documented.items()
    }
    for name, family in found.items():
        labels = set(filter(None, documented[name][1].split(", ")))
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, name


def control_calls() -> Iterator[tuple[str, str]]:
    for route in Api().control.app.routes:
        path: str = route.path  # type: ignore[attr-defined]
        methods: set[str] = route.methods  # type: ignore[attr-defined]
        for method in methods - {"HEAD"}:
            yield method, path.replace("{key}", "{id}")


def right_of(call: Call) -> str:
    return "any" if set(call.rights) == set(Right) else call.rights[0] if call.rights else ""


def test_every_control_call_is_documented() -> None:
    rows = table(DOCS / "api.md", "call", "right")
    documented = {code(row[0])[0]: (row[1], row[2]) for row in rows}
    parts = {f"GET {path}" for _, text in documented.values() for path in code(text) if path.startswith("/")}
    assert set(documented) | parts == {f"{method} {path}" for method, path in control_calls()}
    api = Api()
    body = METRICS | {"name": "gpu-1"}
    rights = {f"{call.method} {call.path}": right_of(call) for call in CALLS}
    always = {f"{call.method} {call.path}": call.always for call in CALLS}
    assert all(always[call] == (right not in ("", "read")) for call, (right, _) in documented.items())
    for call, (right, _) in documented.items():
        method, path = call.split()
        assert rights[call] == right, call
        answer = api.call(
            method, path.replace("{id}", "no-such"), body if method in ("POST", "PATCH") else None, authorized=False
        )
        by_code = call == "POST /api/join"  # which takes a join code in place of a right
        assert (answer.status_code == 401) == (always[call] or by_code), call


def test_every_route_of_ollama_is_documented() -> None:
    documented: dict[str, str] = {}
    for calls, whom in table(DOCS / "api.md", "call", "goes to"):
        documented |= {re.sub(r"/[A-Z]+$", "/{}", path): whom for path in code(calls)}
    assert set(documented) == {route.path for route in ROUTES}
    kinds = {
        (documented[route.path] if route.path not in ("/", "/api/version") else "merged", route.kind)
        for route in ROUTES
    }
    assert len({kind for _, kind in kinds}) == len({whom for whom, _ in kinds}) - 1


def test_every_field_of_agents_and_reports_is_documented() -> None:
    api = Api()
    api.call("POST", "/api/agents", {"name": "gpu-1", "url": "http://10.0.0.1:11434"})
    fields = {name for row in table(DOCS / "api.md", "field", "meaning") for name in code(row[0])}
    assert fields == set(api.call("GET", "/api/agents/gpu-1").json())
    rows = table(DOCS / "api.md", "field", "")
    assert {name for row in rows for name in code(row[0])} == set(AgentMetrics.model_fields)
    required = {name for name, field in AgentMetrics.model_fields.items() if field.is_required()}
    assert {name for row in rows if row[1] == "required" for name in code(row[0])} == required


@pytest.mark.e2e
def test_every_flag_and_collector_of_the_reporter_is_documented() -> None:
    rows = table(REPORTER, "option", "default")
    documented = {code(row[0])[0].split()[0] for row in rows}
    assert documented == flags(sys.executable, "-m", "agent_reporter")
    assert [code(row[0])[0] for row in table(REPORTER, "collector")] == list(COLLECTORS)


@each_page
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    if page == CHANGES:
        return
    for named in inline_code(page):
        if re.fullmatch(r"tests/[\w/.]+", named):
            assert (ROOT / named).exists(), named


def test_every_command_is_documented() -> None:
    sources = [source.read_text("utf-8") for source in (ROOT / "addon").rglob("*.py")]
    defined = {
        name for text in sources for name in re.findall(r"^ +@\S*\(\"(balancer\.[a-z]+)\"\)$", text, re.MULTILINE)
    }
    documented = {each.split()[0] for each in inline_code(DOCS / "inspection.md") if each.startswith("balancer.")}
    assert documented == defined


def flags(*words: str) -> set[str]:
    """The long flags of a program."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", output(*words, "--help")))


@pytest.mark.e2e
@each_page
def test_commands_in_blocks_are_real(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("sh", "console"):
            for line in commands(block):
                check_line(line)
        if block.language == "powershell":
            for line in commands(block):
                check_line(line.replace(".venv\\Scripts\\", ".venv/bin/"))


@pytest.mark.e2e
@each_page
def test_commands_in_text_are_real(page: Path) -> None:
    if page == CHANGES:
        return
    for text in inline_code(page):
        if re.match(r"(?:\.venv/bin/)?(?:python -m|pytest|mitm\w+ |ollama-(?:balancer|agent)\S* -)", text):
            check_line(re.sub(r" \[\w+ \.\.\.\]| (?:FILE|NAME|PATH)\b", "", text))


def check_line(line: str) -> None:
    """Fail where one of its commands names a program, module, flag, option, path or route that is not there."""
    for part in re.split(r"&&|;|\|", re.sub(r"\$\([^()]*\)", "x", line)):
        words = shlex.split(part, comments=True)
        while words and (words[0] == "sudo" or re.fullmatch(r"\w+=.*", words[0])):
            words.pop(0)
        if words and words[0] != "export":
            check_command(words[0].removeprefix(".venv/bin/"), words[1:], line)


def check_command(name: str, arguments: list[str], line: str) -> None:
    given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    for url in arguments:
        if match := re.match(r"http://(?:127\.0\.0\.1:8080|BALANCER:8080)(/[^?]*)", url):
            assert is_control_path(match[1]) or find_route(match[1]) is not None, line
    if name in ("python", "python3", "py") and arguments[:1] == ["-m"]:
        module = arguments[1]
        assert importlib.util.find_spec(module) is not None, line
        known = flags(sys.executable, "-m", module) if given else set()
    elif name in OTHERS:
        return
    else:
        assert Path(program(name)).exists(), line
        subcommands = {"ruff": 1, "pip": 1, "ollama-balancer": 2}
        command = [*takewhile(lambda word: not word.startswith("-"), arguments)][: subcommands.get(name, 0)]
        known = flags(program(name), *command) if given else set()
    if name == "ollama-agent-reporter" or name.startswith("ollama-balancer"):
        projects = (ROOT / "pyproject.toml", ROOT / "agent_reporter" / "pyproject.toml")
        assert any(name in tomllib.loads(file.read_text("utf-8"))["project"]["scripts"] for file in projects), line
    if name == "pytest":
        known |= {"--benchmark-only", "--benchmark-columns", "--benchmark-save", "--benchmark-compare"}
        paths = [word for word in arguments if not (word.startswith("-") or word.isdecimal() or word in KINDS)]
        assert [path for path in paths if not (ROOT / path).exists()] == [], line
        known |= {"--benchmark-compare-fail", "--benchmark-json"}
    assert given <= known, line
    if name == "pip":
        check_installed(arguments, line)
    if name in ("mitmdump", "mitmweb", "mitmproxy"):
        settings = [each for flag, each in pairwise(arguments) if flag == "--set"]
        named = {setting.partition("=")[0] for setting in settings}
        assert {each for each in named if each.startswith("balancer_")} <= set(options()), line
        scripts = [each for flag, each in pairwise(arguments) if flag == "-s"]
        assert all((ROOT / script).is_file() for script in scripts), line


def check_installed(arguments: list[str], line: str) -> None:
    """Our own distributions and their extras."""
    for word in arguments:
        if match := re.fullmatch(r"(\.[\w./]*)(?:\[(\w+)\])?", word):
            project = tomllib.loads((ROOT / match[1] / "pyproject.toml").read_text("utf-8"))["project"]
            assert match[2] is None or match[2] in project["optional-dependencies"], line


@each_page
def test_blocks_can_be_read(page: Path) -> None:
    assert text_of(page).count("\n```") % 2 == 0
    for block in blocks(page):
        match block.language:
            case "python":
                ast.parse(block.text)
            case "toml":
                tomllib.loads(block.text)
            case "yaml":
                YAML(typ="safe").load(block.text)


def test_the_commands_that_people_copy_first_are_there() -> None:
    typed = [line for block in blocks(README) if block.language == "sh" for line in commands(block)]
    assert any(line.endswith("pip install -q -e ./agent_reporter -e .") for line in typed)
    assert ".venv/bin/mitmdump -s addon/balancer.py --set balancer_demo=3" in typed


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    these = Hosts()
    try:
        yield these
    finally:
        these.stop()
