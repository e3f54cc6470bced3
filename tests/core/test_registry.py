from __future__ import annotations

import logging

import pytest

from ollama_balancer.core import registry as registry_module
from ollama_balancer.core.address import Address
from ollama_balancer.core.agent import Agent, Source, Status, agent_id
from ollama_balancer.core.agent_records import MAX_SPEEDS, Outcome, Statistics
from ollama_balancer.core.agent_view import describe_agent
from ollama_balancer.core.liveness import PROBE_GRACE
from ollama_balancer.core.registry import AgentRegistry
from tests.core.fakes import Clock, address, entries, fleet, new_registry, report


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> AgentRegistry:
    return new_registry(clock)


def status_of(agent: Agent) -> str:
    return agent.status.value


# Registration


def test_ids_are_the_same_in_every_registry(registry: AgentRegistry) -> None:
    agent, new = registry.register("gpu-1", address(1))
    again, _ = new_registry().register("gpu-1", address(2))
    other, _ = registry.register("gpu-2", address(1))
    assert new
    assert agent.id == again.id == agent_id("gpu-1")
    assert agent.id != other.id


def test_an_agent_is_found_by_its_id_and_by_its_name(registry: AgentRegistry) -> None:
    agent, _ = registry.register("gpu-1", address(1))
    assert registry.get(agent.id) is registry.get("gpu-1") is agent
    assert registry.get("gpu-2") is None


def test_registering_a_known_name_gives_the_same_agent(registry: AgentRegistry) -> None:
    agent, _ = registry.register("gpu-1", address(1), Source.STATIC)
    assert registry.register("gpu-1", address(1)) == (agent, False)
    assert agent.source is Source.STATIC
    assert len(registry) == 1


def test_an_agent_that_moves_is_offline_until_it_is_heard_of_at_the_new_address(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.register("a", address(7))
    assert agent.address == address(7)
    assert status_of(agent) == "offline"
    assert not registry.knows(*_parts(address(1)))
    assert registry.knows(*_parts(address(7)))
    registry.liveness.reached(agent)
    assert status_of(agent) == "online"


def test_registering_again_at_the_same_address_leaves_an_agent_online(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.register("a", address(1))
    assert status_of(agent) == "online"


def test_an_address_is_known_as_long_as_one_agent_has_it(registry: AgentRegistry) -> None:
    first, _ = registry.register("a", address(1))
    second, _ = registry.register("b", address(1))
    registry.remove(first)
    registry.remove(first)
    assert registry.knows(*_parts(address(1)))
    registry.remove(second)
    assert not registry.knows(*_parts(address(1)))


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "a/b", "a\n", "ä", "a" * 65, "a,b", "<script>", "a\x00", "a=b"]
)
def test_a_name_that_is_not_plain_is_refused(registry: AgentRegistry, name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        registry.register(name, address(1))
    assert len(registry) == 0


@pytest.mark.parametrize("name", ["a", "GPU-1.example.org", "10.0.0.1:11434", "[::1]:11434", "a" * 64, "0_b"])
def test_a_plain_name_is_taken(registry: AgentRegistry, name: str) -> None:
    agent, _ = registry.register(name, address(1))
    assert registry.get(name) is agent


def test_a_name_that_is_the_id_of_another_agent_is_refused(registry: AgentRegistry) -> None:
    registry.register("gpu-1", address(1))
    with pytest.raises(ValueError, match="another agent's id"):
        registry.register(agent_id("gpu-1"), address(2))


def test_a_name_whose_id_is_the_name_of_another_agent_is_refused(registry: AgentRegistry) -> None:
    registry.register(agent_id("gpu-1"), address(1))
    with pytest.raises(ValueError, match="another agent's id"):
        registry.register("gpu-1", address(2))


def test_a_full_fleet_refuses_further_agents_and_keeps_those_it_has(
    registry: AgentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "MAX_AGENTS", 2)
    fleet(registry, "a", "b")
    with pytest.raises(ValueError, match="2 agents"):
        registry.register("c", address(3))
    assert registry.register("a", address(1))[1] is False


# Reports


def test_a_report_of_an_unknown_agent_is_a_key_error(registry: AgentRegistry) -> None:
    with pytest.raises(KeyError):
        registry.update_metrics("nobody", report())


def test_a_report_brings_an_agent_online_with_what_it_says(registry: AgentRegistry) -> None:
    agent, _ = registry.register("a", address(1))
    assert status_of(agent) == "offline"
    metrics = report(
        models=entries("m", "n"), loaded_models=entries("n"), ollama_version="0.33.0", num_parallel=4, ollama_ok=True
    )
    assert registry.update_metrics("a", metrics)
    assert status_of(agent) == "online"
    assert (agent.model_names, [m.name for m in agent.loaded]) == (["m", "n"], ["n"])
    assert (agent.version, agent.slots, agent.metrics) == ("0.33.0", 4, metrics)


def test_a_report_that_is_silent_on_models_leaves_them_as_they_were(registry: AgentRegistry) -> None:
    agent, _ = registry.register("a", address(1))
    registry.update_metrics("a", report(models=entries("m"), loaded_models=entries("m"), ollama_version="1"))
    registry.update_metrics("a", report(at=1))
    assert (agent.model_names, [m.name for m in agent.loaded], agent.version) == (["m"], ["m"], "1")
    registry.update_metrics("a", report(at=2, models=[], loaded_models=[]))
    assert (agent.model_names, agent.loaded, agent.version) == ([], [], "1")


def test_a_report_that_was_made_before_a_look_does_not_undo_what_the_look_has_seen(
    registry: AgentRegistry, clock: Clock
) -> None:
    [a] = fleet(registry, "a")
    registry.update_metrics("a", report(at=0, loaded_models=[]))
    clock.now += 10
    registry.inventory.update_loaded(a, entries("m"), clock.now)
    clock.now += 0.5
    registry.update_metrics("a", report(at=9.9, loaded_models=[]))
    assert a.loaded_names == ["m"]
    clock.now += 10
    registry.update_metrics("a", report(at=20.5, loaded_models=[]))
    assert a.loaded_names == []
    registry.liveness.unreachable(a, "refused")
    registry.liveness.reached(a)
    registry.update_metrics("a", report(at=20.6, loaded_models=entries("n")))
    assert a.loaded_names == ["n"]


def test_a_model_that_an_agent_unloads_is_gone_at_once_unless_it_runs(registry: AgentRegistry) -> None:
    [a] = fleet(registry, "a")
    registry.inventory.update_loaded(a, entries("m", "n"))
    lease = registry.limiter.take(a, "m:latest")
    lease.began()
    registry.inventory.unloaded(a, "m:latest")
    assert a.loaded_names == ["m", "n"]
    lease.release()
    registry.inventory.unloaded(a, "m:latest")
    registry.inventory.unloaded(a, "unknown:latest")
    assert (a.loaded_names, list(a.loaded_models)) == (["n"], ["n:latest"])


def test_a_late_report_is_dropped(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    assert registry.update_metrics("a", report(30, at=10))
    clock.now += 1
    assert registry.update_metrics("a", report(70, at=9)) is False
    assert (agent.score, clock.now - agent.metrics_at) == (50, 1)


def test_a_report_of_the_same_time_is_taken(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report(30, at=10))
    assert registry.update_metrics("a", report(70, at=10))
    assert agent.score == 90


def test_a_host_whose_clock_was_set_back_is_heard_again_once_its_last_report_is_stale(
    registry: AgentRegistry, clock: Clock
) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report(30, at=10))
    clock.now += 29.9
    assert registry.update_metrics("a", report(70, at=-3600)) is False
    clock.now += 0.1
    assert registry.update_metrics("a", report(70, at=-3600))
    assert agent.score == 90


def test_freshness_is_measured_by_the_balancers_clock(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report(at=-100_000_000))
    assert agent.fresh
    clock.now += 29.9
    assert registry.get("a") is agent
    assert agent.fresh
    clock.now += 0.1
    assert registry.get("a") is agent
    assert not agent.fresh


def test_an_agent_that_only_reports_is_offline_once_its_report_is_stale(registry: AgentRegistry, clock: Clock) -> None:
    agent, _ = registry.register("a", address(1))
    registry.update_metrics("a", report())
    clock.now += 29.9
    assert registry.counts() == {Status.ONLINE: 1}
    clock.now += 0.1
    assert registry.counts() == {Status.OFFLINE: 1}
    assert "no report for 30 s" in agent.offline_reason


def test_an_agent_that_is_only_probed_is_offline_within_15_seconds(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    clock.now += PROBE_GRACE - 0.1
    assert registry.counts() == {Status.ONLINE: 1}
    clock.now += 0.1
    assert registry.counts() == {Status.OFFLINE: 1}
    assert PROBE_GRACE < 15
    assert "probes" in agent.offline_reason


def test_an_agent_that_reports_and_answers_probes_stays_online_while_either_holds(
    registry: AgentRegistry, clock: Clock
) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report())
    clock.now += 20  # the probe has run out, the report has not
    assert registry.counts() == {Status.ONLINE: 1}
    registry.liveness.reached(agent)
    clock.now += 11  # and now the other way round
    assert registry.counts() == {Status.ONLINE: 1}
    assert not agent.fresh
    clock.now += 2
    assert registry.counts() == {Status.OFFLINE: 1}


def test_a_shorter_stale_after_counts_at_once(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report())
    clock.now += 10
    registry.stale_after = 10
    assert not agent.fresh
    registry.update_metrics("a", report())
    clock.now += 9
    assert registry.get("a") is agent
    assert agent.fresh


def test_a_longer_stale_after_counts_for_reports_that_are_fresh(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report())
    clock.now += 20
    registry.stale_after = 60
    clock.now += 39
    registry.get("a")
    assert agent.fresh
    clock.now += 1
    registry.get("a")
    assert not agent.fresh


def test_a_report_that_ollama_does_not_answer_takes_the_agent_offline_at_once(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report(ollama_ok=False))
    assert status_of(agent) == "offline"
    assert registry.selection.select() is None
    registry.update_metrics("a", report(ollama_ok=True))
    assert status_of(agent) == "online"
    assert registry.selection.select() is agent


def test_who_reports_and_refuses_connections_is_unreachable_until_something_gets_through(
    registry: AgentRegistry,
) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report())
    registry.liveness.unreachable(agent, "connection refused")
    assert (agent.status, agent.reason) == (Status.UNREACHABLE, "connection refused")
    registry.update_metrics("a", report(at=1))
    assert registry.counts() == {Status.UNREACHABLE: 1}
    assert registry.selection.select() is None
    assert registry.liveness.needs_probe(agent)
    registry.liveness.reached(agent)
    assert (agent.status, agent.reason) == (
        Status.ONLINE,
        "slow start: for a while it gets no more requests than it can run at once",
    )
    registry.update_metrics("a", report(at=2))
    assert registry.selection.select() is agent


def test_a_first_report_alone_makes_nobody_online_where_it_is_to_be_reached(clock: Clock) -> None:
    registry = new_registry(clock, must_reach=True)
    unproven: list[Agent] = []
    registry.fleet.on_unproven = unproven.append
    agent, _ = registry.register("a", address(1))
    assert status_of(agent) == "offline"
    for second in range(3):
        registry.update_metrics("a", report(at=second, models=entries("m"), loaded_models=[]))
    assert agent.status is Status.UNREACHABLE
    assert "has not been reached at 10.0.0.1:11434 yet" in (agent.reason or "")
    assert unproven == [agent]  # once, not with each report
    assert registry.selection.select("m:latest") is None
    registry.liveness.reached(agent)
    assert registry.selection.select("m:latest") is agent
    clock.now += PROBE_GRACE + 1  # from here on its reports are enough
    registry.update_metrics("a", report(at=3, models=entries("m"), loaded_models=[]))
    clock.now += 29
    assert registry.counts() == {Status.ONLINE: 1}
    registry.register("a", address(2))
    registry.update_metrics("a", report(at=4))
    assert registry.counts() == {Status.UNREACHABLE: 1}  # nothing is known of the new address
    assert unproven == [agent, agent]


def test_an_agent_whose_request_is_answered_is_reached(clock: Clock) -> None:
    registry = new_registry(clock, must_reach=True)
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report())
    lease = registry.limiter.take(agent, "m")
    registry.liveness.unreachable(agent, "a connection timed out")
    assert status_of(agent) == "unreachable"
    lease.began()
    assert status_of(agent) == "online"


def test_probes_without_an_answer_take_a_reporting_agent_offline_in_time(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    began = clock.now
    while registry.counts() == {Status.ONLINE: 1}:
        registry.update_metrics("a", report(at=clock.now))  # it does not tell what it has in memory: it is probed
        clock.now += 5
        registry.liveness.silent(agent, "no whole answer within 2 s")
        assert clock.now - began < 40
    assert PROBE_GRACE <= clock.now - began <= 2 * PROBE_GRACE + 5
    assert (agent.status, agent.reason) == (Status.UNREACHABLE, "no whole answer within 2 s")


def test_probes_without_an_answer_give_an_offline_agent_its_reason(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    registry.liveness.silent(agent, "GET /api/version is answered with status 500")
    assert registry.counts() == {Status.ONLINE: 1}
    clock.now += PROBE_GRACE
    assert registry.counts() == {Status.OFFLINE: 1}
    assert agent.reason == "no answer to probes: GET /api/version is answered with status 500"


def test_probes_that_were_late_count_together_only_while_nothing_gets_through(clock: Clock) -> None:
    registry = new_registry(clock, must_reach=True)
    (agent,) = fleet(registry, "a")
    registry.update_metrics("a", report())
    registry.liveness.reached(agent)
    clock.now += PROBE_GRACE - 1
    registry.update_metrics("a", report())
    clock.now += 2
    registry.expire()
    registry.liveness.silent(agent, "late")
    for _ in range(20):
        clock.now += 10
        registry.update_metrics("a", report())
        lease = registry.limiter.take(agent, "m:latest")
        lease.began()
        lease.release()
    clock.now += 20
    registry.update_metrics("a", report())
    registry.liveness.silent(agent, "late again")
    assert agent.online


def test_each_change_of_what_is_reached_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    registry = new_registry(clock, must_reach=True)
    agent, _ = registry.register("a", address(1))

    def logged() -> list[str]:
        lines = [record.getMessage().removeprefix("Agent a (10.0.0.1:11434) is ") for record in caplog.records]
        caplog.clear()
        return lines

    for second in range(3):
        registry.update_metrics("a", report(at=second))
        registry.liveness.silent(agent, "a firewall")
    assert logged() == ["unreachable: a firewall."]
    registry.liveness.unreachable(agent, "refused")
    assert (agent.reason, logged()) == ("refused", [])
    registry.liveness.reached(agent)
    assert logged() == ["online: it answers."]
    registry.liveness.unreachable(agent, "refused")
    registry.update_metrics("a", report(at=4, ollama_ok=False))
    registry.liveness.unreachable(agent, "refused")
    registry.update_metrics("a", report(at=5))
    registry.liveness.reached(agent)
    assert logged() == [
        "unreachable: refused.",
        "offline: its reporter says that Ollama does not answer there.",
        "online: it answers.",
    ]
    registry.liveness.unreachable(agent, "refused")
    clock.now += 31
    registry.expire()
    assert logged()[:2] == ["unreachable: refused.", "offline: no report for 30 s."]


def test_the_reason_for_being_offline_outlasts_the_last_probes_grace(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    registry.liveness.unreachable(agent, "connection refused")
    clock.now += PROBE_GRACE
    assert registry.counts() == {Status.OFFLINE: 1}
    assert agent.offline_reason == "connection refused"


def test_a_probe_is_wanted_where_no_report_tells_what_it_would_tell(registry: AgentRegistry, clock: Clock) -> None:
    agent, _ = registry.register("a", address(1))
    assert registry.liveness.needs_probe(agent)
    registry.update_metrics("a", report())
    assert registry.liveness.needs_probe(agent)  # its models are not known
    registry.update_metrics("a", report(models=entries("m")))
    assert registry.liveness.needs_probe(agent)  # nor is what it has in memory
    registry.update_metrics("a", report(models=entries("m"), loaded_models=[]))
    assert not registry.liveness.needs_probe(agent)
    clock.now += 20.1
    assert registry.liveness.needs_probe(agent)  # its reporter has been silent for a while


# Draining


def test_a_draining_agent_gets_no_new_requests_and_keeps_those_it_has(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    lease = registry.limiter.take(agent)
    registry.drain(agent)
    assert (agent.status, agent.in_flight) == (Status.DRAINING, 1)
    assert registry.selection.select() is None
    assert lease.release()
    registry.resume(agent)
    assert registry.selection.select() is agent


def test_a_drain_outlasts_reports_and_probes(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.drain(agent)
    registry.update_metrics("a", report())
    registry.liveness.reached(agent)
    registry.liveness.unreachable(agent, "refused")
    assert status_of(agent) == "unreachable"
    registry.liveness.reached(agent)
    assert status_of(agent) == "draining"


def test_the_log_says_of_a_drained_agent_that_comes_back_that_it_is_still_draining(
    registry: AgentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    a, b = fleet(registry, "a", "b")
    registry.drain(a)
    registry.drain(b, until_registration=True)
    for agent in (a, b):
        registry.liveness.unreachable(agent, "refused")
    caplog.clear()
    registry.liveness.reached(a)
    registry.liveness.reached(b)
    registry.liveness.unreachable(a, "refused")
    registry.resume(a)
    registry.liveness.reached(a)
    registry.resume(b)
    assert [record.getMessage() for record in caplog.records] == [
        f"Agent a ({a.address}) answers and is still draining: it gets no new requests until it is resumed.",
        f"Agent b ({b.address}) answers and is still draining: it gets no new requests until its reporter registers.",
        f"Agent a ({a.address}) is offline: refused.",
        "Agent a is resumed, though it is offline.",
        f"Agent a ({a.address}) is online: it answers.",
        "Agent b is resumed.",
    ]


def test_who_drains_an_agent_says_who_ends_that(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.drain(agent, configured=True)
    registry.drain(agent, until_registration=True)  # its reporter shuts down
    registry.register("a", agent.address)
    assert agent.draining, "the configuration's outlasts that"
    assert agent.reason == "the fleet file drains it, or its name in DNS no longer leads to it"
    registry.end_configured_drain(agent)
    assert not agent.draining
    registry.drain(agent, until_registration=True)
    registry.end_configured_drain(agent)
    assert agent.draining, "not the configuration's"
    registry.drain(agent, configured=True)
    registry.register("a", agent.address)
    assert agent.draining
    registry.drain(agent)  # a person
    registry.drain(agent, configured=True)
    registry.end_configured_drain(agent)
    assert agent.draining
    registry.resume(agent)
    assert not agent.draining


def test_slots_of_one_agent_take_the_place_of_those_of_all(registry: AgentRegistry) -> None:
    a, b = fleet(registry, "a", "b")
    registry.update_metrics("a", report(num_parallel=3))
    registry.slots = 5
    assert (a.fixed_slots, b.fixed_slots) == (5, 5)
    registry.configure_slots(a, 2)
    registry.configure_slots(b, 0)
    assert (a.fixed_slots, b.fixed_slots) == (2, 0)
    registry.configure_slots(a, 0)
    assert a.fixed_slots == 3, "what it reports"
    registry.slots = 6
    assert (a.fixed_slots, b.fixed_slots) == (3, 0)
    registry.configure_slots(a, None)
    assert a.fixed_slots == 6


def test_registration_ends_a_drain_that_was_meant_to_last_until_then(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.drain(agent, until_registration=True)
    registry.register("a", address(1))
    assert status_of(agent) == "online"


def test_registration_does_not_end_a_drain_by_a_person(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    registry.drain(agent)
    registry.drain(agent, until_registration=True)  # its reporter shuts down
    registry.register("a", address(1))
    assert status_of(agent) == "draining"
    registry.resume(agent)
    registry.drain(agent, until_registration=True)
    registry.drain(agent)  # a person comes second
    registry.register("a", address(1))
    assert status_of(agent) == "draining"


# Leases


def test_a_lease_counts_once_whoever_releases_it(registry: AgentRegistry) -> None:
    [agent] = fleet(registry, "a")
    lease = registry.limiter.take(agent)
    assert (agent.in_flight, registry.in_flight) == (1, 1)
    assert lease.release(Outcome.SUCCEEDED, 2)
    assert not lease.release(Outcome.FAILED)
    assert agent.in_flight == 0
    assert (agent.stats.succeeded, agent.stats.failed, agent.stats.response_seconds) == (1, 0, 2)


def test_requests_are_the_sum_of_what_became_of_them(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    for outcome in (*[Outcome.SUCCEEDED] * 2, Outcome.FAILED, Outcome.CANCELLED, *[Outcome.REJECTED] * 3):
        lease = registry.limiter.take(agent)
        lease.release(outcome, 1.5 if outcome is Outcome.SUCCEEDED else 100)
    registry.limiter.take(agent)
    assert describe_agent(agent, clock.now)["stats"] == {
        "requests": 8,
        "succeeded": 2,
        "failed": 1,
        "cancelled": 1,
        "rejected": 3,
        "avg_response_time": 1500,
        "tokens_per_second": {},
    }


def test_running_requests_of_a_removed_agent_finish_and_a_successor_begins_at_zero(registry: AgentRegistry) -> None:
    [old] = fleet(registry, "a")
    lease = registry.limiter.take(old)
    registry.remove(old)
    assert registry.get("a") is None
    assert registry.selection.select() is None
    [new] = fleet(registry, "a")
    assert (new.id, new.in_flight, old.in_flight) == (old.id, 0, 1)
    assert lease.release()
    assert (old.in_flight, new.in_flight, registry.in_flight) == (0, 0, 0)


def test_what_is_heard_of_a_removed_agent_does_not_bring_it_back(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report())
    registry.remove(agent)
    registry.liveness.reached(agent)
    registry.inventory.update_models(agent, entries("other"))
    registry.resume(agent)
    assert registry.selection.select() is None
    assert not registry.inventory.has_model("other:latest")
    clock.now += 100
    assert registry.counts() == {}


# What is shown


def test_an_agent_is_described_as_the_contract_says(registry: AgentRegistry, clock: Clock) -> None:
    [agent] = fleet(registry, "a")
    registry.update_metrics("a", report(10, 20, 1, loaded_models=entries("m")))
    clock.now += 1.25
    shown = describe_agent(agent, clock.now)
    assert shown["metrics"]["cpu_usage"] == 10
    assert shown["metrics"]["timestamp"] == "2026-01-31T12:00:00Z"
    shown["metrics"] = ...
    shown["stats"] = ...
    assert shown == {
        "id": agent_id("a"),
        "name": "a",
        "url": "http://10.0.0.1:11434",
        "source": "registered",
        "status": "online",
        "reason": None,
        "alias_of": None,
        "strikes": 0,
        "models": ["m"],
        "loaded_models": ["m"],
        "ollama_version": None,
        "in_flight": 0,
        "running": {},
        "loading": [],
        "decision": None,
        "slots": None,
        "metrics": ...,
        "metrics_age": 1.25,
        "stale": False,
        "score": 40,
        "stats": ...,
    }


def test_a_registry_shows_its_counts(registry: AgentRegistry) -> None:
    assert repr(registry) == "AgentRegistry(adaptive: no agents; 0 in flight)"
    a, b, _ = fleet(registry, "a", "b", "c")
    registry.limiter.take(a)
    registry.drain(b)
    assert repr(registry) == "AgentRegistry(adaptive: 1 draining, 2 online; 1 in flight)"


def test_the_speed_of_a_model_is_a_moving_average() -> None:
    stats = Statistics()
    stats.learn_speed("m", 100)
    assert stats.speeds == {"m": 100}
    stats.learn_speed("m", 50)
    assert stats.speeds == {"m": 90}


def test_the_speeds_kept_of_one_agent_are_bounded() -> None:
    stats = Statistics()
    for number in range(MAX_SPEEDS + 10):
        stats.learn_speed(f"m{number}", 1)
    stats.learn_speed("m0", 2)
    assert len(stats.speeds) == MAX_SPEEDS
    assert stats.speeds["m0"] == pytest.approx(1.2)


# Addresses


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://10.0.0.1:11434", "10.0.0.1", 11434),
        ("http://10.0.0.1:11434/", "10.0.0.1", 11434),
        ("http://gpu-1.example.org", "gpu-1.example.org", 11434),
        ("HTTP://GPU-1:80", "gpu-1", 80),
        ("http://[::1]:8000", "::1", 8000),
    ],
)
def test_an_address_is_read_from_a_url(url: str, host: str, port: int) -> None:
    read = Address.parse(url)
    assert read == Address(host, port)
    assert Address.parse(read.url) == read


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:11434",
        "https://10.0.0.1",
        "ftp://10.0.0.1",
        "http://",
        "http://:11434",
        "http://10.0.0.1:0",
        "http://10.0.0.1:65536",
        "http://10.0.0.1:x",
        "http://10.0.0.1/api",
        "http://10.0.0.1/?x=1",
        "http://10.0.0.1#x",
        "http://user:secret@10.0.0.1",
        "http://:secret@10.0.0.1",
        "http://[::1",
        "http://10.0.0.1 ",
        "http://10.0.0.1\r\nHost: evil",
        "http://höst",
    ],
)
def test_a_url_that_is_no_host_and_port_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(ValueError, match=r"http://host:port|give the port"):
        Address.parse(url)


def _parts(where: Address) -> tuple[str, int]:
    return where.host, where.port


def test_an_agent_that_was_never_there_is_told_once(
    registry: AgentRegistry, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    agent, _ = registry.register("gone", address(1))
    for _ in range(3):
        registry.liveness.unreachable(agent, "cannot connect: refused")
    assert caplog.text.count("Agent gone (10.0.0.1:11434) is not reachable: cannot connect: refused.") == 1
    assert describe_agent(agent, clock())["reason"] == "cannot connect: refused"


# One host under several names


def one_host(registry: AgentRegistry, *names: str) -> list[Agent]:
    """Agents of those names that are one host."""
    agents = fleet(registry, *names)
    for agent in agents:
        registry.located(agent, ("10.0.0.1", 11434))
    return agents


def chosen(registry: AgentRegistry) -> set[Agent | None]:
    return {registry.selection.select("m:latest") for _ in range(4)}


def test_a_host_of_two_names_has_one_set_of_slots_and_is_named_once_in_the_log(
    registry: AgentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.slots = 1
    a, b = one_host(registry, "a", "b")
    assert chosen(registry) == {a}
    registry.limiter.take(a, "m:latest")
    assert chosen(registry) == {None}
    assert not registry.selection.could_serve("m:latest", [a])
    assert (b.status, b.reason) == (
        Status.ONLINE,
        "the same host as a (10.0.0.1:11434), which gets its requests: remove one of the two",
    )
    assert (describe_agent(a, 0)["alias_of"], describe_agent(b, 0)["alias_of"]) == (None, "a")
    for agent in (a, b):
        registry.located(agent, ("10.0.0.1", 11434))
        registry.update_metrics(agent.name, report())
    assert [record.getMessage() for record in caplog.records] == [
        "Agents a (10.0.0.1:11434) and b (10.0.0.2:11434) are one host: only a gets requests, with one set of slots. "
        "Remove the others."
    ]


def test_the_name_that_reports_stands_for_the_host_once_nothing_runs_there(registry: AgentRegistry) -> None:
    a, b = one_host(registry, "a", "b")
    lease = registry.limiter.take(a, "m:latest")
    registry.update_metrics("b", report(num_parallel=1))
    assert chosen(registry) == {a}  # b would run the same number beside it
    lease.release(Outcome.SUCCEEDED)
    registry.update_metrics("b", report(at=1, num_parallel=1))
    assert chosen(registry) == {b}


def test_the_other_name_serves_while_the_first_is_not_online_or_gone(registry: AgentRegistry) -> None:
    a, b = one_host(registry, "a", "b")
    registry.liveness.unreachable(a, "refused")
    assert chosen(registry) == {b}
    registry.liveness.reached(a)
    registry.expire()
    assert len(chosen(registry)) == 1
    registry.remove(a)
    assert chosen(registry) == {b}
    assert b.alias_of is None


def test_a_host_that_a_person_drains_gets_nothing_by_its_other_name(registry: AgentRegistry) -> None:
    a, b = one_host(registry, "a", "b")
    for name in (a, b):
        registry.drain(name)
        assert chosen(registry) == {None}
        assert (a.draining, b.draining) == (True, True)
        registry.resume(a)
        assert chosen(registry) == {a}


def test_a_reporter_that_ends_leaves_the_host_to_its_other_name(registry: AgentRegistry) -> None:
    a, b = one_host(registry, "a", "b")
    registry.update_metrics("b", report())
    assert chosen(registry) == {b}
    registry.drain(b, until_registration=True)
    assert chosen(registry) == {a}
    registry.register("b", b.address)
    assert chosen(registry) == {b}


def test_a_host_that_moves_or_turns_out_to_be_another_stands_for_itself(registry: AgentRegistry) -> None:
    a, b, c = one_host(registry, "a", "b", "c")
    assert (b.alias_of, c.alias_of) == (a, a)
    registry.located(c, ("10.0.0.9", 11434))
    assert c.alias_of is None
    registry.register("b", address(7))
    registry.liveness.reached(b)
    assert (a.alias_of, b.alias_of, c.alias_of) == (None, None, None)
    assert chosen(registry) == {a, b, c}
    registry.located(a, ("10.0.0.9", 11434))
    assert c.alias_of is a
