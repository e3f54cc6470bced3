"""The file of what was learned of the fleet: a line of JSON for each agent and model, written whole."""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..core.knowledge import AgentRecord, Known, ModelRecord, OutputRecord
from ..core.registry import MAX_AGENTS
from ..core.scoring.estimates import MAX_MODELS
from ..core.scoring.facts import MAX_HARDWARE
from ..core.scoring.prefix_cache import MAX_PROMPTS
from ..text import one_line
from .whole_file import WholeFile, Words

FILE_NAME = "ollama-balancer-learned.jsonl"

MAX_BYTES = 64 * 1024 * 1024

MAX_NAME = 1024
"""Characters of a model's name."""


def _plain(name: str) -> str:
    if name != one_line(name, MAX_NAME):
        raise ValueError("it has characters that cannot be printed")
    return name


_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_plain)]
_Time = Annotated[float, Field(ge=0, le=2**40, allow_inf_nan=False)]
_Value = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=2**52)]
_Slots = Annotated[int, Field(ge=1, le=100_000)]
_Known = tuple[_Value, _Count]


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Head(_Line):
    version: Literal[1]


class StoredModel(_Line):
    model: _Name
    digest: Annotated[str, Field(pattern=r"^[\w:.-]{1,128}$")] | None = None
    at: _Time
    decode: _Known | None = None
    prefill: _Known | None = None
    load: _Known | None = None
    slots: Annotated[int, Field(ge=2, le=100_000)] | None = None
    prompts: Annotated[int, Field(ge=1, le=MAX_PROMPTS)] | None = None
    speed: _Value | None = None

    def record(self) -> ModelRecord:
        decode, prefill, load = (
            None if each is None else Known(*each) for each in (self.decode, self.prefill, self.load)
        )
        return ModelRecord(
            self.model, self.digest, self.at, decode, prefill, load, self.slots, self.prompts, self.speed
        )


class StoredAgent(_Line):
    agent: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    hardware: Annotated[str, Field(max_length=MAX_HARDWARE)] | None = None
    version: Annotated[str, Field(max_length=256)] | None = None
    parallel: _Slots | None = None
    models: Annotated[list[StoredModel], Field(max_length=MAX_MODELS)]

    def record(self) -> AgentRecord:
        models = tuple(each.record() for each in self.models)
        return AgentRecord(self.agent, self.hardware, self.version, self.parallel, models)


class StoredOutput(_Line):
    model: _Name
    at: _Time
    output: _Known

    def record(self) -> OutputRecord:
        return OutputRecord(self.model, self.at, Known(*self.output))


_LINE: TypeAdapter[StoredAgent | StoredOutput] = TypeAdapter(StoredAgent | StoredOutput)

type Record = AgentRecord | OutputRecord


WORDS = Words(
    "The figures learned of the agents",
    "what the balancer has written there",
    unreadable="they are learned anew, and not saved",
    unsaved="after a restart they have to be learned again",
    anew="they are learned anew",
)


class LearnedFile:
    """Its methods do I/O: they are to be called in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = WholeFile(path, MAX_BYTES, WORDS)
        self._lock = threading.Lock()

    def read(self) -> list[Record]:
        """What is stored. A damaged file is renamed."""
        return self._file.read(_parse) or []

    def save(self, records: Iterable[Record]) -> bool:
        """Replace the file, if there is anything new; False if that failed, which is logged once."""
        with self._lock:
            lines = list(filter(None, map(_line, records)))
            text = "".join(f"{line}\n" for line in ('{"version":1}', *lines))
            return self._file.write(text, empty=not lines)


def _parse(content: bytes) -> list[Record]:
    """ValueError: it is something else."""
    head, *lines = content.split(b"\n")
    Head.model_validate_json(head)
    if len(lines) > MAX_AGENTS + MAX_MODELS + 1:
        raise ValueError(f"it has {len(lines)} lines")
    return [_LINE.validate_json(line).record() for line in lines if line]


def _line(record: Record) -> str | None:
    """The line of a record; None: it would not be read, as a host has told something unusable."""
    if isinstance(record, OutputRecord):
        fields: dict[str, Any] = {"model": record.model, "at": round(record.at), "output": record.tokens}
    else:
        fields = record._asdict()
        models = [_present({**each._asdict(), "at": round(each.at)}) for each in record.models]
        fields = _present({"agent": fields.pop("id"), **fields, "models": models})
    line = json.dumps(fields, separators=(",", ":"))
    try:
        _LINE.validate_json(line)
    except ValidationError:
        return None
    return line


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
