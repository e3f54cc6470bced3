"""Who changes an agent: the core alone, and there one part for each of its attributes."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ollama_balancer.core import agent as module
from ollama_balancer.core.agent import Agent
from tests.sources import nodes_of

CORE = Path(module.__file__).parent
PACKAGE = CORE.parent

MENTION = re.compile(r"\b[Aa]gent\b")
"""In files without one, nothing is named or annotated as an agent."""

SHARED = {
    "epoch",  # whatever an estimate rests on has changed
    "in_flight",  # the limiter gives out what a lease gives back
}


def agent_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Variables and parameters that are annotated as agents, and the usual one."""
    names = {"agent"}
    for node in nodes:
        match node:
            case ast.arg(arg=name, annotation=annotation) if annotation is not None:
                pass
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                pass
            case _:
                continue
        if "Agent" in ast.unparse(annotation).replace(" | None", "").split("."):
            names.add(name)
    return names


def writes(path: Path) -> Iterator[tuple[str, int]]:
    """Attributes of agents that are assigned or deleted in the file, and in which line."""
    if not MENTION.search(path.read_text("utf-8")):
        return
    names = agent_names(nodes_of(path))
    for node in nodes_of(path):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load) or node.attr not in Agent.__slots__:
            continue
        owner = node.value
        name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
        if name in names:
            yield node.attr, node.lineno


def test_agents_are_changed_by_the_core_alone() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line} writes to an agent's {attribute}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if CORE not in path.parents
        for attribute, line in writes(path)
    ]
    assert not found


def test_each_attribute_of_an_agent_has_one_writer() -> None:
    writers: dict[str, set[str]] = defaultdict(set)
    for path in sorted(CORE.rglob("*.py")):
        for attribute, _ in writes(path):
            writers[attribute].add(path.name)
    assert writers["half_open_lease"] == {"limiter.py"}, "the check sees writes"
    assert not {attribute: files for attribute, files in writers.items() if len(files) > 1 and attribute not in SHARED}
