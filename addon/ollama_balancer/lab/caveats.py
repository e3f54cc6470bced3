"""Caveats that the reader of the figures needs to know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .hosts import SLOWDOWN
from .rates import LearnedFleet
from .recorded_workload import LONGEST_PAUSE
from .recording import Recording
from .simulation import Result

MAX_NAMES = 5
"""Names that one line lists."""


@dataclass(frozen=True)
class Settings:
    """What was asked of the lab. Times are seconds; `slots`, `fits` and `keep` 0: as the flows show."""

    seed: int = 1
    load: float = 1.0
    patience: float = 300.0
    slots: int = 0
    fits: int = 0
    keep: float = 0.0


def caveats(recording: Recording, fleet: LearnedFleet, recorded: Result, settings: Settings) -> list[str]:
    """The caveats as sentences; those that hold for every recording come first."""
    return [
        "The speed of a host with a model that it never ran is estimated from other hosts with the model and from "
        f"other models on the host: {fleet.guessed} of {fleet.pairs} pairs of host and model.",
        "Requests that run on a host at the same time are assumed to slow each other down: n of a model take "
        f"1 + {SLOWDOWN} (n - 1) times as long, and k models k times. The mode metrics uses CPU and memory, which the "
        "flows do not contain: they are derived from what runs. The simulated hosts never fail.",
        *_assumptions(recording, fleet, settings),
        *_differences(recording, recorded),
        *_exclusions(recording, fleet),
    ]


def _assumptions(recording: Recording, fleet: LearnedFleet, settings: Settings) -> Iterator[str]:
    if fleet.assumed:
        yield (
            f"Hosts that were not seen with {_names(fleet.assumed)} are assumed to have it, unless the balancer would "
            "then have used them."
        )
    unmeasured = [
        what
        for what, answers in (
            ("write answers", fleet.decode),
            ("read prompts", fleet.prefill),
            ("load models", fleet.loads),
        )
        if not answers
    ]
    if unmeasured:
        yield f"The flows do not show how fast the hosts {' and '.join(unmeasured)}: typical figures are assumed."
    hosts = {host.name for host in fleet.hosts}
    unknown = [
        f"how many {what} ({flag} N)"
        for what, flag, value, reported in (
            ("requests of a model it runs at once", "--slots", settings.slots, recording.slots),
            ("models it keeps loaded at once", "--fits", settings.fits, recording.fits),
        )
        if not value and hosts - reported.keys()
    ]
    if unknown:
        yield (
            f"Not every host has reported {' and '.join(unknown)}: ≥ marks the most that was seen. If the real number "
            "is higher, modes that use a host for all its models look worse than they are."
        )


def _differences(recording: Recording, recorded: Result) -> Iterator[str]:
    """How the simulated requests differ from the recorded ones."""
    unserved, cancelled = recorded.asked - recorded.outcomes["served"], recorded.outcomes["cancelled"]
    if unserved:
        yield (
            f"{counted(unserved, 'request')} not served completely when recorded, {cancelled} because the client "
            "disconnected: in the simulation they get an answer of typical length."
        )
    if recording.pinned:
        yield (
            f"{counted(recording.pinned, 'request')} pinned to a host: in the simulation the mode chooses, as for all "
            "others."
        )
    silent = sum(request.served and request.loaded is None for request in recording.requests)
    if silent:
        yield f"{counted(silent, 'answer')} did not report loads: there may have been more than were recorded."
    pairs = zip(recording.requests, recording.requests[1:], strict=False)
    if any(later.at - earlier.at > LONGEST_PAUSE for earlier, later in pairs):
        yield f"Pauses of more than {LONGEST_PAUSE / 60:.0f} minutes are shortened to that."


def _exclusions(recording: Recording, fleet: LearnedFleet) -> Iterator[str]:
    unplaced = sum(request.model in fleet.nowhere for request in recording.requests)
    if unplaced:
        models = _names(sorted(fleet.nowhere))
        yield f"Left out: {counted(unplaced, 'request')} for {models}, which no host is known to have."
    if recording.refused:
        yield f"Left out: {counted(recording.refused, 'request')} rejected because of the caller's mistake."
    if recording.odd:
        yield f"Left out: {counted(recording.odd, 'flow')} whose record or request could not be read."
    if fleet.unused:
        yield f"Left out: hosts that answered nothing ({_names(fleet.unused)})."


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join([*names[:MAX_NAMES], *([f"{more} more"] if more > 0 else [])])
