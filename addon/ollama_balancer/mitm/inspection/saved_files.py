"""Files of flows that mitmproxy writes (`-w`, `save.file`, `save.har` and their like): for their owner alone.

They hold prompts. mitmproxy gives them the mode that other files of the user get, which mostly everybody may read.
"""

import builtins
import contextlib
import os
import stat
from typing import Any

from ..compat.mitmproxy_names import ROTATE


def make_private(file: Any) -> None:
    """Give an open file mode 0600, if it is one."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        handle = file.fileno()
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) & 0o077:
            os.fchmod(handle, 0o600)


def make_stream_private(saving: Any) -> None:
    """The same of the file that mitmproxy's addon `save` writes to."""
    stream = getattr(saving, "stream", None)
    if stream is not None:
        make_private(stream.fo)


def rotate(self: Any) -> None:
    """`Save.maybe_rotate_to_new_file`, which has a new file be for its owner alone."""
    before = self.stream
    ROTATE.original(self)
    if self.stream is not before:
        make_stream_private(self)


def open_private(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
    """`open`, for modules that save flows."""
    opened = builtins.open(file, mode, *arguments, **named)  # noqa: SIM115 - its caller closes it
    if mode[:1] in ("a", "w", "x"):
        make_private(opened)
    return opened
