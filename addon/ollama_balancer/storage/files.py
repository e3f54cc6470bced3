"""Files of the balancer's own folder: there whole or not at all, and no links to others."""

import contextlib
import errno
import os
import select
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

PIPE_SECONDS = 5.0
"""Seconds to wait for whoever reads a pipe."""


def replace(path: Path, text: str) -> None:
    """Put a file with that text, and mode 0600, in the place of `path`; nobody ever sees half of it. Raises OSError.

    The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mkstemp gives mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def give_to_owner(path: str | Path, folder: Path) -> None:
    """Give a new file to the owner of its folder if root has made it: the balancer that uses it may be another user.

    Raises OSError.
    """
    if os.name == "posix" and os.geteuid() == 0:
        owner = os.stat(folder)
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def open_own(path: Path, *, append: bool = False) -> BinaryIO:
    """Open a file to read it, or to add to it (made if need be, with mode 0600). Raises OSError, also if `path` is a
    symbolic link or no file: through a link, somebody else would choose what is read or written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if append else os.O_RDONLY
    # Without O_NONBLOCK a named pipe would be waited for.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(e.errno, "it is a symbolic link, which is not followed", str(path)) from e
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if append and os.fstat(handle).st_size == 0:
            give_to_owner(path, path.parent)
        return os.fdopen(handle, "ab" if append else "rb")
    except BaseException:
        os.close(handle)
        raise


def write_whole(handle: int, data: bytes) -> None:
    """Add data at the end of a file or pipe: all of it, or OSError, and then a file is as long as it was."""
    status = os.fstat(handle)
    left = memoryview(data)
    try:
        while left:
            left = left[_write_some(handle, left) :]
    except OSError:
        if stat.S_ISREG(status.st_mode):
            with contextlib.suppress(OSError):
                os.ftruncate(handle, status.st_size)
        raise


def _write_some(handle: int, data: memoryview) -> int:
    try:
        return os.write(handle, data)
    except BlockingIOError:  # a pipe whose reader is slow
        if not select.select([], [handle], [], PIPE_SECONDS)[1]:
            raise
        return 0
