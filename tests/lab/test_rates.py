"""What a recording shows of its fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_balancer.core.scoring.estimates import LOAD
from ollama_balancer.lab.flows import read
from ollama_balancer.lab.hosts import Spec
from ollama_balancer.lab.rates import KEEP_ALIVE, LearnedFleet, learn
from tests.lab.flowfiles import final, flow, record, write

OPENAI = "/v1/chat/completions"


def served(at: float, agent: str = "a", model: str = "m", last: Any = None, **fields: Any) -> Any:
    """A request of Ollama's own API: 100 tokens read and 50 written in a second each, unless given."""
    return flow(
        at,
        {"model": model, "prompt": f"why {at}?"},
        [last or final()],
        record(agent=agent, model=model, **fields),
    )


def learned(tmp_path: Path, *flows: Any, slots: int = 0, fits: int = 0) -> LearnedFleet:
    return learn(read([write(tmp_path / "flows", flows)]), slots=slots, fits=fits)


def hosts(fleet: LearnedFleet) -> dict[str, Spec]:
    return {host.name: host for host in fleet.hosts}


def test_each_hosts_rates_are_those_of_its_own_answers(tmp_path: Path) -> None:
    quick = final(prompt=400, output=200)
    fleet = learned(tmp_path, *(served(10 * n, "ab"[n % 2], last=[None, quick][n % 2]) for n in range(6)))
    a, b = (hosts(fleet)[name].rates for name in "ab")
    assert a and b
    assert (a["m:latest"].decode, a["m:latest"].prefill) == pytest.approx((50, 100))
    assert (b["m:latest"].decode, b["m:latest"].prefill) == pytest.approx((200, 400))
    assert (fleet.decode, fleet.prefill, fleet.pairs, fleet.guessed) == (6, 6, 2, 0)


def test_a_host_that_never_ran_a_model_is_taken_to_be_as_fast_with_it_as_with_others(tmp_path: Path) -> None:
    twice = final(output=100)
    flows = [served(10 * n, "ab"[n % 2], last=[None, twice][n % 2]) for n in range(10)]
    other = served(200, "a", "other", options=[{"agent": "a"}, {"agent": "b"}], last=final(output=20))
    fleet = learned(tmp_path, *flows, other)
    rates = hosts(fleet)["b"].rates
    assert rates and rates["other:latest"].decode == pytest.approx(40, rel=0.3)
    assert (fleet.pairs, fleet.guessed) == (4, 1)


def test_loads_are_learned_and_stand_in_for_those_of_models_that_were_never_seen_to_load(tmp_path: Path) -> None:
    loading = served(0, last=final(load=4), first_byte_ms=5000.0, total_ms=6000.0)
    fleet = learned(tmp_path, loading, served(20, model="other"))
    rates = hosts(fleet)["a"].rates
    assert rates and rates["m:latest"].load == rates["other:latest"].load == pytest.approx(4)
    assert hosts(fleet)["a"].loaded == ("other:latest",)
    assert fleet.loads == 1


def test_a_stream_without_timings_tells_the_pace_by_its_times(tmp_path: Path) -> None:
    stream = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n' * 41 + b"data: [DONE]\n\n"
    texts = [f"{n} " + "word " * 80 for n in range(3)]
    prompts = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in texts]
    flows = [flow(10 * n, prompts[n], stream, path=OPENAI, kind="text/event-stream") for n in range(3)]
    fleet = learned(tmp_path, *flows)
    [host] = fleet.hosts
    assert host.rates and host.rates["m:latest"].decode == pytest.approx(40)
    assert host.rates["m:latest"].load == LOAD, "a second of silence is no load"
    assert fleet.prefill == 2, "the first may have had other reasons to be silent"


def test_what_the_hosts_have_told_of_their_room_holds(tmp_path: Path) -> None:
    room = {"slots": 4, "fits": 3, "loaded": 1}
    fleet = learned(tmp_path, served(0, room=room), served(10, "b", room={"loaded": 2}))
    assert [(host.parallel, host.fits) for host in fleet.hosts] == [(4, 3), (1, 2)]
    fleet = learned(tmp_path, served(0, room=room), slots=2, fits=5)
    assert [(host.parallel, host.fits) for host in fleet.hosts] == [(2, 5)]


def test_slots_are_learned_from_requests_that_ran_at_once(tmp_path: Path) -> None:
    pairs = [served(10 * n + more, total_ms=5000.0) for n in range(6) for more in (0, 0.5)]
    [host] = learned(tmp_path, *pairs).hosts
    assert host.parallel == 2


def test_models_that_answer_by_turns_without_loads_are_in_memory_together(tmp_path: Path) -> None:
    turns = [served(10 * n, model="xyz"[n % 3]) for n in range(6)]
    assert learned(tmp_path, *turns).hosts[0].fits == 3
    at_first = [served(10 * n, model="xyz"[n]) for n in range(3)]
    assert learned(tmp_path, *at_first).hosts[0].fits == 3
    reloads = [served(10 * n, model="xy"[n % 2], last=final(load=3)) for n in range(6)]
    assert learned(tmp_path, *reloads).hosts[0].fits == 1


def test_hosts_have_the_models_that_they_answered_or_were_weighed_for(tmp_path: Path) -> None:
    weighed = [{"agent": "a"}, {"agent": "b"}]
    fleet = learned(tmp_path, served(0, "a", options=weighed), served(10, "c", "other", options=[{"agent": "c"}]))
    has = {name: set(host.rates or ()) for name, host in hosts(fleet).items()}
    assert has == {"a": {"m:latest"}, "b": {"m:latest"}, "c": {"other:latest"}}
    assert fleet.assumed == ()


def test_a_host_that_would_have_got_a_model_if_it_had_it_does_not_have_it(tmp_path: Path) -> None:
    flows = [served(10 * n, "ab"[n % 2], "m") for n in range(20)]
    few, many = [served(300, "a", "few")], [served(400 + n, "a", "many") for n in range(20)]
    fleet = learned(tmp_path, *flows, *few, *many)
    assert fleet.assumed == ("few:latest",)
    assert set(hosts(fleet)["b"].rates or ()) == {"m:latest", "few:latest"}


def test_a_host_that_was_found_to_lack_a_model_does_not_have_it(tmp_path: Path) -> None:
    lacks = [{"agent": "b", "reason": "does not have the model"}, {"agent": "c", "reason": "refused"}]
    fleet = learned(tmp_path, served(0, "a", failures=lacks, attempts=2), served(10, "b", "other"))
    assert set(hosts(fleet)["b"].rates or ()) == {"other:latest"}
    assert fleet.unused == ("c",)


def test_a_model_that_nobody_has_answered_is_nowhere(tmp_path: Path) -> None:
    failed = served(5, None, "gone", outcome="failed")  # type: ignore[arg-type]
    fleet = learned(tmp_path, served(0), failed)
    assert fleet.nowhere == {"gone:latest"}
    assert [model.name for model in fleet.models] == ["m:latest"]


def test_without_any_answer_there_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no request in it was served"):
        learned(tmp_path, served(0, outcome="failed"))


def test_a_host_keeps_an_idle_model_for_as_long_as_ollama_does_or_as_it_was_seen_to_do(tmp_path: Path) -> None:
    [host] = learned(tmp_path, served(0), served(250)).hosts
    assert host.keep == KEEP_ALIVE
    [host] = learned(tmp_path, served(0), served(502)).hosts
    assert host.keep == pytest.approx(500)
    [host] = learned(tmp_path, served(0), served(502, last=final(load=3))).hosts
    assert host.keep == KEEP_ALIVE
