"""The file of what was learned of the fleet: a line of JSON for each agent and model, written whole."""

import json
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..core.knowledge import AgentRecord, Known, ModelRecord, OutputRecord
from ..core.registry import MAX_AGENTS
from ..core.scoring.estimates import MAX_MODELS
from ..core.scoring.facts import MAX_HARDWARE
from ..text import one_line
from .files import open_own, replace

logger = logging.getLogger(__name__)

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
    slots: _Slots | None = None
    speed: _Value | None = None

    def record(self) -> ModelRecord:
        decode, prefill, load = (
            None if each is None else Known(*each) for each in (self.decode, self.prefill, self.load)
        )
        return ModelRecord(self.model, self.digest, self.at, decode, prefill, load, self.slots, self.speed)


class StoredAgent(_Line):
    agent: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    hardware: Annotated[str, Field(max_length=MAX_HARDWARE)] | None = None
    version: Annotated[str, Field(max_length=256)] | None = None
    parallel: _Slots | None = None
    fits: Annotated[int, Field(ge=0, le=1000)] = 0
    models: Annotated[list[StoredModel], Field(max_length=MAX_MODELS)]

    def record(self) -> AgentRecord:
        models = tuple(each.record() for each in self.models)
        return AgentRecord(self.agent, self.hardware, self.version, self.parallel, self.fits, models)


class StoredOutput(_Line):
    model: _Name
    at: _Time
    output: _Known

    def record(self) -> OutputRecord:
        return OutputRecord(self.model, self.at, Known(*self.output))


_LINE: TypeAdapter[StoredAgent | StoredOutput] = TypeAdapter(StoredAgent | StoredOutput)

type Record = AgentRecord | OutputRecord


class LearnedFile:
    """`path` is the file's; the folder is made if need be. Its methods do I/O: they are to be called in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._written: str | None = None
        """The content of the file, if known."""
        self._failed = False
        self._protected = False
        """Whether the file could not be read and must not be overwritten."""

    def read(self) -> list[Record]:
        """What is stored. A damaged file is renamed."""
        try:
            with open_own(self.path) as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            return _parse(content)
        except FileNotFoundError:
            return []
        except OSError as e:
            self._protected = True
            logger.warning(
                "What was learned of the agents cannot be read from %s (%s): it is learned anew, and not saved.",
                self.path,
                e.strerror or e,
            )
        except ValueError as e:
            self._set_aside(_reason(e))
        return []

    def save(self, records: Iterable[Record]) -> bool:
        """Replace the file, if there is anything new; False if that failed, which is logged once."""
        with self._lock:
            if self._protected:
                return True
            lines = filter(None, map(_line, records))
            text = "".join(f"{line}\n" for line in ('{"version":1}', *lines))
            if text == self._written or (self._written is None and text.count("\n") == 1 and not self.path.exists()):
                return True
            try:
                replace(self.path, text)
            except OSError as e:
                if not self._failed:
                    logger.warning(
                        "What was learned of the agents cannot be saved to %s (%s): after a restart it has to be "
                        "learned again. Trying again.",
                        self.path,
                        e.strerror or e,
                    )
                self._failed = True
                return False
            if self._failed:
                logger.info("What was learned of the agents is saved to %s again.", self.path)
            self._written, self._failed = text, False
            return True

    def _set_aside(self, reason: str) -> None:
        damaged = self.path.with_name(self.path.name + ".damaged")
        try:
            os.replace(self.path, damaged)
            where = f"it was renamed to {damaged}"
        except OSError as e:
            self._protected = True
            where = f"it could not be renamed ({e.strerror or e}), so nothing is saved"
        logger.warning(
            "%s is not what the balancer has written there: %s; %s, and speeds are learned anew.",
            self.path,
            reason,
            where,
        )


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


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return str(error)
