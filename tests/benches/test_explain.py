"""What `--explain` says of a late request, in fleets of two hosts with one slot each, and room for one model."""

from dataclasses import dataclass, field, replace

import pytest

from benches.fleet_http.explain import Cause, Hindsight, Trace
from benches.fleet_http.hosts import Outage, Visit
from ollama_balancer.lab.hosts import Model, Spec
from ollama_balancer.lab.workload import Request

PACE = 20.0
QUICK = Model("quick", pace=PACE, prefill=800.0, load=6.0, output=200.0, digest=0.0)
LARGE = Model("large", pace=PACE, prefill=800.0, load=20.0, output=200.0, digest=1.0)
HOST = Spec(1.0, 1.0, parallel=1, fits=1)


@dataclass
class Story:
    """Requests before the late one, which comes last, at 100 s."""

    requests: list[Request] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)

    def had(self, host: int, model: Model, at: float, seconds: float = 1.0) -> None:
        """A request was sent to that host and answered for so many seconds."""
        self.requests.append(Request(at, "c0", model, len(self.requests), 40, 0, round(seconds * PACE)))
        self.visits.append(Visit(len(self.requests) - 1, host, at))

    def told(
        self, model: Model, *, host: int | None = 0, waited: float = 0.0, first: float = 30.0, fits: int = 1
    ) -> tuple[Cause, int | None]:
        number = len(self.requests)
        self.requests.append(Request(100.0, "c0", model, number, 40, 0, 20))
        if host is not None:
            self.visits.append(Visit(number, host, 100.0 + waited))
        trace = Trace([replace(HOST, fits=fits)] * 2, self.requests, self.visits, {number: first}, set())
        (late,) = Hindsight(trace).late
        return late.cause, late.best


@pytest.fixture
def story() -> Story:
    return Story()


def test_what_waits_while_a_slot_is_free(story: Story) -> None:
    story.had(1, QUICK, 50.0)
    assert story.told(QUICK, host=0, waited=20.0) == (Cause.SLOT_FREE, 1)
    assert Story(list(story.requests[:1]), list(story.visits[:1])).told(QUICK, host=None) == (Cause.SLOT_FREE, 1)


def test_what_waits_for_another_host_than_the_one_that_is_free_first(story: Story) -> None:
    story.had(0, QUICK, 50.0, seconds=80.0)
    story.had(1, QUICK, 90.0, seconds=8.0)
    assert story.told(QUICK, host=0, waited=37.0) == (Cause.WRONG_HOST, 1)


def test_what_waits_though_a_load_takes_less(story: Story) -> None:
    story.had(0, QUICK, 50.0, seconds=80.0)
    assert story.told(QUICK, host=0, waited=37.0) == (Cause.LOAD_SOONER, 1)


def test_what_is_loaded_though_it_is_loaded_elsewhere(story: Story) -> None:
    story.had(1, LARGE, 50.0)
    assert story.told(LARGE, host=0) == (Cause.WARM_SOONER, 1)


def test_what_is_sent_where_the_slot_is_taken(story: Story) -> None:
    story.had(0, QUICK, 50.0, seconds=80.0)
    story.had(1, QUICK, 50.0)
    assert story.told(QUICK, host=0) == (Cause.NO_SLOT, 1)


def test_where_all_hosts_are_busy_there_is_no_better_choice(story: Story) -> None:
    story.had(0, QUICK, 50.0, seconds=80.0)
    story.had(1, QUICK, 50.0, seconds=80.0)
    assert story.told(QUICK, host=0, waited=37.0) == (Cause.OVERLOAD, None)


def test_a_choice_that_makes_another_request_late_is_no_better_one(story: Story) -> None:
    story.had(1, QUICK, 50.0)
    story.had(0, QUICK, 50.0, seconds=80.0)
    story.requests.append(Request(101.0, "c0", QUICK, 7, 40, 0, 20))
    story.visits.append(Visit(2, 1, 101.0))
    number = 3
    story.requests.append(Request(100.0, "c0", QUICK, number, 40, 0, round(40 * PACE)))
    story.visits.append(Visit(number, 0, 130.0))
    late = Hindsight(Trace([HOST, HOST], story.requests, story.visits, {number: 37.0, 2: 0.1}, {2})).late
    assert [(each.cause, each.best) for each in late] == [(Cause.OVERLOAD, None)]


def test_what_was_evicted_shortly_before(story: Story) -> None:
    story.had(0, LARGE, 20.0)
    story.had(0, QUICK, 90.0)
    assert story.told(LARGE, host=1) == (Cause.EVICTED, None)


def test_what_is_loaded_nowhere_and_takes_too_long(story: Story) -> None:
    assert story.told(LARGE, host=1) == (Cause.NOWHERE, None)


def test_what_is_in_time_but_not_whole(story: Story) -> None:
    story.had(0, QUICK, 50.0)
    assert story.told(QUICK, first=0.1)[0] is Cause.NOT_WHOLE


def test_what_is_good_is_not_explained(story: Story) -> None:
    story.had(0, QUICK, 50.0)
    trace = Trace([HOST, HOST], story.requests, story.visits, {0: 6.0}, {0})
    assert Hindsight(trace).late == []


@pytest.mark.parametrize(
    ("outages", "best"),
    [([], 1), ([Outage(1, 70.0, 110.0)], None), ([Outage(1, 70.0, 90.0)], None), ([Outage(0, 70.0, 90.0)], 1)],
    ids=["none", "down", "back with nothing loaded", "the other one"],
)
def test_a_host_that_is_down_or_was_is_no_better_choice(story: Story, outages: list[Outage], best: int | None) -> None:
    story.had(1, LARGE, 50.0)
    story.requests.append(Request(100.0, "c0", LARGE, 1, 40, 0, 20))
    story.visits.append(Visit(1, 0, 130.0))
    (late,) = Hindsight(Trace([HOST, HOST], story.requests, story.visits, {1: 37.0}, set(), outages)).late
    assert late.best == best
