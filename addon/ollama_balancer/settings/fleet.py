"""What a fleet file says, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.address import without_password
from ..core.static_agents import AgentSpec
from ..storage.yaml_file import Document, Keys
from ..text import one_line


def dotted(keys: Keys) -> str:
    """An entry's place in a file, such as agents.gpu-1.url."""
    return ".".join(one_line(without_password(str(key)), 80) for key in keys)


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong in a file; line 0: in none."""

    line: int
    text: str

    def at(self, path: str) -> str:
        return f"{path}:{self.line}: {self.text}" if self.line else f"{path}: {self.text}"


class FleetFileError(ValueError):
    """What is wrong with a file, as one line; `findings` has all."""

    def __init__(self, path: str, findings: list[Finding]) -> None:
        more = len(findings) - 1
        others = f" ({more} more: ollama-balancer check {path})" if more else ""
        super().__init__(findings[0].at(path) + others)
        self.path = path
        self.findings = findings


@dataclass(frozen=True)
class Fleet:
    """What a fleet file says, checked."""

    path: str
    agents: Mapping[str, AgentSpec] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    """Raw values by the options' full names."""
    document: Document = field(default_factory=Document)
    content: bytes = b""

    @property
    def summary(self) -> str:
        counts = ((len(self.agents), "agent"), (len(self.options), "option"))
        return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts)

    def error(self, keys: Keys, problem: str) -> FleetFileError:
        """Something is wrong with an entry in connection with what stands elsewhere."""
        return FleetFileError(self.path, [Finding(self.document.line(keys), f"{dotted(keys)}: {problem}")])
