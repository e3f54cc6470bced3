"""Reads a YAML file that a person writes: into plain values, with the line of each.

What is read is checked before it is built: size, depth, anchors (with which a short file can be endless), tags,
directives and keys given twice.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode

from ..core.address import without_password
from ..text import one_line

MAX_BYTES = 256 * 1024
"""Of a file: that is read in two seconds, and holds 3,000 agents."""

MAX_DEPTH = 16

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not allow in a file."""

_DIRECTIVE = re.compile("(?:^|[\n\r\x85\u2028\u2029])%")

type Keys = tuple[str | int, ...]


class YamlFileError(ValueError):
    """The file is not one that is read; `line` is 0 where that is not because of a line."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.line = line


@dataclass
class Document:
    """What a file says."""

    data: Any = None
    lines: dict[Keys, int] = field(default_factory=dict)
    """The line of each entry, counted from 1; of that at ("agents", "gpu-1") and so on."""

    def line(self, path: Keys) -> int:
        """The line of that entry, or of what it would be in."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_bytes(path: str) -> bytes:
    """The content of the file; ~ is the user's folder. Raises YamlFileError."""
    # Without O_NONBLOCK a named pipe would be waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(os.path.expanduser(path), flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise YamlFileError("it is not a regular file")
            content = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise YamlFileError(f"it cannot be read ({e.strerror or e})") from e
    if len(content) > MAX_BYTES:
        raise YamlFileError(f"it has more than {MAX_BYTES // 1024} KiB, which is the maximum")
    return content


def parse(content: bytes) -> Document:
    """Read a document. Raises YamlFileError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise YamlFileError("it is not UTF-8", content.count(b"\n", 0, e.start) + 1) from e
    if (found := _UNPRINTABLE.search(text)) is not None:
        raise YamlFileError("it contains a control character", text.count("\n", 0, found.start()) + 1)
    if (found := _DIRECTIVE.search(text)) is not None:
        raise YamlFileError("directives (lines with %) are not accepted", text.count("\n", 0, found.end()) + 1)
    try:
        return _Builder().build(text)
    except MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        why = ", ".join(part for part in (e.context, e.problem) if part)
        raise YamlFileError(f"it is not YAML: {one_line(why)}", mark.line + 1 if mark is not None else 0) from e
    except YAMLError as e:
        raise YamlFileError(f"it is not YAML: {one_line(str(e))}") from e


class _Builder:
    """Builds a document from the events of the parser."""

    def __init__(self) -> None:
        self._yaml = YAML(typ="safe", pure=True)
        self._document = Document()
        self._documents = 0

    def build(self, text: str) -> Document:
        events = self._checked(self._yaml.parse(text))
        for event in events:
            if not isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent)):
                continue
            self._document.lines[()] = _line(event)
            self._document.data = self._value(event, events, ())
        return self._document

    def _checked(self, events: Iterator[Event]) -> Iterator[Event]:
        depth = 0
        for event in events:
            match event:
                case DocumentStartEvent():
                    self._documents += 1
                    if self._documents > 1:
                        raise YamlFileError("there is a second document: write all in one", _line(event))
                case MappingStartEvent() | SequenceStartEvent():
                    depth += 1
                    if depth > MAX_DEPTH:
                        raise YamlFileError(f"this is nested more than {MAX_DEPTH} levels deep", _line(event))
                case MappingEndEvent() | SequenceEndEvent():
                    depth -= 1
            if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
                raise YamlFileError(
                    "anchors and aliases (& and *) are not accepted: write the values out", _line(event)
                )
            if getattr(event, "tag", None) is not None:
                raise YamlFileError("tags (!) are not accepted", _line(event))
            yield event

    def _value(self, event: Event, events: Iterator[Event], path: Keys) -> Any:
        match event:
            case ScalarEvent():
                return self._scalar(event)
            case SequenceStartEvent():
                return self._list(events, path)
            case MappingStartEvent():
                return self._mapping(events, path)
        raise AssertionError(event)

    def _list(self, events: Iterator[Event], path: Keys) -> list[Any]:
        entries: list[Any] = []
        while not isinstance(event := next(events), SequenceEndEvent):
            at = (*path, len(entries))
            self._document.lines[at] = _line(event)
            entries.append(self._value(event, events, at))
        return entries

    def _mapping(self, events: Iterator[Event], path: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise YamlFileError("a key must be a name", _line(event))
            key, at = str(event.value), (*path, str(event.value))
            if key in values:
                shown = one_line(without_password(key), 80)
                first = self._document.lines[at]
                raise YamlFileError(f"{shown!r} is given twice: here and in line {first}", _line(event))
            self._document.lines[at] = _line(event)
            values[key] = self._value(next(events), events, at)
        return values

    def _scalar(self, event: ScalarEvent) -> Any:
        tag = self._yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
        if str(tag).rpartition(":")[2] not in ("null", "bool", "int", "float"):
            return str(event.value)
        node = ScalarNode(str(tag), event.value, event.start_mark, event.end_mark)
        try:
            value = self._yaml.constructor.construct_object(node)
            str(value)  # not of a number in hexadecimal that has too many digits
            return value
        except ValueError as e:
            raise YamlFileError(f"{one_line(without_password(event.value), 40)!r} is not accepted", _line(event)) from e


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1
