"""The fleet file (`balancer_config`): agents and options in YAML.

The models below check it, and the JSON Schema for editors is made from them. Nothing in it is ignored: what is not
known is refused, and so is what is not supported yet.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    create_model,
)
from pydantic_core import PydanticCustomError

from agent_reporter.limits import NAME_PATTERN

from ..core.address import Address, DnsName
from ..core.static_agents import AgentSpec
from ..storage.yaml_file import Document, Keys, YamlFileError, parse, read_bytes
from .fleet import Finding, Fleet, FleetFileError, dotted
from .option_values import SWITCH, Kind, agent_url, shown_value, whole_number
from .options import PREFIX, TABLE

URL_ACCEPTS = "http://host:port, or dns+http://name:port for all addresses of a name"

LATER = {
    ("agents", "*"): ("ca_file", "headers", "kind", "tier", "weight", "models", "hours", "wake"),
    (): ("models",),
}
"""Settings that are not supported yet, by where they will be."""


def _where(url: str) -> Address | DnsName:
    return DnsName.parse(url) if url.lower().startswith("dns+") else Address.parse(url)


_URL = Kind(str, URL_ACCEPTS, _where, {"pattern": "^(dns\\+)?[hH][tT][tT][pP]://"})
_SLOTS = whole_number(0, 10_000)


def _read_by(kind: Kind[Any]) -> PlainValidator:
    """A validator whose error says what the kind takes."""

    def check(value: object) -> Any:
        try:
            return kind.raw_from(value)
        except ValueError as e:
            raise PydanticCustomError("value", "{problem}", {"problem": f"{e}; it takes {kind.accepts}"}) from e

    return PlainValidator(check)


_JSON_TYPES: dict[Any, Mapping[str, object]] = {
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    Sequence[str]: {"type": ["array", "string"], "items": {"type": "string"}},
}


def _schema_of(kind: Kind[Any]) -> WithJsonSchema:
    return WithJsonSchema({**_JSON_TYPES[kind.raw], **kind.schema})


def _nothing_is_empty(value: object) -> object:
    """A heading whose entries are all commented out is empty."""
    return {} if value is None else value


class AgentEntry(BaseModel):
    """One Ollama host, or all hosts that a name in DNS leads to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, _read_by(_URL), _schema_of(_URL)] = Field(
        description=f"Where its Ollama listens: {URL_ACCEPTS}. A name is resolved again every 5 s."
    )
    slots: Annotated[int | None, _read_by(_SLOTS), _schema_of(_SLOTS)] = Field(
        default=None,
        description="Requests it may run at once per model, in place of the option slots. 0: what its report says, "
        "else learned.",
    )
    drained: Annotated[bool, _read_by(SWITCH), _schema_of(SWITCH)] = Field(
        default=False, description="Whether it gets no new requests; those that run finish."
    )


def _options_model() -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for name, row in TABLE.items():
        if not row.not_in_file:
            kind: Any = Annotated[Any, _read_by(row.kind), _schema_of(row.kind)]
            about = (
                f"{row.help} It takes {row.kind.accepts}. Default: {row.default_text or shown_default(row.default)}."
            )
            fields[name.removeprefix(PREFIX)] = (kind, Field(default=None, description=about))
    model: type[BaseModel] = create_model(
        "Options",
        __config__=ConfigDict(extra="forbid", frozen=True),
        __doc__="The balancer's options, without balancer_.",
        **fields,
    )
    return model


def shown_default(default: object) -> str:
    return "none" if default in ([], "") else str(default).lower()


Options = _options_model()


class FleetFile(BaseModel):
    """The fleet file of ollama-balancer."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="ollama-balancer fleet file")

    agents: Annotated[
        dict[Annotated[str, Field(pattern=NAME_PATTERN)], AgentEntry], BeforeValidator(_nothing_is_empty)
    ] = Field(default={}, description="The hosts, by name.")
    options: Annotated[Options, BeforeValidator(_nothing_is_empty)] = Field(  # type: ignore[valid-type]
        default_factory=Options
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    made = FleetFile.model_json_schema()
    models = [made, *made["$defs"].values()]
    for entry in [entry for model in models for entry in model["properties"].values()]:
        entry.pop("title", None)
        if entry.get("default", 0) in (None, {}):
            del entry["default"]
    made["properties"]["agents"] |= {"type": ["object", "null"], "additionalProperties": False}
    made["properties"]["options"] = {"anyOf": [made["properties"]["options"], {"type": "null"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def read_fleet(path: str) -> Fleet:
    """Read the file at that path. Raises FleetFileError."""
    try:
        return fleet_of(path, read_bytes(path))
    except YamlFileError as e:
        raise FleetFileError(path, [Finding(e.line, str(e))]) from e


def fleet_of(path: str, content: bytes) -> Fleet:
    """Check the content of the file. Raises FleetFileError."""
    try:
        document = parse(content)
    except YamlFileError as e:
        raise FleetFileError(path, [Finding(e.line, str(e))]) from e
    if document.data is None:
        raise FleetFileError(path, [Finding(1, f"it is empty; it takes settings: {', '.join(FleetFile.model_fields)}")])
    try:
        file = FleetFile.model_validate(document.data)
    except ValidationError as e:
        raise FleetFileError(path, sorted(set(_findings(document, e)))) from e
    agents: dict[str, AgentSpec] = {}
    findings = []
    for name, entry in file.agents.items():
        where = _where(entry.url)
        try:
            agent_url(name, entry.url)
        except ValueError as e:
            findings.append(Finding(document.line(("agents", name)), f"agents.{name}: {e}"))
        agents[name] = AgentSpec(where, entry.slots, entry.drained)
    if findings:
        raise FleetFileError(path, findings)
    given = file.options.model_dump(exclude_unset=True)  # type: ignore[attr-defined]
    return Fleet(path, agents, {PREFIX + name: value for name, value in given.items()}, document, content)


def _findings(document: Document, error: ValidationError) -> Iterator[Finding]:
    for each in error.errors(include_url=False):
        keys: Keys = tuple(key for key in each["loc"] if key != "[key]")
        yield Finding(document.line(keys), f"{dotted(keys)}: {_problem(keys, each)}" if keys else _problem(keys, each))


def _problem(keys: Keys, error: Any) -> str:
    match error["type"]:
        case "extra_forbidden":
            return _unknown(keys[:-1], str(keys[-1]))
        case "missing":
            return f"is missing; it takes {URL_ACCEPTS}"
        case "value":
            return str(error["msg"])
        case "string_pattern_mismatch":
            return "is not a name: letters, digits and . _ : [ ] -, at most 64, beginning with a letter or digit"
        case _:
            what = f"{shown_value(error['input'])} is not accepted"
            accepted = "hosts by name" if keys == ("agents",) else f"settings: {', '.join(_accepted(keys))}"
            return f"{what}; it takes {accepted}"


def _accepted(keys: Keys) -> list[str]:
    """The settings that are accepted there."""
    model = AgentEntry if keys[:1] == ("agents",) else Options if keys else FleetFile
    return list(model.model_fields)


def _unknown(place: Keys, name: str) -> str:
    accepted = _accepted(place)
    here = f"accepted here: {', '.join(accepted)}"
    if name in LATER.get(tuple("*" if at == 1 else str(key) for at, key in enumerate(place)), ()):
        return f"is not supported yet; {here}"
    if place == ("options",):
        plain = name.removeprefix(PREFIX)
        row = TABLE.get(PREFIX + plain)
        if row is not None and row.not_in_file:
            return f"is not accepted in the file: {row.not_in_file}"
        if plain in accepted:
            return f"is written without {PREFIX} here: {plain}"
    close = difflib.get_close_matches(name, accepted, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"there is no such setting; {hint}{here[0].upper() + here[1:] if hint else here}"
