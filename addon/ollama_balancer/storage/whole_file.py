"""A file that is read once, at the start, and from then on replaced as a whole."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from .files import open_own, replace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Words:
    """How the log speaks of a file."""

    content: str
    """What it holds, in the plural: "The registered agents"."""
    kind: str
    """What it should be, such as "a valid list of events"."""
    unreadable: str
    """What follows where it cannot be read."""
    unsaved: str = ""
    """What follows as long as it cannot be written."""
    anew: str = ""
    """What follows where it is damaged."""


class WholeFile:
    """`path` is the file's; the folder is made if need be. Its methods do I/O, and are not to be called at once."""

    def __init__(self, path: Path, max_bytes: int, words: Words) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._words = words
        self._written: str | None = None
        """The content of the file, if known."""
        self._failed = False
        self._protected = False
        """Whether the file could not be read and must not be overwritten."""

    def read[T](self, parse: Callable[[bytes], T]) -> T | None:
        """What `parse` makes of the content; a ValueError of its makes the file a damaged one, which is renamed.

        None: there is no file, or none that can be used, which the log tells.
        """
        try:
            with open_own(self.path) as file:
                content = file.read(self._max_bytes + 1)
            if len(content) > self._max_bytes:
                raise ValueError(f"it has more than {self._max_bytes} bytes")
            return parse(content)
        except FileNotFoundError:
            pass
        except OSError as e:
            self._protected = True
            words = self._words
            logger.warning(
                "%s cannot be read from %s (%s): %s.",
                words.content,
                self.path,
                e.strerror or e,
                words.unreadable,
            )
        except ValueError as e:
            self._set_aside(_reason(e))
        return None

    def write(self, text: str, *, empty: bool = False) -> bool:
        """Replace the file if the text is another; False if that failed, which is logged once. `empty`: it holds
        nothing yet, and makes no file.
        """
        if self._protected or text == self._written or (empty and self._written is None and not self.path.exists()):
            return True
        words = self._words
        try:
            replace(self.path, text)
        except OSError as e:
            if not self._failed:
                logger.warning(
                    "%s cannot be saved to %s (%s)%s. Trying again.",
                    words.content,
                    self.path,
                    e.strerror or e,
                    f": {words.unsaved}" if words.unsaved else "",
                )
            self._failed = True
            return False
        if self._failed:
            logger.info("%s are saved to %s again.", words.content, self.path)
        self._written, self._failed = text, False
        return True

    def _set_aside(self, reason: str) -> None:
        damaged = self.path.with_name(self.path.name + ".damaged")
        try:
            os.replace(self.path, damaged)
            where = f"it was renamed to {damaged}"
        except OSError as e:
            self._protected = True
            where = f"it could not be renamed ({e.strerror or e}), so changes are not saved"
        words = self._words
        anew = f", and {words.anew}" if words.anew else ""
        logger.warning("%s is not %s: %s; %s%s.", self.path, words.kind, reason, where, anew)


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return str(error)
