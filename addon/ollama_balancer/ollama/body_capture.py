"""Stores a passing body for inspection: completely up to a limit, beyond that its start and end."""

from collections.abc import Callable

STEP = 64 * 1024
"""Bytes between two requests for memory."""


class CapturedBody:
    """Fed with the chunks of one body. It holds at most one and a half times `limit` bytes.

    `room` is asked whether so many bytes may be held in all. Where they may not, no more of the beginning is kept than
    there is, and little of the end.
    """

    def __init__(self, limit: int, room: Callable[[int], bool] | None = None) -> None:
        self.bytes_seen = 0
        self._room = room
        self._next = STEP
        """Bytes of the beginning for which there is room."""
        self._head_limit = limit - limit // 2
        self._tail_limit = limit // 2
        self._head = bytearray()
        self._before = b""
        self._tail = bytearray()
        """With what is before it, the end of the body: at least `_tail_limit` bytes, where there are as many."""
        self._recent: list[bytes] = []
        """What comes next in `_head`: appending a chunk here is cheaper, but takes more memory if it is small."""

    def feed(self, chunk: bytes) -> None:
        self.bytes_seen += len(chunk)
        if self.bytes_seen <= self._head_limit:
            recent = self._recent
            recent.append(chunk)
            if len(recent) >= 256 or (self.bytes_seen > self._next and len(recent) > 1):
                self._settle()
                self._ask_for_room()
        elif chunk:
            self._settle()
            if not self._tail and not self._before:
                self._ask_for_room(3 * self._tail_limit // 2)
            room = self._head_limit - len(self._head)
            self._head += chunk[:room]
            self._add_to_tail(chunk[room:] if room else chunk)

    def _ask_for_room(self, tail: int = 0) -> None:
        size = len(self._head)
        if self._room is None or (size < self._next and not tail):
            return
        if self._room(size + (tail or STEP)):
            self._next = size + STEP
            return
        self._head_limit = size
        self._tail_limit = min(self._tail_limit, STEP // 4)

    def _add_to_tail(self, chunk: bytes) -> None:
        limit = self._tail_limit
        self._tail += chunk if len(chunk) <= limit else chunk[len(chunk) - limit :]
        if len(self._tail) >= limit:
            self._before = bytes(self._tail)
            self._tail.clear()

    def _settle(self) -> None:
        if self._recent:
            self._head += b"".join(self._recent)
            self._recent.clear()

    @property
    def left_out(self) -> int:
        """How many bytes between the beginning and the end are not kept."""
        return max(0, self.bytes_seen - self._head_limit - self._tail_limit)

    def joined(self) -> bytes:
        """The beginning and the end in one."""
        if len(self._recent) == 1 and self.bytes_seen == len(self._recent[0]):
            return self._recent[0]
        return b"".join(self.ends())

    def ends(self) -> tuple[bytes, bytes]:
        """The beginning and the end; together the whole body where nothing is left out."""
        self._settle()
        size = min(self._tail_limit, self.bytes_seen - len(self._head))
        tail = self._before + bytes(self._tail)
        return bytes(self._head), tail[len(tail) - size :]
