"""The addon's source, parsed once for all tests that look at it."""

import ast
import functools
import gc
from pathlib import Path

ADDON = Path(__file__).resolve().parents[1] / "addon"


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of a file, the module first."""
    nodes = tuple(ast.walk(ast.parse(path.read_text("utf-8"))))
    gc.freeze()  # they are kept, hundreds of thousands, which every collection would go through
    return nodes
