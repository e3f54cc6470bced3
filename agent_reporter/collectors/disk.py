"""Disk: free space where Ollama stores its models."""

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from .base import Fields, Host

VARIABLE = "OLLAMA_MODELS"

SERVICE_FOLDER = Path("/usr/share/ollama/.ollama/models")
"""The default of Ollama's installer for Linux."""


class DiskCollector:
    """Collects `disk_free` and `disk_total`, in bytes, of the file system that holds the models."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def collect(self) -> Fields:
        settings = await self._host.server.settings(self._host.ollama)
        folder = models_folder(folders(settings, os.environ))
        # A network file system that hangs blocks a thread, not the report.
        return await asyncio.to_thread(room, folder)


def folders(settings: Mapping[str, str], environ: Mapping[str, str]) -> Iterable[Path]:
    """Possible model folders, the likeliest first: the server's setting, this user's, and the defaults."""
    for text in (settings.get(VARIABLE), environ.get(VARIABLE)):
        if text:
            yield Path(text)
            return
    if sys.platform == "linux":
        yield SERVICE_FOLDER
    yield Path("~/.ollama/models").expanduser()


def models_folder(candidates: Iterable[Path]) -> Path:
    """The first folder that exists, or the nearest existing parent of the last one.

    An unreadable folder counts as existing, as its parent is usually on the same file system.
    """
    nearest = Path("/")
    for folder in candidates:
        nearest = _nearest(folder)
        if nearest == folder or not os.access(nearest, os.X_OK):
            break
    return nearest


def _nearest(folder: Path) -> Path:
    for path in (folder, *folder.parents):
        try:
            path.stat()
        except OSError:
            continue
        return path
    return folder


def room(folder: Path) -> Fields:
    """The space on the file system of `folder`. Raises OSError."""
    usage = psutil.disk_usage(str(folder))
    return {"disk_free": usage.free, "disk_total": usage.total}
