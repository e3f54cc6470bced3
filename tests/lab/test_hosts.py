"""A simulated host and its copy."""

import math
from dataclasses import dataclass, field

import pytest

from ollama_balancer.lab.engine import Engine
from ollama_balancer.lab.hosts import Host, Job, Model, Spec

MODELS = [Model(f"m{n}", pace=20.0, prefill=800.0, load=8.0, output=200.0, digest=0.1 * n) for n in range(3)]


@dataclass
class Busy:
    """A host with two models in memory, one that is loading, and requests in each phase."""

    engine: Engine = field(default_factory=Engine)
    told: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = Host(self.engine, Spec(speed=2.0, disk=1.0, parallel=2, fits=2), "h")
        for at, model, conversation, output in (
            *((0.0, 0, 1, 40), (1.0, 1, 2, 600), (17.0, 0, 1, 900), (17.5, 0, 3, 300), (18.0, 0, 4, 100)),
            *((19.0, 1, 2, 300), (20.0, 2, 5, 100), (21.0, 0, 6, 50)),
        ):
            self.engine.run(at)
            self.submit(model, conversation, output)

    def submit(self, model: int, conversation: int, output: int) -> None:
        number = len(self.jobs)
        job = Job(
            MODELS[model],
            conversation,
            500,
            output,
            began=lambda: self.told.append(f"{number} began"),
            ended=lambda whole: self.told.append(f"{number} ended"),
        )
        self.jobs.append(job)
        self.host.submit(job)


@pytest.mark.parametrize("at", [21.0, 22.5, 25.0, 30.0, 40.0, 50.0, 60.0])
def test_a_copy_serves_what_is_there_at_the_same_times(at: float) -> None:
    busy = Busy()
    busy.engine.run(at)
    engine = Engine()
    engine.now = at
    copy, copies = busy.host.copy(engine)
    engine.run(math.inf)
    busy.engine.run(math.inf)
    assert copies.keys() == {job for job in busy.jobs if job.finished > at}
    for job, served in copies.items():
        assert (served.ready, served.first) == pytest.approx((job.ready, job.first))
        assert served.finished == pytest.approx(job.finished)
    assert copy.runners.keys() == busy.host.runners.keys()
    assert copy.loads == busy.host.loads


def test_what_becomes_of_a_copy_is_told_to_nobody_and_leaves_the_host_alone() -> None:
    busy = Busy()
    told, works = list(busy.told), [job.work for job in busy.jobs]
    engine = Engine()
    engine.now = busy.engine.now
    busy.host.copy(engine)
    engine.run(math.inf)
    assert busy.told == told
    assert [job.work for job in busy.jobs] == works


def test_a_copy_knows_the_prompts_that_the_host_has_read() -> None:
    busy = Busy()
    busy.engine.run(1000.0)
    engine = Engine()
    engine.now = busy.engine.now
    copy, _ = busy.host.copy(engine)
    again = busy.jobs[-1].copy()
    copy.submit(again)
    assert again.read == 1
