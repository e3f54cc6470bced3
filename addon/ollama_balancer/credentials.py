"""The token that agents and operators present: from the option, the environment, or a file made at first start."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "OLLAMA_BALANCER_TOKEN"
FILE_NAME = "ollama-balancer-token"
MAX_LENGTH = 512


@dataclass(frozen=True)
class Token:
    """`file` is where it is kept, None if it came from the option or the environment."""

    value: str
    file: Path | None = None

    def __repr__(self) -> str:
        return f"Token({self.file or 'given'})"

    def matches(self, presented: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self.value.encode(), presented.encode("utf-8", "surrogateescape"))


def check(value: str) -> str:
    """A token fit for a header. ValueError otherwise, without the token in its text."""
    value = value.strip()
    if not 8 <= len(value) <= MAX_LENGTH or not all(33 <= ord(c) <= 126 for c in value):
        raise ValueError(f"a token has 8 to {MAX_LENGTH} visible ASCII characters and no blanks")
    return value


def load(option: str, confdir: str) -> Token:
    """The token in force.

    ValueError: it is given and not usable, or its file is. OSError: the file cannot be read or made.
    """
    given = option or os.environ.get(ENVIRONMENT, "")
    if given:
        try:
            return Token(check(given))
        except ValueError as e:
            raise ValueError(f"balancer_token (or ${ENVIRONMENT}): {e}") from e
    path = Path(confdir).expanduser() / FILE_NAME
    if not path.exists():
        _create(path)
    try:
        return Token(check(path.read_text("utf-8", "replace")), path)
    except ValueError as e:
        raise ValueError(f"balancer_token: {path} holds no usable token: {e}; delete it to have a new one made") from e


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
