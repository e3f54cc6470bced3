"""Log lines that are written when something changes, not each time it is seen."""

import logging

log = logging.getLogger("agent_reporter")


class StateLog:
    """Says the state of one thing when it is not the one that was said last."""

    def __init__(self, state: str = "") -> None:
        self.state = state

    def say(self, state: str, level: int, message: str) -> None:
        if state != self.state:
            self.state = state
            log.log(level, "%s", message)


def printable(text: str, limit: int = 200) -> str:
    """Text of another program, fit for one log line: no control characters, at most `limit` characters."""
    cut = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else "?" for c in cut)
