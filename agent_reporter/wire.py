"""What a host tells the balancer. Defined once, here, for both sides."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AliasChoices, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from .limits import MAX_MODELS, MAX_VALUES, NAME_PATTERN

Percent = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
ShortText = Annotated[str, Field(max_length=256)]

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


def _rfc3339(value: object) -> object:
    """Refuse what pydantic would read as a time but RFC 3339 does not know: numbers, dates, times without a zone."""
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC3339.fullmatch(value)):
        return value
    raise ValueError("must be an RFC 3339 time with a zone, such as 2026-01-31T12:00:00Z")


Timestamp = Annotated[AwareDatetime, BeforeValidator(_rfc3339)]

URL_PATTERN = (
    r"^http://([A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?/?$"
)
"""What a host's URL looks like, for those who read the schema; what is wrong with one, its reader says better."""


class ModelEntry(BaseModel):
    """A model as Ollama's /api/tags and /api/ps list it. Only `name` is required; all else is kept as it came."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: Annotated[str, Field(min_length=1, max_length=512)]


Models = Annotated[list[ModelEntry], Field(max_length=MAX_MODELS, fail_fast=True)]


class GpuMetrics(BaseModel):
    """One GPU. Each figure but the name may be null: not every driver tells everything."""

    name: ShortText
    utilization: Percent | None = None
    """Percent."""
    memory_used: Count | None = None
    """Bytes."""
    memory_total: Count | None = None
    """Bytes."""
    temperature: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    """Degrees Celsius."""
    power: Amount | None = None
    """Watts."""


class CollectorOutcome(BaseModel):
    """How the reading of one part of a report went."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    ok: Annotated[bool, Field(strict=True)]
    seconds: Amount


class AgentMetrics(BaseModel):
    """One report of a host.

    Numbers must be JSON numbers in range (no strings, NaN or infinities); unknown fields are ignored.
    Validation errors are pydantic's ValidationError, whose entries name the field.
    """

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    agent_id: ShortText = ""
    """May be left out: the path's id wins."""
    cpu_usage: Percent
    memory_usage: Percent
    active_requests: Count
    """Requests running on the host that did not come through a balancer."""
    avg_response_time: Annotated[
        Amount | None, Field(validation_alias=AliasChoices("avg_response_time", "avg_response_time_ms"))
    ] = None
    """Milliseconds."""
    timestamp: Timestamp
    models: Models | None = None
    loaded_models: Models | None = None
    gpus: Annotated[list[GpuMetrics], Field(max_length=64)] | None = None
    ollama_version: ShortText | None = None
    num_parallel: Annotated[int, Field(strict=True, ge=1, le=100_000)] | None = None
    max_loaded_models: Annotated[int, Field(strict=True, ge=0, le=100_000)] | None = None
    ollama_ok: Annotated[bool, Field(strict=True)] | None = None
    """Whether the host's own Ollama answered when the report was made."""
    load_average: Annotated[list[Amount], Field(min_length=3, max_length=3)] | None = None
    """Processes that ran or waited to run, over 1, 5 and 15 minutes."""
    cpu_count: Count | None = None
    disk_free: Count | None = None
    """Bytes, on the file system of the models."""
    disk_total: Count | None = None
    network_received: Amount | None = None
    """Bytes a second."""
    network_sent: Amount | None = None
    reporter_version: ShortText | None = None
    """Of the program that made the report."""
    collectors: Annotated[list[CollectorOutcome], Field(max_length=64)] | None = None
    """How the reading of each part went."""


class AgentRegistration(BaseModel):
    """The body of POST /api/agents."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    url: Annotated[str, Field(max_length=2048, json_schema_extra={"pattern": URL_PATTERN})] | None = None
    """http://host:port; left out: the caller's address and `port`."""
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    instance: Annotated[str, Field(max_length=64)] | None = None
    """Made up anew at each start of a reporter, so that two of one name are told apart."""


class JoinRequest(BaseModel):
    """The body of POST /api/join; the join code is in the header Authorization."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """The name that the host has for itself. The code may say another."""


def check_size(body: bytes) -> bytes:
    """The same body. ValueError: it has so many values that to read it would hold up everything else."""
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if values > MAX_VALUES:
        raise ValueError(f"it has {values} values, which is more than {MAX_VALUES}")
    return body


def describe(errors: list[Any]) -> str:
    """Pydantic's list of errors (`ValidationError.errors()`) in one line that names each field; at most five."""
    parts = [
        f"{'.'.join(str(p) for p in e['loc']) or 'body'}: {e['msg'].removeprefix('Value error, ')}" for e in errors[:5]
    ]
    if len(errors) > 5:
        parts.append(f"and {len(errors) - 5} more")
    return "; ".join(parts)
