"""The versions that the balancer was tested with, as data: what reads it need not have mitmproxy."""

TESTED = {"mitmproxy": "12.2.2 to 12.3.1", "h11": "0.16.0", "Python": "3.12 and 3.13"}
"""On all of these every test has passed."""

OLDEST, NEXT = (12, 2, 2), (12, 4)
"""Of mitmproxy: the oldest of these, and the first that may have changed what the balancer uses."""

NEXT_PYTHON = (3, 14)
"""The first version of Python that is none of these."""


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def is_tested(mitmproxy: str) -> bool:
    """Whether that version of mitmproxy is one of those."""
    return OLDEST <= numbers(mitmproxy) < NEXT


def tested() -> str:
    return ", ".join(f"{name} {versions}" for name, versions in TESTED.items())
