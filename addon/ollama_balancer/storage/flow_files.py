"""The folder of saved flows: a file for each day (UTC), for its owner alone; old ones are removed.

What is in the files is no matter of this module, but that a record is a tnetstring: `LENGTH:...` and one more byte.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .files import give_to_owner, open_own, write_whole

FILES_A_LIMIT = 8
"""A file is followed by another of the same day when it has this part of the size limit, so that the oldest part can
go and the newest stay."""

TIDY_SECONDS = 60.0
"""Seconds after which the folder is looked through again, whether anything is written or not."""

_NAME = re.compile(r"ollama-(\d{4}-\d{2}-\d{2})(?:\.(\d{1,6}))?\.flow", re.ASCII)
_LONGEST_PREFIX = 16


class DayFile(NamedTuple):
    """One of the files; they sort from the oldest to the newest."""

    day: date
    number: int
    path: Path


class TooLargeError(ValueError):
    """A record that is larger than all files may be together."""


def day_files(folder: Path) -> list[DayFile]:
    """The files in there, the oldest first. Raises OSError."""
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is not None:
            with contextlib.suppress(ValueError):  # there is no such day
                found.append(DayFile(date.fromisoformat(match[1]), int(match[2] or 1), path))
    return sorted(found)


def is_whole(file: BinaryIO) -> bool:
    """Whether a file ends with a whole record: a balancer that was killed may have left a part of one."""
    size, at = os.fstat(file.fileno()).st_size, 0
    while at < size:
        file.seek(at)
        length, colon, _ = file.read(_LONGEST_PREFIX).partition(b":")
        if not (colon and length.isdigit()):
            return False
        at += len(length) + 1 + int(length) + 1
    return at == size


class FlowFiles:
    """`days` is of how many days files are kept, `size` how many bytes they may have together; both may be changed.

    `now` returns seconds since 1970. The methods raise OSError, and may be called from one thread only.
    """

    def __init__(self, folder: Path, days: int, size: int, now: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.days = days
        self.size = size
        self._now = now
        self._found = False
        """Whether the folder was there once. Then it is not made again: its disk may be gone."""
        self._file: BinaryIO | None = None
        self._current: DayFile | None = None
        self._bytes = 0
        """Of all files, as far as is known."""
        self._tidy_at = float("-inf")

    def append(self, record: bytes) -> None:
        """Add a record to today's file: all of it, or OSError. TooLargeError: it is larger than `size`."""
        if len(record) > self.size:
            raise TooLargeError(f"a request of {len(record)} bytes is larger than balancer_store_size")
        self._prepare_folder()
        file = self._file_for(len(record))
        if self._bytes + len(record) > self.size:
            self._remove_old(self.size - len(record))
        write_whole(file.fileno(), record)
        self._bytes += len(record)

    def tidy(self) -> None:
        """Remove what is too old or too much, once in a while."""
        if not self._tidy_at - TIDY_SECONDS <= self._now() < self._tidy_at:
            self._prepare_folder()
            self._remove_old(self.size)
            self._tidy_at = self._now() + TIDY_SECONDS

    def close(self) -> None:
        file, self._file, self._current = self._file, None, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    @property
    def _today(self) -> date:
        return datetime.fromtimestamp(self._now(), UTC).date()

    def _prepare_folder(self) -> None:
        if not self._found:
            if not self.folder.is_dir():
                self.folder.mkdir(mode=0o700, parents=True)
                give_to_owner(self.folder, self.folder.parent)
            self._found = True

    def _file_for(self, size: int) -> BinaryIO:
        """The open file to which so many bytes are to be added."""
        if self._file is None or not self._goes_on(self._file, size):
            self.close()
            self._file = self._open(size)
        return self._file

    def _goes_on(self, file: BinaryIO, size: int) -> bool:
        """Whether the open file is still the one to write to: nobody has removed it, and the day has not ended."""
        assert self._current
        opened = os.fstat(file.fileno())
        try:
            named = os.stat(self._current.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        is_same = (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
        return is_same and self._current.day == self._today and self._has_room(opened.st_size, size)

    def _has_room(self, taken: int, size: int) -> bool:
        return not taken or taken + size <= self.size // FILES_A_LIMIT

    def _open(self, size: int) -> BinaryIO:
        today = self._today
        number = max((each.number for each in day_files(self.folder) if each.day == today), default=1)
        file = self._open_number(today, number)
        taken = os.fstat(file.fileno()).st_size
        if taken and not (self._has_room(taken, size) and self._is_whole()):
            # What is added after half a record could not be read.
            file.close()
            file = self._open_number(today, number + 1)
        self._remove_old(self.size - size)
        return file

    def _open_number(self, day: date, number: int) -> BinaryIO:
        name = f"ollama-{day}.flow" if number == 1 else f"ollama-{day}.{number}.flow"
        self._current = DayFile(day, number, self.folder / name)
        file = open_own(self._current.path, append=True)
        if os.name == "posix":
            try:
                os.fchmod(file.fileno(), 0o600)  # somebody else may have made it
            except BaseException:
                file.close()
                raise
        return file

    def _is_whole(self) -> bool:
        assert self._current
        with open_own(self._current.path) as file:
            return is_whole(file)

    def _remove_old(self, most: int) -> None:
        """Remove the files of days that are over for long, and the oldest until all have no more than `most` bytes."""
        files = day_files(self.folder)
        sizes = {each.path: os.lstat(each.path).st_size for each in files}
        self._bytes = sum(sizes.values())
        oldest = self._today - timedelta(days=self.days - 1)
        for each in files:
            if each == self._current or (each.day >= oldest and self._bytes <= most):
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each.path)
            self._bytes -= sizes[each.path]


def remedy(e: OSError) -> str:
    """What to do about it."""
    match e.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "Free some space, or lower balancer_store_size"
        case errno.ENOENT:
            return "Make the folder again, or name another"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "Let the balancer write there, or name another folder"
        case errno.ENOTDIR | errno.EEXIST:
            return "Name a folder"
    return "Name another folder if this lasts"
