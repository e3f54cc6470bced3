"""Excerpts of the last user message, by which a person recognises a request.

Nothing is parsed that is not needed: of a chat with large images one string is read, and only its beginning.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping

from .json_scanning import Scanner, Span, UnreadableError, text_of, well_formed

MAX_BYTES = 2_048
"""Of a string that are read: blanks at its beginning are passed over."""

MAX_TURNS = 64
"""From the end, that are looked through for one of the user's."""

_CONTENTS = ("messages", "prompt", "input")
"""The members that hold what the user says, by the routes' protocols; a request has one of them."""

_STEPS = 8_000
"""Of the scanner, which is a few milliseconds: of a chat with thousands of messages no turn is told."""

_QUOTE, _LIST, _OBJECT = ord('"'), ord("["), ord("{")


def last_turn(body: bytes, members: Mapping[str, Span]) -> str:
    """The beginning of the user's last text, its blanks as one each; empty where there is none. Nothing is raised.

    `members` tells where the values of the body's members are, by key in lower case.
    """
    for key in _CONTENTS:
        if key in members:
            try:
                return _turn(body, members[key])
            except (UnreadableError, IndexError):
                return ""
    return ""


def _turn(body: bytes, span: Span) -> str:
    if body[span[0]] == _LIST:
        for turn in reversed(deque(Scanner(body, _STEPS).elements(span[0]), MAX_TURNS)):
            if body[turn[0]] != _OBJECT:
                return _line(body, turn)  # a list of texts, to be embedded
            message = _members(body, turn)
            if message.get("role") is None or text_of(body, message["role"]) == "user":
                for content in _texts(body, message.get("content") or message.get("text")):
                    if line := _line(body, content):
                        return line
        return ""
    return _line(body, span)


def _texts(body: bytes, content: Span | None) -> Iterator[Span]:
    """The texts of a message, the last one first: a client may put instructions of its own before what is typed."""
    if content is None:
        return
    if body[content[0]] != _LIST:
        yield content
        return
    for part in reversed(list(Scanner(body, _STEPS).elements(content[0]))):
        if body[part[0]] == _OBJECT and (text := _members(body, part).get("text")) is not None:
            yield text


def _members(body: bytes, span: Span) -> dict[str, Span]:
    """Where in the body the values of an object's members are."""
    return {key: (first, last) for key, first, last in Scanner(body, _STEPS).members(span[0])}


def _line(body: bytes, span: Span) -> str:
    return " ".join(_beginning(body, span).split())


def _beginning(body: bytes, span: Span) -> str:
    """Of a string; empty for what is none."""
    start, end = span
    if body[start] != _QUOTE:
        return ""
    if end - start <= MAX_BYTES:
        return text_of(body, span) or ""
    piece = body[start + 1 : start + MAX_BYTES].decode("utf-8", "ignore")
    for cut in range(7):  # it may end within an escape
        try:
            text = json.loads(f'"{piece[: len(piece) - cut]}"', strict=False)
        except ValueError:
            continue
        return well_formed(text)
    return ""
