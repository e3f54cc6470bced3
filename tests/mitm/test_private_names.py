"""Private names of libraries stand in `mitm/compat` alone, each with a check."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.sources import ADDON, nodes_of

COMPAT = ADDON / "ollama_balancer" / "mitm" / "compat"
MODULES = sorted(path for path in ADDON.rglob("*.py") if COMPAT not in path.parents)
ABOVE_THE_RINGS = (ADDON, COMPAT.parents[1])

OF_NAMED_TUPLES = {"_asdict", "_replace", "_fields"}
"""Public, in spite of how they begin."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@functools.cache
def own_names(ring: Path) -> frozenset[str]:
    """The private names that a ring of the addon gives to its own attributes, functions, classes and variables."""
    names: set[str] = set()
    for path in ring.glob("*.py") if ring in ABOVE_THE_RINGS else ring.rglob("*.py"):
        for node in nodes_of(path):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Assign(targets=[ast.Name(id="__slots__")], value=slots):
                    names.update(ast.literal_eval(slots))
    return frozenset(name for name in names if is_private(name))


@functools.cache
def own_classes() -> frozenset[str]:
    return frozenset(name for path in MODULES for name in re.findall(r"^ *class (\w+)", path.read_text("utf-8"), re.M))


def ring_of(path: Path) -> Path:
    parts = path.relative_to(ADDON).parts
    return ADDON.joinpath(*parts[:2]) if len(parts) > 2 else path.parent


def uses(nodes: Sequence[ast.AST], own: frozenset[str]) -> Iterator[tuple[int, str]]:
    """The line and text of each use of a private name that is not the addon's, and of each patch."""
    imported = {
        alias.asname or alias.name
        for node in nodes
        if (isinstance(node, ast.ImportFrom) and node.level == 0) or isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in nodes:
        match node:
            case ast.ImportFrom(module=module, names=aliases) if module != "__future__":
                parts = [*(module or "").split("."), *(alias.name for alias in aliases)]
                if any(map(is_private, parts)):
                    yield node.lineno, ast.unparse(node)
            case ast.Import(names=aliases):
                if any(is_private(part) for alias in aliases for part in alias.name.split(".")):
                    yield node.lineno, ast.unparse(node)
            case ast.Attribute(attr=name) if is_private(name) and name not in own | OF_NAMED_TUPLES:
                yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr" as function), args=[_, name, *_]):
                if function == "setattr" or (isinstance(name, ast.Constant) and is_private(str(name.value))):
                    yield node.lineno, ast.unparse(node)
            case ast.Assign(targets=targets):
                for target in targets:
                    if isinstance(target, ast.Attribute) and ast.unparse(target.value).partition(".")[0] in imported:
                        yield node.lineno, ast.unparse(node)


def inherited(nodes: Sequence[ast.AST]) -> Iterator[tuple[int, str]]:
    """Private attributes of `self` that a class with none of the addon's classes as a base does not define itself.

    What the others may use is what the addon itself has named, by `uses`.
    """
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    ours = own_classes() | {kind.name for kind in classes}
    for kind in classes:
        if not kind.bases or {ast.unparse(base) for base in kind.bases} & ours:
            continue
        inner = list(ast.walk(kind))
        defined = {n.name for n in inner if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        own = [n for n in inner if isinstance(n, ast.Attribute) and ast.unparse(n.value) in ("self", "super()")]
        defined |= {n.attr for n in own if isinstance(n.ctx, ast.Store)}
        defined |= {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        yield from (
            (n.lineno, ast.unparse(n))
            for n in own
            if is_private(n.attr)
            and n.attr not in OF_NAMED_TUPLES
            and (n.attr not in defined or ast.unparse(n.value) == "super()")
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ADDON)))
def test_no_module_but_compat_uses_a_private_name_or_patches_a_library(path: Path) -> None:
    nodes = nodes_of(path)
    assert sorted({*uses(nodes, own_names(ring_of(path))), *inherited(nodes)}) == []


@pytest.mark.parametrize(
    "source",
    [
        "from mitmproxy.proxy.layers.http import _http1",
        "from h11._readers import ChunkedReader",
        "import h11._readers",
        "def f(loop): return loop._selector",
        "def f(loop): return getattr(loop, '_selector', None)",
        "from mitmproxy import flow\nflow.Flow.kill = print",
        "from mitmproxy import flow\nsetattr(flow.Flow, 'kill', print)",
        "from x import Buffer\nclass Mine(Buffer):\n    def f(self): return self._data",
        "from x import Buffer\nclass Mine(Buffer):\n    def _f(self): return super()._f()",
    ],
)
def test_each_kind_of_use_is_found(source: str) -> None:
    nodes = list(ast.walk(ast.parse(source)))
    assert [*uses(nodes, frozenset()), *inherited(nodes)]
