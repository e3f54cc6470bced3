"""The simulator against what queueing theory knows of M/M/k, and against itself."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benches.fleet_simulation.workload import Shape, draw
from ollama_balancer.lab.engine import Engine
from ollama_balancer.lab.hosts import Host, Job, Model, Rates, Spec
from ollama_balancer.lab.simulation import Simulation
from ollama_balancer.lab.workload import Request, Workload

SECOND = 1000
"""Tokens a second: one token is a millisecond."""


def erlang_c(servers: int, load: float) -> float:
    """The probability that a request has to wait in M/M/k, with `load` = arrival rate / service rate."""
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def poisson(servers: int, utilization: float, count: int, seed: int) -> Workload:
    """Exponential services of one second on average, on hosts that run one request at once and are never slowed."""
    rng = random.Random(seed)
    model = Model("m:latest", pace=SECOND, prefill=1e9, load=5.0, output=SECOND, digest=0.0)
    at, requests = 0.0, []
    for number in range(count):
        at += rng.expovariate(servers * utilization)
        output = max(1, round(rng.expovariate(1 / SECOND)))
        requests.append(Request(at, f"c{number % 7}", model, number, 1, 0, output))
    hosts = tuple(Spec(speed=1.0, disk=1.0, parallel=1, fits=1) for _ in range(servers))
    return Workload(hosts, (model,), tuple(requests), seconds=at, warm_up=100.0)


@pytest.mark.chaos
@pytest.mark.parametrize(("servers", "utilization", "count"), [(1, 0.5, 4_000), (4, 0.8, 12_000), (10, 0.9, 12_000)])
def test_the_mean_wait_is_that_of_m_m_k(servers: int, utilization: float, count: int) -> None:
    waits: list[float] = []
    for seed in range(4):
        result = Simulation(poisson(servers, utilization, count, seed), "least_requests", seed).run()
        assert result.outcomes["served"] == result.asked
        waits += result.first
    load = servers * utilization
    expected = erlang_c(servers, load) / (servers - load)
    assert sum(waits) / len(waits) == pytest.approx(expected, rel=0.15)


def run(*sent: tuple[float, Model, int, int], spec: Spec) -> list[tuple[float, float]]:
    """Send jobs (when, model, prompt, output) to one host; when each had its first token, and its last."""
    engine = Engine()
    host = Host(engine, spec, "h")
    ends: list[tuple[float, float]] = [(math.nan, math.nan)] * len(sent)

    def send(number: int, model: Model, prompt: int, output: int) -> None:
        job = Job(model, number, prompt, output, began=lambda: None, ended=lambda whole: end(number, job))
        host.submit(job)

    def end(number: int, job: Job) -> None:
        ends[number] = job.first, job.finished

    for number, (at, model, prompt, output) in enumerate(sent):
        engine.after(at, lambda n=number, m=model, p=prompt, o=output: send(n, m, p, o))  # type: ignore[misc]
    engine.run(1000)
    return ends


A = Model("a", pace=10, prefill=100, load=10, output=100, digest=0.1)
B = Model("b", pace=10, prefill=100, load=10, output=100, digest=0.2)
ONE = Spec(speed=1, disk=1, parallel=1, fits=1)


def close(found: Sequence[tuple[float, float]], expected: Sequence[tuple[float, float]]) -> None:
    for pair, right in zip(found, expected, strict=True):
        assert pair == pytest.approx(right)


def test_a_request_loads_reads_and_answers() -> None:
    close(run((0, A, 200, 50), spec=ONE), [(12, 17)])


def test_requests_of_one_model_take_turns_where_one_runs_at_once() -> None:
    close(run((0, A, 100, 10), (0, A, 100, 10), spec=ONE), [(11, 12), (13, 14)])


def test_two_at_once_take_longer_each() -> None:
    both = Spec(speed=1, disk=1, parallel=2, fits=1)
    close(run((0, A, 100, 10), (0, A, 100, 10), spec=both), [(11.4, 12.8), (11.4, 12.8)])


def test_two_models_at_once_share_the_host() -> None:
    room = Spec(speed=1, disk=1, parallel=1, fits=2)
    close(run((0, A, 100, 190), (0, B, 100, 10), spec=room), [(11, 32), (22, 24)])


def test_another_model_waits_until_the_first_is_idle_and_then_loads() -> None:
    close(run((0, A, 100, 10), (1, B, 100, 10), spec=ONE), [(11, 12), (23, 24)])


def test_a_load_does_not_hold_up_a_model_that_is_in_memory() -> None:
    room = Spec(speed=1, disk=1, parallel=1, fits=2)
    close(run((0, A, 100, 10), (20, B, 100, 10), (21, A, 100, 10), spec=room)[2:], [(22, 23)])


def test_a_load_holds_up_a_model_that_is_not() -> None:
    room = Spec(speed=1, disk=1, parallel=1, fits=2)
    loaded_anew = run((0, A, 100, 10), (20, B, 100, 10), (21, replace(A, name="c"), 100, 10), spec=room)[2:]
    close(loaded_anew, [(41, 42)])


def test_a_faster_host_takes_less() -> None:
    close(run((0, A, 200, 50), spec=Spec(speed=2, disk=1, parallel=1, fits=1)), [(11, 13.5)])


@pytest.mark.chaos
def test_the_same_seed_gives_the_same_run() -> None:
    shape = Shape(hosts=4, models=3, load=0.6, seconds=150, warm_up=30)
    runs = [Simulation(draw(shape, 7), "adaptive", 7).run() for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].asked > 50


@pytest.mark.chaos
def test_every_request_ends_and_nothing_is_left() -> None:
    shape = Shape(hosts=6, models=8, load=0.9, seconds=200, warm_up=0)
    for mode in ("roundrobin", "metrics", "least_requests", "adaptive"):
        workload = draw(shape, 3)
        simulation = Simulation(workload, mode, 3)
        result = simulation.run()
        assert result.asked == len(workload.requests)
        assert len(simulation.queue) == 0
        assert simulation.registry.in_flight == 0
        assert all(not agent.loading and not agent.loaders and not agent.running for agent in simulation.registry)


@pytest.mark.chaos
def test_all_modes_meet_the_same_failures() -> None:
    def seen(mode: str) -> list[tuple[bool, float]]:
        simulation = Simulation(draw(Shape(12, 2, 0.7, 600.0), 1), mode, 1)
        states: list[tuple[bool, float]] = []

        def look() -> None:
            states.extend((host.up, host.slow) for host in simulation.hosts.values())
            simulation.engine.after(10, look)

        look()
        simulation.run()
        return states

    states = seen("adaptive")
    assert {up for up, _ in states} == {True, False}
    assert states == seen("least_requests")


@pytest.mark.chaos
def test_a_host_that_died_is_used_again_when_it_is_back() -> None:
    simulation = Simulation(draw(Shape(12, 1, 0.8, 600.0), 1), "adaptive", 1)
    died: set[str] = set()

    def look() -> None:
        died.update(host.name for host in simulation.hosts.values() if not host.up)
        simulation.engine.after(10, look)

    look()
    simulation.run()
    assert died
    assert {agent.name for agent, host in simulation.hosts.items() if host.up and not agent.online} == set()


@pytest.mark.chaos
def test_with_many_models_the_adaptive_mode_serves_in_time_what_the_others_do_not() -> None:
    shape = Shape(hosts=16, models=6, load=0.5, seconds=300, warm_up=200)
    goodput = {mode: Simulation(draw(shape, 5), mode, 5).run().goodput for mode in ("least_requests", "adaptive")}
    assert goodput["adaptive"] > 90
    assert goodput["adaptive"] > goodput["least_requests"]


def test_a_host_goes_by_its_own_rates_of_a_model_where_it_has_any() -> None:
    own = replace(ONE, rates={"a": Rates(decode=100, prefill=50, load=0.5)})
    close(run((0, A, 200, 50), spec=own), [(4.5, 5)])


WARM, OTHER = replace(A, name="a:latest"), replace(B, name="b:latest")


def test_a_model_in_memory_at_the_start_needs_no_load_and_hosts_get_only_models_they_have() -> None:
    rates = Rates(decode=10, prefill=100, load=10)
    one = Spec(1, 1, 1, 1, "one", {"a:latest": rates}, ("a:latest",))
    two = Spec(1, 1, 1, 1, "two", {"b:latest": rates}, ("b:latest",))
    requests = tuple(Request(10.0 * n, "c", (WARM, OTHER)[n % 4 > 0], n, 100, 0, 10) for n in range(8))
    result = Simulation(Workload((one, two), (WARM, OTHER), requests, seconds=80), "roundrobin", 1).run()
    assert result.agents == {"one": 2, "two": 6}
    assert result.first == pytest.approx([1.0] * 8)
    assert result.loads == 0


def test_a_model_that_is_idle_for_longer_than_it_is_kept_has_to_be_loaded_again() -> None:
    close(run((0, A, 100, 100), (81, A, 100, 100), spec=replace(ONE, keep=60)), [(11, 21), (82, 92)])
    close(run((0, A, 100, 100), (82, A, 100, 100), spec=replace(ONE, keep=60)), [(11, 21), (93, 103)])


def test_of_a_prompt_no_more_is_read_already_than_its_conversation_had() -> None:
    host = Spec(1, 1, 1, 1, "one", {"a:latest": Rates(decode=10, prefill=100, load=10)}, ("a:latest",))
    requests = (Request(0, "c", WARM, 1, 300, 0, 10), Request(20, "c", WARM, 1, 500, 100, 10))
    result = Simulation(Workload((host,), (WARM,), requests, seconds=20), "adaptive", 1).run()
    assert result.first == pytest.approx([3.0, 4.0])


def test_a_strong_host_does_not_stay_with_a_model_that_is_seldom_asked_for() -> None:
    rng = random.Random(1)
    busy, seldom = (
        Model(name, pace=10, prefill=1e3, load=10.0, output=100, digest=digest)
        for name, digest in (("busy:latest", 0.1), ("seldom:latest", 0.2))
    )
    at = 0.0
    requests: list[Request] = []
    while at < 400:
        at += rng.expovariate(0.5)
        model = seldom if rng.random() < 0.2 else busy
        output = 1 + round(rng.expovariate(0.01))
        requests.append(Request(at, f"c{rng.randrange(7)}", model, len(requests), 100, 0, output))
    strong = Spec(speed=6, disk=1, parallel=2, fits=1, loaded=(seldom.name,))
    weak = Spec(speed=1, disk=1, parallel=1, fits=1, loaded=(busy.name,))
    workload = Workload((strong, weak, weak, weak), (busy, seldom), tuple(requests), seconds=300, warm_up=100)
    goodput = []
    for on in (False, True):
        simulation = Simulation(workload, "adaptive", 1)
        simulation.registry.preloading.on = on
        goodput.append(simulation.run().goodput)
    assert goodput[0] < 30
    assert goodput[1] > 60
