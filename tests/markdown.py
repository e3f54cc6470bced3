"""The documentation as data: its pages, links, tables and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("addon", "agent_reporter", "benches")

PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])

README = ROOT / "README.md"
DOCS = ROOT / "addon" / "docs"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_SOURCE = re.compile(r"(?:src|srcset)=\"([^\"]+)\"")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    language: str
    text: str


@cache
def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(page: Path) -> Iterator[Block]:
    for match in _FENCE.finditer(text_of(page)):
        yield Block(page, match[1], match[2])


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def links(page: Path) -> list[str]:
    return [match[1] for pattern in (_LINK, _SOURCE) for match in pattern.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """Those of its headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables(page: Path) -> Iterator[list[list[str]]]:
    """Each table's rows of cells, the head first, without the line below it."""
    for match in re.finditer(r"(?:^\|.*\|\n)+", prose(page), re.MULTILINE):
        head, _, *rows = match[0].splitlines()
        yield [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in (head, *rows)]


def table(page: Path, *head: str) -> list[list[str]]:
    """The rows of the one table whose head begins like that."""
    found = [rows for first, *rows in tables(page) if first[: len(head)] == list(head)]
    assert len(found) == 1, f"{page.name} has {len(found)} tables that begin with {head}"
    return found[0]


def code(cell: str) -> list[str]:
    """What stands in a cell as code."""
    return _CODE.findall(cell)


def commands(block: Block) -> Iterator[str]:
    """The command lines of a block, of a console's only what is typed."""
    lines = block.text.replace("\\\n", " ").splitlines()
    for line in lines:
        if block.language == "console":
            if line.startswith("$ "):
                yield line[2:]
        elif line.strip():
            yield line


def inline_code(page: Path) -> list[str]:
    return _CODE.findall(prose(page))
