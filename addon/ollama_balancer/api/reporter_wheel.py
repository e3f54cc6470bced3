"""The wheel of this balancer's own reporter, for hosts that join: made of the files that are installed here.

A wheel is a zip archive with the package and a folder that describes it (packaging.python.org, "Binary distribution
format"). The same files make the same archive, byte for byte.
"""

import base64
import hashlib
import importlib.metadata
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import agent_reporter

DISTRIBUTION = "ollama-agent-reporter"

_COPIED = ("entry_points.txt", "licenses/LICENSE")
"""Of the installed description, besides METADATA: what may be missing."""

_TAGS = "Wheel-Version: 1.0\nGenerator: ollama-balancer\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest of a zip archive."""


class NoWheelError(Exception):
    """The reporter is not installed as a package here; the message says what to do."""


@dataclass(frozen=True)
class Wheel:
    name: str
    """Of the file."""
    content: bytes
    sha256: str
    """Hexadecimal."""


def wheel_name() -> str:
    """The name of the file, without making it."""
    return f"{DISTRIBUTION.replace('-', '_')}-{agent_reporter.__version__}-py3-none-any.whl"


@cache
def reporter_wheel() -> Wheel:
    """The wheel. The first call reads files and takes a tenth of a second. Raises NoWheelError."""
    content = _archive(_files())
    return Wheel(wheel_name(), content, hashlib.sha256(content).hexdigest())


def _files() -> dict[str, bytes]:
    try:
        described = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as e:
        raise NoWheelError(
            f"{DISTRIBUTION} is not installed as a package on the balancer's machine: install it with pip install "
            "./agent_reporter in its checkout"
        ) from e
    package = Path(agent_reporter.__file__).parent
    files = {
        f"{package.name}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*.py")
        if path.is_file()
    }
    metadata = described.read_text("METADATA") or ""
    # An editable checkout may have moved on since it was installed.
    metadata = re.sub(r"(?m)^Version: .*$", f"Version: {agent_reporter.__version__}", metadata, count=1)
    info = f"{DISTRIBUTION.replace('-', '_')}-{agent_reporter.__version__}.dist-info"
    files |= {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": _TAGS.encode()}
    for name in _COPIED:
        if (text := described.read_text(name)) is not None:
            files[f"{info}/{name}"] = text.encode()
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    return files


def _record(files: Mapping[str, bytes], own_name: str) -> bytes:
    lines = []
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{own_name},,\n"]).encode()


def _archive(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items(), key=lambda each: (".dist-info/" in each[0], each[0])):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3
            archive.writestr(entry, content)
    return file.getvalue()
