"""Follows the fleet file."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from ..settings.fleet import Finding, Fleet, FleetFileError
from ..storage.yaml_file import YamlFileError, read_bytes

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Seconds between two looks whether the file has changed."""

SETTLE_SECONDS = 0.25
"""Seconds for which a file must stay as it is before it is read: some editors write in place."""

RECENT_SECONDS = 2.0
"""A file that was changed less long ago may change again without its times showing it."""

type Signature = tuple[int, int, int, int, int]


class FleetFile:
    """Reads the file at the start and whenever it changes, by whatever means: links are followed."""

    def __init__(self) -> None:
        self.current = Fleet("")
        """As applied; without a path there is no file."""
        self._signature: Signature | None = None
        """Of what was read last."""
        self._refused: bytes | None = None
        """What was read last, if it is not applied."""
        self._problem = ""
        """As logged."""
        self.on_refused: Callable[[str], None] = lambda path: None
        """Called once with the path of a file that is not applied."""

    def read(self, path: str) -> Fleet:
        """What is in use, if it is from that path, else what the file there says. Raises FleetFileError."""
        if path == self.current.path:
            return self.current
        if not path:
            return Fleet("")
        from ..settings.fleet_file import read_fleet  # only here: nobody else pays for the models

        return read_fleet(path)

    def use(self, fleet: Fleet) -> None:
        """It is applied."""
        if fleet is not self.current:
            self.current, self._signature, self._refused, self._problem = fleet, None, None, ""

    async def follow(self, apply: Callable[[Fleet], None]) -> None:
        """Apply the file whenever it has changed, until cancelled; ValueError says why it cannot be applied."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look(apply)
            except Exception:
                logger.exception("The fleet file cannot be followed; trying again.")

    async def look(self, apply: Callable[[Fleet], None]) -> None:
        """Look once."""
        path = self.current.path
        if not path:
            return
        try:
            signature = await asyncio.to_thread(_signature_of, path)
            if signature is None:
                raise YamlFileError("it is gone")
            if signature == self._signature and time.time() - signature[3] / 1e9 > RECENT_SECONDS:
                return
            if signature != self._signature:
                await asyncio.sleep(SETTLE_SECONDS)
                if await asyncio.to_thread(_signature_of, path) != signature:
                    return
            content = await asyncio.to_thread(read_bytes, path)
        except YamlFileError as e:
            self._signature = self._refused = None
            self._log(path, FleetFileError(path, [Finding(e.line, str(e))]))
            return
        if path == self.current.path:
            self._signature = signature
            await self._take(path, content, apply)

    async def _take(self, path: str, content: bytes, apply: Callable[[Fleet], None]) -> None:
        if content == self.current.content:
            if self._problem:
                logger.info("Fleet file %s is again as it was applied.", path)
            self._problem, self._refused = "", None
            return
        if content == self._refused:
            return
        from ..settings.fleet_file import fleet_of

        try:
            fleet = await asyncio.to_thread(fleet_of, path, content)
            if path == self.current.path:
                apply(fleet)
        except ValueError as e:
            self._refused = content
            self._log(path, e)

    def _log(self, path: str, problem: ValueError) -> None:
        if path == self.current.path and str(problem) != self._problem:
            self._problem = str(problem)
            self.on_refused(path)
            logger.warning("The fleet file is not applied, and what was applied before stays: %s", problem)


def _signature_of(path: str) -> Signature | None:
    """What tells a file from another one and from itself as it was; None: there is none."""
    try:
        status = os.stat(os.path.expanduser(path))
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
