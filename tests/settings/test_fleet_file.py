"""What a fleet file may say, and what is said about one that says something else."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from ollama_balancer.cli.main import main
from ollama_balancer.core.address import Address, DnsName
from ollama_balancer.core.static_agents import AgentSpec
from ollama_balancer.settings.fleet import FleetFileError
from ollama_balancer.settings.fleet_file import LATER, AgentEntry, FleetFile, Options, fleet_of, schema
from ollama_balancer.settings.options import TABLE
from ollama_balancer.storage.yaml_file import MAX_BYTES, MAX_DEPTH
from tests.examples import amount
from tests.markdown import DOCS, blocks

EXAMPLE = DOCS / "fleet.yaml"


def findings(text: str | bytes) -> list[str]:
    with pytest.raises(FleetFileError) as refused:
        fleet_of("f.yaml", text.encode() if isinstance(text, str) else text)
    assert str(refused.value).startswith(refused.value.findings[0].at("f.yaml"))
    return [finding.at("f.yaml") for finding in refused.value.findings]


def finding(text: str | bytes) -> str:
    [only] = findings(text)
    return only


def test_agents_and_options_are_read() -> None:
    fleet = fleet_of(
        "f.yaml",
        b"""
agents:
  gpu-1: {url: "http://10.0.0.1"}
  gpu-2: {url: http://gpu-2:1234, slots: 0, drained: true}
  10.0.0.3: {url: http://10.0.0.3}
  pool: {url: dns+http://ollama.default.svc, slots: 4}
options: {retries: 5, memory: 4g, body_limit: 0, hosts: a.test, origins: [https://a.test], announce: true}
""",
    )
    assert fleet.agents == {
        "gpu-1": AgentSpec(Address("10.0.0.1", 11434)),
        "gpu-2": AgentSpec(Address("gpu-2", 1234), 0, drained=True),
        "10.0.0.3": AgentSpec(Address("10.0.0.3", 11434)),
        "pool": AgentSpec(DnsName("ollama.default.svc", 11434), 4),
    }
    assert fleet.options == {
        "balancer_retries": 5,
        "balancer_memory": "4g",
        "balancer_body_limit": "0",
        "balancer_hosts": ["a.test"],
        "balancer_origins": ["https://a.test"],
        "balancer_announce": True,
    }
    assert fleet_of("f.yaml", b"agents:\noptions:\n  # retries: 1\n").summary == "0 agents, 0 options"


def test_every_finding_has_its_line_and_says_what_is_accepted() -> None:
    text = """agents:
  a: {url: https://x}
  b:
    url: http://user:secret@x
    slots: four
    weights: 2
  c d: {url: http://x}
  e: {slots: -1, drained: yes}
  a-name-of-more-than-24-letters: {url: http://x}
options:
  retrys: 2
  retries: 1000
  balancer_slots: 2
  mode: fast
"""
    url = "it takes http://host:port, or dns+http://name:port for all addresses of a name"
    said = findings(text)
    assert "secret" not in "".join(said)
    assert said[:8] == [
        f"f.yaml:2: agents.a.url: 'https://x' does not begin with http://: write http://host:port; {url}",
        f"f.yaml:4: agents.b.url: 'http://***@x' is not just a host and a port: write http://host:port; {url}",
        "f.yaml:5: agents.b.slots: 'four' is not accepted; it takes a whole number from 0 to 10000",
        "f.yaml:6: agents.b.weights: there is no such setting; accepted here: url, slots, drained",
        "f.yaml:7: agents.c d: is not a name: letters, digits and . _ : [ ] -, at most 64, beginning with a letter or "
        "digit",
        "f.yaml:8: agents.e.drained: 'yes' is not accepted; it takes true or false",
        "f.yaml:8: agents.e.slots: -1 is not accepted; it takes a whole number from 0 to 10000",
        f"f.yaml:8: agents.e.url: is missing; {url}",
    ]
    assert said[8].startswith(
        "f.yaml:11: options.retrys: there is no such setting; did you mean retries? Accepted here: "
    )
    assert said[9:] == [
        "f.yaml:12: options.retries: 1000 is not accepted; it takes a whole number from 0 to 100",
        "f.yaml:13: options.balancer_slots: is written without balancer_ here: slots",
        "f.yaml:14: options.mode: 'fast' is not a mode; it takes one of roundrobin, metrics, least_requests, adaptive",
    ]


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, names in LATER.items() for name in names])
def test_what_is_not_supported_yet_is_refused_by_its_name(place: tuple[str, ...], name: str) -> None:
    text = f"agents: {{a: {{url: http://a, {name}: x}}}}" if place else f"{name}: {{}}"
    assert f"{name}: is not supported yet; accepted here: {'url, slots, drained' if place else 'agents, options'}" in (
        finding(text)
    )


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.not_in_file])
def test_options_that_make_no_sense_in_the_file_are_refused_with_what_to_do(name: str) -> None:
    for written in (name, name.removeprefix("balancer_")):
        said = finding(f"options: {{{written}: a-secret}}")
        assert said == f"f.yaml:1: options.{written}: is not accepted in the file: {TABLE[name].not_in_file}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f.yaml:1: it is empty; it takes settings: agents, options"),
        ("# nothing\n", "f.yaml:1: it is empty"),
        ("[1]", "f.yaml:1: a list is not accepted; it takes settings: agents, options"),
        ("agents: [a]", "f.yaml:1: agents: a list is not accepted; it takes hosts by name"),
        ("agents:\n  a: http://x", "f.yaml:2: agents.a: 'http://x' is not accepted; it takes settings: url, slots"),
        ("agents:\n  a: {url: http://a}\n  a: {url: http://b}", "f.yaml:3: 'a' is given twice: here and in line 2"),
        ("agents:\n  a: {url: http://a, url: http://b}", "f.yaml:2: 'url' is given twice: here and in line 2"),
        ("agents: {}\n---\nagents: {}", "f.yaml:2: there is a second document"),
        ("a: &x [1]\nb: [*x, *x]", "f.yaml:1: anchors and aliases (& and *) are not accepted"),
        ("a: 1\nb: {<<: *x}", "f.yaml:2: anchors and aliases"),
        ("%YAML 9.9\n---\nagents: {}", "f.yaml:1: directives (lines with %) are not accepted"),
        ("a: !!python/object/apply:os.system [x]", "f.yaml:1: tags (!) are not accepted"),
        ("- " * amount(100_000, 1_000), f"more than {MAX_DEPTH} levels deep"),
        ("[" * amount(200_000, 1_000), f"more than {MAX_DEPTH} levels deep"),
        ("agents: {a", "f.yaml:1: it is not YAML"),
        ("options:\n\tretries: 1", "f.yaml:2: it is not YAML"),
        ("? [a]\n: b", "f.yaml:1: a key must be a name"),
        ("a: 1\nb: \x00", "f.yaml:2: it contains a control character"),
        (b"a: 1\nb: \xff", "f.yaml:2: it is not UTF-8"),
        ("options:\n  retries: " + "9" * 10_000, "f.yaml:2: '9999"),
        ("agents: 0x" + "f" * 10_000, "f.yaml:1: '0xffff"),
        ("options: {hosts: [1]}", "an entry of the list is no text"),
        ("options: {retries: true}", "true is not accepted; it takes a whole number"),
        ("options: {announce: 1}", "1 is not accepted; it takes true or false"),
        ("options: {slots: }", "no value is given; it takes a whole number"),
        ("agents: {a-name-of-more-than-24-letters: {url: dns+http://x}}", "at most 24, as each address is added"),
        ("agents: {a: {url: dns+http://10.0.0.1}}", "has an IP address, which DNS does not resolve"),
        ("agents: {a: {url: dns+https://x}}", "https is not supported yet; write dns+http://name:port"),
    ],
)
def test_what_is_refused(text: str | bytes, says: str) -> None:
    said = finding(text)
    assert says in said
    assert len(said) < 700


def test_check_prints_all_findings_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("agents:\n  a: {}\nmodels: {}\n")
    with pytest.raises(SystemExit) as ended:
        main(["check", str(file)])
    assert ended.value.code == 1
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == [f"{file}:2", f"{file}:3"]
    for unreadable, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "irectory"),
        (Path("/dev/zero"), "regular"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["check", str(unreadable)])
        assert ended.value.code == 1
        assert why in capsys.readouterr().out
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(SystemExit):
        main(["check", str(file)])
    assert "more than 256 KiB" in capsys.readouterr().out
    file.write_text("agents: {a: {url: http://a}}\n")
    main(["check", str(file)])
    assert capsys.readouterr().out == f"{file} is fine: 1 agent, 0 options.\n"


def test_the_schema_is_one_and_fits_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == schema()
    validator = jsonschema.Draft202012Validator(printed)
    validator.check_schema(printed)
    assert set(printed["properties"]) == set(FleetFile.model_fields)
    for name, model in (("AgentEntry", AgentEntry), ("Options", Options)):
        properties = printed["$defs"][name]["properties"]
        assert set(properties) == set(model.model_fields)
        assert all(entry["description"] and not entry.get("default") for entry in properties.values())
    assert printed["$defs"]["Options"]["properties"]["access"]["enum"] == ["auto", "open", "keys"]
    validator.validate(
        {"agents": {"a": {"url": "dns+http://x", "slots": 3}}, "options": {"memory": "4g", "retries": 1}}
    )
    validator.validate({"agents": None, "options": None})
    wrong: list[dict[str, object]] = [
        {"models": {}},
        {"agents": {"a b": {"url": "http://a"}}},
        {"agents": {"a": {}}},
        {"agents": {"a": {"url": "https://a"}}},
        {"agents": {"a": {"url": "http://a", "tier": 1}}},
        {"options": {"mode": "fast"}},
        {"options": {"retries": -1}},
        {"options": {"token": "a-secret"}},
    ]
    assert [each for each in wrong if validator.is_valid(each)] == []


def test_the_example_is_accepted_by_the_models_and_by_the_schema() -> None:
    text = EXAMPLE.read_bytes()
    fleet = fleet_of(EXAMPLE.name, text)
    assert {bool(spec.slots) for spec in fleet.agents.values()} == {True, False}
    assert any(spec.drained for spec in fleet.agents.values())
    assert any(isinstance(spec.where, DnsName) for spec in fleet.agents.values())
    assert fleet.options
    jsonschema.Draft202012Validator(schema()).validate(YAML(typ="safe").load(text))


def test_the_file_in_the_documentation_is_accepted() -> None:
    written = [block.text for block in blocks(DOCS / "options.md") if block.language == "yaml"]
    assert [fleet_of("options.md", text.encode()).summary for text in written] == ["3 agents, 2 options"]
