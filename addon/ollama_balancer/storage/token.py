"""The token that agents and operators present: from the option, the environment, or a file made at first start."""

import contextlib
import functools
import hmac
import logging
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .files import open_own

logger = logging.getLogger(__name__)

ENVIRONMENT = "OLLAMA_BALANCER_TOKEN"
FILE_NAME = "ollama-balancer-token"
DEFAULT_FILE = f"~/.mitmproxy/{FILE_NAME}"
MAX_LENGTH = 512


@dataclass(frozen=True)
class Token:
    """`file` is where it is kept, None if it came from the option or the environment, which `given_by` names."""

    value: str
    file: Path | None = None
    given_by: str = field(default="the option balancer_token", compare=False)

    def __repr__(self) -> str:
        return f"Token({self.file or 'given'})"

    @property
    def place(self) -> str:
        """A sentence that says where whoever runs the balancer finds it; it does not name the user."""
        if self.file is None:
            return f"The token is the value of {self.given_by} on the balancer's machine."
        home = Path.home()
        in_home = self.file.is_relative_to(home) and home != Path(home.anchor)
        path = Path("~") / self.file.relative_to(home) if in_home else self.file
        return f"The token is in the file {path} on the balancer's machine."

    def matches(self, presented: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.value.encode(), presented.encode("utf-8", "surrogateescape"))

    def is_in(self, data: bytes) -> bool:
        """Whether the token is anywhere in there.

        How long that takes tells nothing of use: it is looked for by a random half of what its characters are, which is
        another one in each process, and compared in constant time where that fits.
        """
        table, masked_token, token = self._search_keys
        masked_data = data.translate(table)
        at = masked_data.find(masked_token)
        while at >= 0:
            if hmac.compare_digest(token, data[at : at + len(token)]):
                return True
            at = masked_data.find(masked_token, at + 1)
        return False

    @functools.cached_property
    def _search_keys(self) -> tuple[bytes, bytes, bytes]:
        """What each byte is made, one of two, what that makes of the token, and the token."""
        halves = [0] * 128 + [1] * 128
        secrets.SystemRandom().shuffle(halves)
        table, token = bytes(halves), self.value.encode()
        return table, token.translate(table), token


def check(value: str) -> str:
    """A token fit for a header. ValueError otherwise, without the token in its text."""
    value = value.strip()
    if not 8 <= len(value) <= MAX_LENGTH or not all(33 <= ord(c) <= 126 for c in value):
        raise ValueError(f"a token has 8 to {MAX_LENGTH} visible ASCII characters and no spaces")
    return value


def load(option: str, confdir: str) -> Token:
    """The token in force.

    ValueError: it is given and not usable, or its file is. OSError: the file cannot be read or made.
    """
    value = option or os.environ.get(ENVIRONMENT, "")
    if value:
        try:
            given_by = "the option balancer_token" if option else f"the environment variable {ENVIRONMENT}"
            return Token(check(value), given_by=given_by)
        except ValueError as e:
            raise ValueError(f"balancer_token (or ${ENVIRONMENT}): {e}") from e
    path = Path(confdir).expanduser() / FILE_NAME
    if not path.exists():
        _create(path)
    text = _read(path)
    try:
        return Token(check(text), path)
    except ValueError as e:
        raise ValueError(
            f"balancer_token: {path} contains no usable token: {e}; delete it to have a new one created"
        ) from e


def _read(path: Path) -> str:
    """The file's text. Others are kept from reading it, should they have been able to."""
    with open_own(path) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if os.name == "posix" and mode & 0o077:
            try:
                os.fchmod(file.fileno(), 0o600)
                remedy = "now only its owner can read it"
            except OSError as e:
                remedy = f"its mode cannot be changed ({e.strerror or e}): run chmod 600"
            logger.warning(
                "%s could be read by other users (mode %04o); %s. If others use this machine, delete the file and "
                "restart to have a new token created.",
                path,
                mode,
                remedy,
            )
        return file.read(4 * MAX_LENGTH).decode("utf-8", "replace")


def _create(path: Path) -> None:
    """Write a new token so that nobody ever sees half a file, and only its owner sees it whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=FILE_NAME)  # mkstemp gives mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        # Another balancer that starts now may be first: whoever links first wins.
        with contextlib.suppress(FileExistsError):
            try:
                os.link(name, path)
            except (OSError, NotImplementedError) as e:
                if isinstance(e, FileExistsError):
                    raise
                os.rename(name, path)  # a file system without hard links
                return
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
