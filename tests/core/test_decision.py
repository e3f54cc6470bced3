"""Why a host was chosen, in words that a person can check."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollama_balancer.core.agent import Agent
from ollama_balancer.core.agent_records import Outcome
from ollama_balancer.core.decision import FEW, Plan, ScoredCandidate, in_words
from ollama_balancer.core.demand import Demand
from tests.core.fakes import entries
from tests.core.room import MODEL, Room

PAGE = Path(__file__).resolve().parents[2] / "addon" / "docs" / "why.md"

CHAT = b"the conversation's beginning"


def load(room: Room, agent: Agent, seconds: float, model: str = MODEL) -> None:
    """Have it load the model and answer, with nothing else to do."""
    room.registry.inventory.update_loaded(agent, [])
    room.serve(
        agent,
        Demand(model, tokens=1000),
        seconds=seconds,
        prompt_tokens=1000,
        prompt_seconds=1.0,
        output_tokens=100,
        output_seconds=2.0,
        load_seconds=seconds,
    )


def served(room: Room, agent: Agent, *, prefill: float = 1000.0, decode: float = 50.0) -> None:
    """So many answers of a loaded model that none of its speeds is a guess."""
    room.registry.inventory.update_loaded(agent, entries("m"))
    for _ in range(FEW):
        room.serve(
            agent,
            Demand(MODEL, tokens=1000),
            prompt_tokens=1000,
            prompt_seconds=1000 / prefill,
            output_tokens=100,
            output_seconds=100 / decode,
            load_seconds=0.02,
        )


def loaded_on_one_host() -> str:
    room = Room("gpu-1", "gpu-2", slots=1)
    for _ in range(FEW):
        load(room, room.agents[0], 24.0)
    room.registry.inventory.update_loaded(room.agents[0], [])
    served(room, room.agents[1])
    return in_words(room.scheduler.find(Demand(MODEL, tokens=300)).options)


def nothing_known() -> str:
    room = Room("gpu-1", "gpu-2", slots=1)
    return in_words(room.scheduler.find(Demand(MODEL, tokens=300)).options)


def a_long_conversation() -> str:
    room = Room("gpu-1", "gpu-2", slots=1)
    for agent in room.agents:
        served(room, agent)
    first = Demand(MODEL, tokens=3800, new_prefixes=((CHAT, 3800),))
    room.serve(room.agents[1], first, prompt_tokens=3800, prompt_seconds=3.8)
    return in_words(room.scheduler.find(Demand(MODEL, tokens=4000, prefixes=((CHAT, 3800),))).options)


def test_the_documentation_shows_what_is_printed() -> None:
    examples = [part.partition("\n```")[0] for part in PAGE.read_text().split("```text\n")[1:]]
    assert examples == [loaded_on_one_host(), nothing_known(), a_long_conversation()]


def test_the_documentation_explains_each_phrase() -> None:
    page, plain = PAGE.read_text(), candidate("gpu-1")
    terms = ("load", "wait", "prefill", "answer", "interference", "cached")
    others = [candidate("gpu-2", **{term: 5.0}) for term in terms]
    others += [candidate("gpu-2", plan=plan, load=5.0) for plan in Plan]
    others.append(candidate("gpu-2", interference=5.0, displacement=4.0))
    phrases = [in_words((plain, other)).partition("gpu-2 ")[2] for other in others]
    phrases += [in_words((candidate("gpu-1", plan=plan),)) for plan in Plan]
    assert [phrase for phrase in phrases if f"`{phrase}`" not in page] == []


def candidate(agent: str, **terms: object) -> ScoredCandidate:
    numbers = dict.fromkeys(
        ("cost", "wait", "load", "prefill", "answer", "interference", "displacement", "first", "loads", "writes"),
        0.0,
    )
    facts = {"free": True, "observations": FEW, "plan": Plan.WARM, "guess": False, "cached": 0}
    return ScoredCandidate(agent=agent, **(numbers | facts | terms))  # type: ignore[arg-type]


def test_what_a_choice_costs_others_is_not_shown_as_time() -> None:
    best = candidate("gpu-1", first=0.5, cost=0.9)
    for other in (
        candidate("gpu-2", first=0.5, cost=24.0, interference=23.0),
        candidate("gpu-2", first=2.5, cost=144.0, load=126.0, loads=2.0, plan=Plan.CONTEND),
        candidate("gpu-2", first=2.5, cost=144.0, load=126.0, loads=2.0, plan=Plan.DRAIN),
    ):
        assert " s" not in in_words((best, other)).replace(" slow", "")
    evicting = candidate("gpu-2", first=2.5, cost=12.0, load=9.0, loads=2.0, plan=Plan.EVICT)
    assert in_words((best, evicting)) == "warm here, next best gpu-2 would load it in place of another model: +2.0 s"


def test_seconds_are_those_until_the_first_token() -> None:
    room = Room("a", "b", slots=1)
    for agent in room.agents:
        served(room, agent)
    busy = room.registry.limiter.take(room.agents[0], MODEL, Demand(MODEL))
    busy.began()
    best, other = room.scheduler.find(Demand(MODEL, tokens=500)).options
    assert best.first == pytest.approx(0.5)
    assert other.first == pytest.approx(other.wait + 0.5)
    assert (best.agent, best.guess, other.guess) == ("b", False, True)
    assert in_words((best, other)) == f"warm here, next best a is busy: ~+{other.wait:.1f} s"
    busy.release(Outcome.CANCELLED)


def test_a_slower_writer_is_told_by_the_time_of_its_answer() -> None:
    room = Room("a", "b", slots=1)
    served(room, room.agents[0], decode=10.0)
    served(room, room.agents[1])
    assert in_words(room.scheduler.find(Demand(MODEL)).options) == "warm here, next best a writes more slowly: +8.0 s"


def test_a_figure_is_a_guess_until_it_rests_on_a_few_observations() -> None:
    room = Room("a", slots=1)
    for _ in range(FEW):
        [option] = room.scheduler.find(Demand(MODEL)).options
        assert option.guess
        load(room, room.agents[0], 12.0)
    room.registry.inventory.update_loaded(room.agents[0], [])
    assert in_words(room.scheduler.find(Demand(MODEL)).options) == "loads it here: 12 s"


def test_what_the_host_has_to_do_is_said() -> None:
    room = Room("a", models=["m", "n"], slots=1)
    agent = room.agents[0]

    def said(demand: Demand) -> str:
        return in_words(room.scheduler.find(demand).options).partition(":")[0]

    for models in ("m", "n"):  # it has no room for both
        room.registry.inventory.update_loaded(agent, entries(models))
    assert said(Demand(MODEL)) == "loads it here in place of an idle model"
    served(room, agent)
    lease = room.registry.limiter.take(agent, MODEL, Demand(MODEL, "num_ctx=1"))
    lease.began()
    lease.release()
    assert said(Demand(MODEL, "num_ctx=1")) == "warm here"
    assert said(Demand(MODEL, "num_ctx=2")) == "loads it here again, with other options"
    assert said(Demand("n:latest")) == "loads it here though others need the host"
    room.pass_time(600.0)
    running = room.registry.limiter.take(agent, MODEL, Demand(MODEL, "num_ctx=1"))
    assert said(Demand("n:latest")) == "loads it here once another model is idle"
    running.release()
    agent.memory_unknown()
    assert said(Demand(MODEL)) == "free here"
