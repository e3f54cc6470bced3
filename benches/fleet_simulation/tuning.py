"""What the balancer's constants come to at other values: `python -m benches.fleet_simulation --tune NAME`.

Each constant is tried over a grid in a scene in which it matters, with the same requests at each value. What counts is
the difference to the value in the code, seed by seed.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from unittest.mock import patch

from ollama_balancer.lab.simulation import Result, Simulation

from .documents import Documents
from .workload import Shape, draw

type Settings = tuple[tuple[str, float], ...]
"""Constants, as `core.scoring.agent_estimate:LEFT`, and what they are set to."""

PACKAGE = "ollama_balancer"

MIN_POINTS, MIN_PART = 0.5, 0.05
"""Points of goodput, and a part of a mean time: smaller differences are of no use to anybody."""


@dataclass(frozen=True)
class Scene:
    shape: Shape
    slots_known: bool = True
    settings: Settings = ()
    document: int = 0
    """Tokens of a document that each conversation begins with; 0: there is none."""
    prompts: int = 0
    """Prompts of a model that hosts keep cached; 0: as many as they have slots."""

    def simulation(self, seed: int) -> Simulation:
        if self.document:
            return Documents(self.shape, self.document, self.prompts, seed)
        return Simulation(draw(self.shape, seed), "adaptive", seed, reports_slots=self.slots_known)


LARGE = Shape(24, 6, 0.8, 120.0, 60.0, failures=False)
SAMPLED = (("core.scoring.candidates:ALL", 8), ("core.scoring.scorer:ALL", 8))

BUSY = Shape(12, 9, 0.7, 250.0, 150.0, failures=False)

SCENES = {
    "busy": Scene(BUSY),
    "gentle": Scene(BUSY, settings=(("lab.hosts:SLOWDOWN", 0.1),)),
    "steep": Scene(BUSY, settings=(("lab.hosts:SLOWDOWN", 1.0),)),
    "crowded": Scene(Shape(8, 24, 0.6, 300.0, 150.0, failures=False)),
    "start": Scene(Shape(12, 9, 0.6, 200.0, 0.0, failures=False)),
    "slots": Scene(Shape(12, 3, 0.7, 600.0, 0.0, failures=False), slots_known=False),
    "failing": Scene(Shape(12, 3, 0.6, 400.0, 50.0), settings=(("lab.simulation:UP_SECONDS", 300.0),)),
    "documents": Scene(Shape(8, 1, 0.4, 900.0, 150.0, failures=False), document=32_000),
    "short documents": Scene(Shape(8, 1, 0.2, 900.0, 150.0, failures=False), document=8_000),
    "many documents": Scene(Shape(8, 1, 0.5, 900.0, 150.0, failures=False), document=8_000),
    "kept": Scene(Shape(8, 1, 0.4, 900.0, 150.0, failures=False), document=32_000, prompts=8),
    "few": Scene(Shape(8, 6, 0.7, 500.0, 150.0, failures=False)),
    "large": Scene(LARGE),
    "sampled": Scene(LARGE, settings=SAMPLED),
}
"""`busy`: near what the fleet can do. `gentle`, `steep`: the same, where requests at the same time slow each other
hardly at all, or so much that nothing is gained by it. `crowded`: more models than fit in memory. `start`: nothing
is known yet. `slots`: nor do hosts say how many requests they run at once. `failing`: each host dies or is slow
every five minutes. `documents`, `short documents`: each conversation begins with a document of 32,000 or 8,000
tokens. `many documents`: there are more of them than slots to keep them in. `kept`: hosts keep more prompts than
they have slots. `few`: the few hosts of `benches.fleet_http`. `large`: a fleet that is weighed whole; `sampled`:
the same one, of which only a sample is weighed."""


@dataclass(frozen=True)
class Constant:
    places: tuple[str, ...]
    """Where it is read: the module that states it, and those that import it by name."""
    grid: tuple[float, ...]
    scene: str

    @property
    def value(self) -> float:
        """In the code."""
        module, _, name = self.places[0].partition(":")
        value: float = getattr(import_module(f"{PACKAGE}.{module}"), name)
        return value


IMPORTED = {
    "core.agent:SLOWDOWN": "core.scoring.agent_estimate",
    "core.scoring.agent_estimate:LONGEST_LOAD": "core.selection",
    "core.health:EJECTION_THRESHOLD": "core.ejection",
    "core.scoring.learning:SHORTEST_LOAD": "core.preloading",
    "core.health:SLOW_START_SECONDS": "core.ejection",
    "core.scoring.candidates:ALL": "core.scoring.scorer",
}
"""Constants that another module imports by name: which."""


def _of(scene: str, module: str, mark: str = "", **grids: tuple[float, ...]) -> dict[str, Constant]:
    """`mark` tells the same constant in another scene."""
    short = module.rpartition(".")[2]
    found = {}
    for name, grid in grids.items():
        places: tuple[str, ...] = (f"{module}:{name}",)
        if places[0] in IMPORTED:
            places += (f"{IMPORTED[places[0]]}:{name}",)
        found[f"{short}.{name}{mark}"] = Constant(places, grid, scene)
    return found


DISPLACEMENTS = (0.0, 0.5, 1.0, 2.0, 4.0)

CONSTANTS: dict[str, Constant] = {
    **_of("busy", "core.agent", SLOWDOWN=(0.1, 0.2, 0.4, 0.6, 1.0)),
    **_of("gentle", "core.agent", "@gentle", SLOWDOWN=(0.1, 0.4, 1.0)),
    **_of("steep", "core.agent", "@steep", SLOWDOWN=(0.1, 0.4, 1.0)),
    **_of(
        "busy",
        "core.scoring.agent_estimate",
        ANSWER_WEIGHT=(0.0, 0.05, 0.15, 0.5, 1.0),
        LEFT=(0.1, 0.3, 0.5, 0.7, 1.0),
        SPREAD=(0.6, 1.0, 1.25, 2.5),
    ),
    **_of(
        "crowded",
        "core.scoring.agent_estimate",
        LOAD_WEIGHT=(0.5, 1.0, 1.5, 3.0),
        EVICTION=(0.0, 6.0, 12.0, 30.0),
        THRASHING=(0.0, 30.0, 60.0, 120.0, 240.0),
        IN_DEMAND=(0.0, 0.3, 0.6, 1.2),
        EVICTION_RATIO=(1.0, 2.0, 4.0, 16.0),
        DRAIN=(0.0, 4.0, 16.0),
        MIN_LEFT=(0.02, 0.1, 0.3),
        LONGEST_LOAD=(1.2, 2.0, 4.0),
    ),
    **_of("documents", "core.scoring.agent_estimate", DISPLACEMENT=DISPLACEMENTS),
    **_of("short documents", "core.scoring.agent_estimate", "@short", DISPLACEMENT=DISPLACEMENTS),
    **_of("many documents", "core.scoring.agent_estimate", "@many", DISPLACEMENT=DISPLACEMENTS),
    **_of("busy", "core.scoring.agent_estimate", "@busy", DISPLACEMENT=DISPLACEMENTS, UNNOTICED=(0.0, 0.5, 1.0, 2.0)),
    **_of("short documents", "core.scoring.agent_estimate", UNNOTICED=(0.0, 0.5, 1.0, 2.0)),
    **_of(
        "documents", "core.scoring.follow_ups", PRIOR=(1.0, 4.0, 16.0), PAUSE=(15.0, 60.0, 240.0), PATIENCE=(1, 3, 9)
    ),
    **_of("kept", "core.scoring.learning", MIN_COMMON=(64, 256, 1024, 1_000_000)),
    **_of("crowded", "core.scoring.placement", MEMORY=(30.0, 120.0, 480.0), SELDOM=(0.0, 1 / 60, 1 / 15)),
    **_of("crowded", "core.policies.adaptive", LONGEST_PATIENCE=(10.0, 30.0, 120.0)),
    **_of("crowded", "core.preloading", DEMAND=(0.5, 1.0, 2.0, 100.0)),
    **_of("few", "core.rebalancing", UNSERVED=(0.02, 0.05, 0.2, 2.0), LEFT=(0.3, 0.5, 0.8), HOLD=(40.0, 60.0, 120.0)),
    **_of("few", "core.scoring.placement_plan", USABLE=(0.5, 0.65, 0.85), MIN_GAIN=(0.01, 0.02, 0.05)),
    **_of("busy", "core.scheduler", HEADS=(1, 8, 32), MAX_OVERTAKEN=(0, 8, 32)),
    **_of(
        "start",
        "core.scoring.estimates",
        NEWEST=(0.05, 0.2, 0.5, 0.8),
        NEWS=(0.0, math.log(1.1), 0.3, 0.7),
        OUTLIER=(0.4, 0.7, math.log(4.0), 3.0),
        DECODE=(5.0, 20.0, 80.0),
        PREFILL=(200.0, 800.0, 3200.0),
        LOAD=(4.0, 15.0, 60.0),
        OUTPUT=(50.0, 200.0, 800.0),
    ),
    **_of("start", "core.scoring.learning", MIN_READ=(1, 32, 256), SHORTEST_LOAD=(0.05, 0.2, 1.0)),
    **_of(
        "slots",
        "core.concurrency",
        DOUBTS=(1, 2, 4),
        CONFIRMATIONS=(1, 2, 4),
        TRIES=(2, 5, 20),
        FIRST_PAUSE=(5.0, 30.0, 120.0),
        LONGEST_PAUSE=(120.0, 600.0, 3600.0),
        PAUSE_PART=(1.0, 3.0, 10.0),
        PATIENCE=(0.25, 1.0, 4.0),
        OVERLAP=(0.05, 0.25, 1.0),
        LONG_OVERLAP=(0.5, 1.0, 3.0),
        LONG_PROMPT=(10, 100, 1000),
        NEWEST=(0.1, 0.2, 0.5),
    ),
    **_of(
        "failing",
        "core.health",
        EJECTION_THRESHOLD=(1, 3, 10),
        FIRST_EJECTION=(2.0, 10.0, 60.0),
        LONGEST_EJECTION=(30.0, 300.0, 900.0),
        SLOW_START_SECONDS=(1.0, 30.0, 90.0),
    ),
    **_of("sampled", "core.scoring.scorer", SAMPLE=(1, 2, 4, 8)),
    **_of("large", "core.scoring.candidates", ALL=(8, 256)),
}
"""By module and name: `--tune agent_estimate.LEFT`."""


@dataclass(frozen=True)
class Outcome:
    """Of one run; seconds."""

    goodput: float
    first: float
    """Until the first token, on average; who gave up counts with the time that it waited."""
    total: float
    """Until the last token, on average."""
    loads: float
    """For 1,000 requests."""


type Run = tuple[Scene, Settings, int]
"""The last is the seed."""


@contextmanager
def changed(settings: Settings) -> Iterator[None]:
    """Constants of the balancer have other values meanwhile."""
    with ExitStack() as stack:
        for place, value in settings:
            stack.enter_context(patch(f"{PACKAGE}.{place.replace(':', '.')}", value))
        yield


def run(case: Run) -> Outcome:
    scene, settings, seed = case
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with changed(scene.settings + settings):
            return outcome(scene.simulation(seed).run())
    finally:
        logging.disable(before)


def outcome(result: Result) -> Outcome:
    first, total = statistics.fmean(result.first), statistics.fmean(result.total)
    return Outcome(result.goodput, first, total, result.loads_per_thousand)


def goodput(outcome: Outcome) -> float:
    return outcome.goodput


def first(outcome: Outcome) -> float:
    return outcome.first


def total(outcome: Outcome) -> float:
    return outcome.total


class Column:
    """A figure of some runs, and by how much it is above that of other runs with the same seeds."""

    def __init__(self, runs: Sequence[Outcome], base: Sequence[Outcome], of: Callable[[Outcome], float]) -> None:
        self.mean = statistics.fmean(of(each) for each in runs)
        pairs = [of(run) - of(other) for run, other in zip(runs, base, strict=True)]
        self.more = statistics.fmean(pairs)
        self.error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("inf")

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.more:+.2f} ± {self.error:.2f})"

    def sign(self, least: float) -> int:
        """1: it is more, -1: less, 0: by no more than `least` or two standard errors, either way."""
        counts = abs(self.more) > max(least, 2 * self.error)
        return int(counts) if self.more > 0 else -int(counts)


class Tuning:
    """`seeds` are how many workloads each value is tried with."""

    def __init__(self, pool: Executor, seeds: int) -> None:
        self._pool = pool
        self._seeds = range(1, seeds + 1)
        self._as_is: dict[str, list[Outcome]] = {}
        """By scene, with all as it is in the code."""

    def table(self, name: str) -> str:
        """The constant at each value of its grid, and what can be said of it."""
        constant = CONSTANTS[name]
        now, base = constant.value, self._base(constant.scene)
        lines = [
            f"{name} = {now:.4g}, scene `{constant.scene}`, {len(base)} seeds; in brackets: more than there, ± error",
            "",
            "| value | goodput, % | first token, mean s | last token, mean s | loads/1,000 |",
            "|---|---|---|---|---|",
        ]
        verdicts: dict[str, list[str]] = {}
        for value in sorted({*constant.grid, now}):
            at = f"{value:.4g}"
            runs = base if value == now else self._runs(constant, value)
            columns = [Column(runs, base, of) for of in (goodput, first, total)]
            cells = [str(column) for column in columns] if value != now else [f"{c.mean:.2f}" for c in columns]
            lines.append(f"| {at} | {' | '.join(cells)} | {statistics.fmean(r.loads for r in runs):.0f} |")
            if value != now:
                points, *times = columns
                verdicts.setdefault(verdict(points, times), []).append(at)
        said = "; ".join(f"{word}: {', '.join(values)}" for word, values in verdicts.items())
        return "\n".join([*lines, "", said, ""])

    def _base(self, scene: str) -> list[Outcome]:
        found = self._as_is.get(scene)
        if found is None:
            found = self._as_is[scene] = list(self._pool.map(run, [(SCENES[scene], (), seed) for seed in self._seeds]))
        return found

    def _runs(self, constant: Constant, value: float) -> list[Outcome]:
        settings = tuple((place, value) for place in constant.places)
        return list(self._pool.map(run, [(SCENES[constant.scene], settings, seed) for seed in self._seeds]))


def verdict(points: Column, times: Sequence[Column]) -> str:
    """Of a value, by its goodput and its times."""
    signs = {points.sign(MIN_POINTS), *(-each.sign(MIN_PART * each.mean) for each in times)} - {0}
    if not signs:
        return "as good"
    return "better here, worse there" if len(signs) == 2 else "better" if 1 in signs else "worse"
