"""What the oracle does with a few hosts and requests."""

import math
from functools import partial

from benches.fleet_http.oracle import Goal, Oracle, placed
from ollama_balancer.lab.engine import Engine
from ollama_balancer.lab.hosts import Host, Job, Model, Spec
from ollama_balancer.lab.workload import Request

MODEL = Model("m", pace=20.0, prefill=800.0, load=8.0, output=200.0, digest=0.0)

GOAL = Goal()


class Lab:
    """An oracle and hosts of these speeds that have the model in memory, with one slot each."""

    def __init__(self, *speeds: float, parallel: int = 1, goal: Goal = GOAL) -> None:
        self.engine = Engine()
        self.hosts = [
            Host(self.engine, Spec(speed, 1.0, parallel, 1), f"h{number}") for number, speed in enumerate(speeds)
        ]
        self.oracle = Oracle(self.engine, {host: [MODEL] for host in self.hosts}, goal)
        self.engine.run(100.0)
        self.ended: list[int] = []

    def ask(self, conversation: int, output: int = 200, prompt: int = 400) -> Job:
        job = Job(MODEL, conversation, prompt, output, began=lambda: None, ended=partial(self._ended, conversation))
        self.oracle.submit(job)
        return job

    def _ended(self, conversation: int, whole: bool) -> None:
        self.ended.append(conversation)

    def where(self, job: Job) -> list[str]:
        return [host.name for host in self.hosts if job in host.jobs()]


def test_every_host_has_its_models_in_memory_from_the_start() -> None:
    lab = Lab(1.0, 2.0)
    assert [list(host.runners) for host in lab.hosts] == [["m"], ["m"]]
    assert [host.loads for host in lab.hosts] == [1, 1]


def test_the_fastest_host_gets_the_first_request() -> None:
    lab = Lab(1.0, 4.0, 2.0)
    assert lab.where(lab.ask(1)) == ["h1"]


def test_a_request_is_kept_back_for_a_fast_host_that_is_free_soon() -> None:
    lab = Lab(0.2, 8.0)
    first = lab.ask(1, output=160)
    second = lab.ask(2)
    assert lab.where(second) == []
    lab.engine.run(200.0)
    assert second.ready == first.finished


def test_a_request_does_not_wait_for_a_fast_host_that_has_much_to_do() -> None:
    lab = Lab(1.0, 4.0)
    lab.ask(1, output=2000)
    assert lab.where(lab.ask(2)) == ["h0"]


def test_the_next_turn_goes_where_its_beginning_is_known() -> None:
    lab = Lab(2.0, 2.2)
    first = lab.ask(1, prompt=4000)
    second = lab.ask(2, prompt=4000)
    assert (lab.where(first), lab.where(second)) == (["h1"], ["h0"])
    lab.engine.run(200.0)
    assert lab.where(lab.ask(2, prompt=4300)) == ["h0"]


def test_who_has_waited_longest_is_served_first() -> None:
    lab = Lab(1.0)
    for number in range(4):
        lab.ask(number, output=20)
    lab.engine.run(200.0)
    assert lab.ended == [0, 1, 2, 3]


def test_who_is_too_late_anyway_is_served_after_those_who_may_be_in_time() -> None:
    lab = Lab(1.0)
    lab.ask(0, output=240)
    lab.ask(1, output=20)
    lab.engine.run(111.0)
    lab.ask(2, output=20)
    lab.engine.run(200.0)
    assert lab.ended == [0, 2, 1]


def test_whoever_hangs_up_is_forgotten_wherever_the_request_is() -> None:
    lab = Lab(1.0)
    running, held, next_one = lab.ask(0, output=4000), lab.ask(1, output=4000), lab.ask(2, output=20)
    lab.oracle.cancel(held)
    assert lab.oracle.held == [next_one]
    lab.oracle.cancel(running)
    assert lab.where(next_one) == ["h0"]
    lab.engine.run(200.0)
    assert lab.ended == [2]


def test_models_are_placed_by_what_is_asked_of_them() -> None:
    models = [Model(f"m{n}", 20.0, 800.0, 8.0, 200.0, 0.1 * n) for n in range(3)]
    requests = [Request(0.0, "c0", models[n], 1, 100, 0, 200) for n in (0, 0, 0, 0, 1, 2)]
    specs = [Spec(1.0, 1.0, 1, 1) for _ in range(6)]
    places = placed(specs, requests)
    assert sorted(model.name for models in places for model in models) == ["m0", "m0", "m0", "m0", "m1", "m2"]


def test_a_host_gets_no_more_models_than_it_holds_and_none_twice() -> None:
    models = [Model(f"m{n}", 20.0, 800.0, 8.0, 200.0, 0.1 * n) for n in range(2)]
    requests = [Request(0.0, "c0", model, 1, 100, 0, 200) for model in models]
    places = placed([Spec(1.0, 1.0, 1, 4), Spec(1.0, 1.0, 1, 1)], requests)
    assert [len(models) for models in places] == [2, 1]


def test_a_host_that_is_down_gets_nothing_and_its_requests_have_failed() -> None:
    lab = Lab(1.0, 4.0)
    running, host = lab.ask(1, output=4000), lab.hosts[1]
    host.crash()
    lab.oracle.lost(host)
    assert lab.ended == [1]
    assert (lab.where(running), lab.where(lab.ask(2))) == ([], ["h0"])


def test_what_waited_for_a_host_that_died_is_sent_to_another_one() -> None:
    lab = Lab(0.2, 8.0)
    lab.ask(1, output=160)
    waiting = lab.ask(2)
    assert lab.oracle.held == [waiting]
    lab.hosts[1].crash()
    lab.oracle.lost(lab.hosts[1])
    assert lab.where(waiting) == ["h0"]


def test_a_host_that_is_back_has_its_models_loaded_at_once() -> None:
    lab = Lab(1.0, 4.0)
    host = lab.hosts[1]
    host.crash()
    lab.oracle.lost(host)
    lab.engine.run(160.0)
    host.up = True
    lab.oracle.back(host)
    assert host.loading is MODEL
    lab.engine.run(200.0)
    assert lab.where(lab.ask(1)) == ["h1"]


def test_without_a_time_for_the_first_token_only_the_end_of_the_answers_counts() -> None:
    lab = Lab(1.0, goal=Goal(in_time=math.inf, answer_weight=1.0))
    lab.ask(0, output=1000)
    for number in range(1, 4):
        lab.ask(number, output=20)
    lab.engine.run(200.0)
    assert lab.ended == [0, 1, 2, 3]
