"""mitmproxy's folder, which holds the balancer's files."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ...storage import keys, usage
from ...storage import token as tokens
from ...storage.audit import FILE_NAME as AUDIT_FILE
from ...storage.files import open_own
from .findings import Finding, ok, problem
from .settings import CONFIG_FILES, MAX_CONFIG

PRIVATE = (tokens.FILE_NAME, keys.FILE_NAME, usage.FILE_NAME, AUDIT_FILE, "mitmproxy-ca.pem", "mitmproxy-ca.p12")
"""Files that only the balancer's user may read."""

FREE_MIB = 16
"""What the balancer's files need at least to be written anew."""


def check(folder: Path, *, token_given: bool) -> Iterator[Finding]:
    """Whether the folder can be used, and is nobody else's; `token_given`: the token does not come from its file."""
    found = list(_folder(folder))
    if not found and folder.exists():
        found += _files(folder)
        if not token_given:
            found += _token(folder / tokens.FILE_NAME)
    made = "" if folder.exists() else " (made at the first start)"
    yield from found or [ok(f"folder {folder}{made}")]


def _folder(folder: Path) -> Iterator[Finding]:
    try:
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        is_folder, status, free = existing.is_dir(), existing.stat(), shutil.disk_usage(existing).free >> 20
    except OSError as e:
        yield problem(f"{folder} cannot be looked at: {e.strerror or e}", "give another one: --set confdir=FOLDER")
        return
    if not is_folder:
        yield problem(
            f"{folder} cannot be the balancer's folder: {existing} is a file",
            f"remove {existing}, or give another folder: --set confdir=FOLDER",
        )
    elif not os.access(existing, os.W_OK | os.X_OK):
        if _is_read_only(existing):
            yield problem(f"{folder} is on a read-only file system", "give another one: --set confdir=FOLDER")
        else:
            yield problem(
                f"{folder} cannot be written by this user",
                f"start the balancer as its owner, or change that: chown -R {_user()} {existing}",
            )
    elif free < FREE_MIB:
        yield problem(
            f"the disk of {folder} is full: {free} MiB are free",
            "make room, or give another folder: --set confdir=FOLDER",
        )
    elif os.name == "posix" and existing == folder and status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        yield problem(f"other users can change files in {folder} (mode {mode:04o})", f"chmod 700 {folder}")


def _is_read_only(path: Path) -> bool:
    return os.name == "posix" and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _files(folder: Path) -> Iterator[Finding]:
    if os.name != "posix":
        return
    owner = os.geteuid() or folder.stat().st_uid  # root looks at the files of a service
    names = [*PRIVATE, *(name for name in CONFIG_FILES if _holds_secret(folder / name))]
    for path in (folder / name for name in names):
        try:
            status = path.lstat()
        except OSError:
            continue  # there is none
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            continue
        if mode & 0o077:
            yield problem(f"other users can read {path} (mode {mode:04o})", f"chmod 600 {path}")
        if status.st_uid != owner:
            yield problem(f"{path} belongs to another user", f"chown {owner} {path}")


def _holds_secret(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG)
    except OSError:
        return False
    return any(word in content for word in (b"balancer_token", b"proxyauth", b"web_password"))


def _token(path: Path) -> Iterator[Finding]:
    if not os.path.lexists(path):
        return
    try:
        with open_own(path) as file:
            tokens.check(file.read(4 * tokens.MAX_LENGTH).decode("utf-8", "replace"))
    except OSError as e:
        yield problem(f"the token cannot be read from {path}: {e.strerror or e}", "make it a file of this user's")
    except ValueError as e:
        yield problem(f"{path} holds no usable token: {e}", "delete it, and a new one is made at the next start")


def _user() -> str:
    return os.environ.get("USER") or str(os.geteuid() if os.name == "posix" else "")
