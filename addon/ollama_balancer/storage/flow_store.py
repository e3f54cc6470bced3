"""Writes flows to files of the day, by a thread of its own, so that no request waits for the disk."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable

from .flow_files import FlowFiles, TooLargeError, remedy

MAX_WAITING = 64 * 1024 * 1024
"""Bytes of flows that wait to be written; more are dropped. One flow alone may be larger."""

WRITE_SECONDS = 0.2
"""Seconds between two writes."""

RETRY_SECONDS = 2.0
"""Seconds after which a write that has failed is tried again."""

QUIET_SECONDS = 60.0
"""Seconds after a line in the log in which there is no other."""

REMINDER_SECONDS = 3600.0
"""Seconds after which a problem that lasts is told again."""


class FlowStore[T]:
    """`encode` makes a flow a record, `report` is called with what goes wrong, both in the thread.

    What cannot be written waits, as far as `max_waiting` allows.
    """

    def __init__(
        self,
        files: FlowFiles,
        encode: Callable[[T], bytes],
        report: Callable[[str], None],
        *,
        max_waiting: int = MAX_WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.files = files
        self._encode = encode
        self._report = report
        self._max_waiting = max_waiting
        self._clock = clock
        self._waiting: collections.deque[tuple[T, int]] = collections.deque()
        # Each of these counts is changed by one thread only.
        self._bytes_added = 0
        self._bytes_taken = 0
        self._overflowed = 0
        self._refused = 0
        self._overflow_seen = 0
        self._missing_told = 0
        self._problem = ""
        """What the log tells of; empty: all is well."""
        self._told_at = float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow store", daemon=True)

    @property
    def missing(self) -> int:
        """Flows that were never written."""
        return self._overflowed + self._refused

    def start(self) -> None:
        self._thread.start()

    def add(self, flow: T, size: int) -> None:
        """Have a flow of about so many bytes written."""
        waiting = self._bytes_added - self._bytes_taken
        if waiting and waiting + size > self._max_waiting:
            self._overflowed += 1
        else:
            self._bytes_added += size
            self._waiting.append((flow, size))

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, if that takes no longer than that."""
        self._stopping.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        stopping, written = False, True
        while not stopping:
            stopping = self._stopping.wait(WRITE_SECONDS if written else RETRY_SECONDS)
            written = self.write()
        self._refused += len(self._waiting)
        if missing := self.missing - self._missing_told:
            self._report(f"balancer_store: at the end {_requests(missing)} missing in the files.")
        self.files.close()

    def write(self) -> bool:
        """Write what waits; whether that was possible."""
        problem, written = "", True
        try:
            self.files.tidy()
            while self._waiting:
                problem = self._write_first() or problem
        except OSError as e:
            written = False
            self.files.close()
            why = e.strerror or str(e)
            problem = f"prompts are not kept: {self.files.folder} cannot be written ({why}). {remedy(e)}"
        overflowed = self._overflowed
        if overflowed > self._overflow_seen:
            self._overflow_seen = overflowed
            problem = problem or "more prompts came than could be written"
        self._tell(problem)
        return written

    def _write_first(self) -> str:
        """Write the first that waits; what is wrong with it, if it is dropped. OSError: it waits on."""
        flow, size = self._waiting[0]
        problem = ""
        try:
            self.files.append(self._encode(flow))
        except OSError:
            raise
        except TooLargeError as e:
            self._refused += 1
            problem = str(e)
        except Exception as e:  # whatever is in a flow, which the error may quote
            self._refused += 1
            problem = f"a request cannot be written ({type(e).__name__})"
        self._waiting.popleft()
        self._bytes_taken += size
        return problem

    def _tell(self, problem: str) -> None:
        quiet, missing = self._clock() - self._told_at, self.missing - self._missing_told
        is_due = not self._problem or quiet >= REMINDER_SECONDS if problem else bool(self._problem or missing)
        if not is_due or quiet < QUIET_SECONDS:
            return
        self._problem, self._told_at, self._missing_told = problem, self._clock(), self.missing
        if problem:
            lost = f" {_requests(missing)} missing in the files." if missing else ""
            self._report(f"balancer_store: {problem}. Requests go on.{lost}")
        else:
            lost = _requests(missing) if missing else "none is"
            self._report(f"balancer_store: prompts are kept again in {self.files.folder}; {lost} missing.")


def _requests(count: int) -> str:
    return "1 request is" if count == 1 else f"{count} requests are"
