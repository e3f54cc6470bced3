"""Timestamps in Ollama's lists, which hosts may fill with anything."""

from datetime import UTC, datetime
from functools import lru_cache

EPOCH = datetime.fromtimestamp(0, UTC)


def read_time(value: object) -> datetime:
    """An RFC 3339 time; one without a zone is in UTC. What is none is the epoch."""
    return _read(value) if isinstance(value, str) and len(value) <= 64 else EPOCH


@lru_cache(maxsize=8192)
def _read(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return EPOCH
    return time if time.tzinfo else time.replace(tzinfo=UTC)
