"""The history file: one line of JSON per minute, appended when the minute is over."""

import logging
import os
import threading
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..core.history import FIELDS, MIN_FIELDS, MINUTES, History
from .files import open_own, replace

logger = logging.getLogger(__name__)

FILE_NAME = "ollama-balancer-history.jsonl"

MAX_BYTES = 64 * 1024 * 1024
"""Of the file's end that are read."""

_Name = Annotated[str, Field(max_length=1024)]
_Value = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
_Values = Annotated[
    list[_Value],
    Field(min_length=MIN_FIELDS, max_length=len(FIELDS)),
    AfterValidator(lambda values: [*values, *[0.0] * (len(FIELDS) - len(values))]),
]


class MinuteRecord(BaseModel):
    """One minute. Of two lines for the same minute the later one counts."""

    model_config = ConfigDict(extra="ignore")

    minute: Annotated[int, Field(ge=0, le=2**40)]
    rows: list[tuple[_Name, _Name, _Values]]


def closed_minutes(history: History, after: int, *, with_running: bool = False) -> list[MinuteRecord]:
    """The completed minutes after that one; `with_running`: including the current one."""
    return [
        MinuteRecord.model_construct(
            minute=number, rows=[(*key, values.tolist()) for key, values in minute.rows.items()]
        )
        for number, minute in history.last(MINUTES)
        if number > after and (number < history.now or with_running)
    ]


class HistoryFile:
    """`path` is the file's; the folder is made if need be. Its methods do I/O: they are to be called in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._lines = 0
        self._partial_line = False
        """Whether the last line may be incomplete."""
        self._failed = False

    def read(self) -> list[MinuteRecord]:
        """The stored minutes, oldest first. Invalid lines are skipped and logged."""
        try:
            with open_own(self.path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - MAX_BYTES))
                texts = file.read(MAX_BYTES).splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as e:
            logger.warning("The history cannot be read from %s: %s.", self.path, e.strerror or e)
            return []
        self._lines = len(texts)
        self._partial_line = bool(texts) and not texts[-1].endswith(b"\n")
        minutes: dict[int, MinuteRecord] = {}
        malformed = 0
        for text in texts:
            try:
                line = MinuteRecord.model_validate_json(text)
            except ValidationError:
                malformed += 1
            else:
                minutes[line.minute] = line
        if malformed > self._partial_line:  # half a line at the end is what a crash leaves
            logger.warning("%d lines of %s are not valid and were skipped.", malformed, self.path)
        return [minutes[number] for number in sorted(minutes)]

    def append(self, lines: list[MinuteRecord]) -> bool:
        """Append minutes; False if that failed, which is logged once."""
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self._lines > 2 * MINUTES:
                    self._truncate()
                text = "".join(f"{line.model_dump_json()}\n" for line in lines).encode()
                with open_own(self.path, append=True) as file:
                    partial_line, self._partial_line = self._partial_line, True
                    file.write(b"\n" * partial_line + text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as e:
                if not self._failed:
                    logger.warning(
                        "The history cannot be saved to %s (%s): it will be missing after a restart. Trying again.",
                        self.path,
                        e.strerror or e,
                    )
                self._failed = True
                return False
            if self._failed:
                logger.info("The history is saved to %s again.", self.path)
            self._partial_line = self._failed = False
            self._lines += len(lines)
            return True

    def _truncate(self) -> None:
        """Keep the last day."""
        lines = self.read()[-MINUTES:]
        replace(self.path, "".join(f"{line.model_dump_json()}\n" for line in lines))
        self._lines, self._partial_line = len(lines), False
