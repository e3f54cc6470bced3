"""How the scenes of `benches.fleet_http` draw what is asked."""

import json
from itertools import pairwise
from typing import Any

import pytest

from benches.fleet_http.scenes import SCENES
from benches.fleet_http.scenes.burst import Burst, texts
from benches.fleet_http.scenes.jobs import Jobs
from benches.fleet_http.scenes.killed import killed_at, median_host
from benches.fleet_http.scenes.prefixes import Prefixes
from benches.fleet_http.scenes.scene import Drawn, Scene
from benches.fleet_simulation.workload import Shape, draw
from ollama_balancer.lab.hosts import Spec

SHAPE = Shape(hosts=8, models=2, load=0.5, seconds=60.0, warm_up=30.0, failures=False)
every_scene = pytest.mark.parametrize(
    "scene", [scene for scenes in SCENES.values() for scene in scenes], ids=lambda scene: scene.title
)


@every_scene
def test_a_seed_always_gives_the_same_and_another_seed_another_fleet(scene: Scene) -> None:
    assert scene.draw(SHAPE, 1) == scene.draw(SHAPE, 1)
    assert scene.draw(SHAPE, 1).workload.hosts != scene.draw(SHAPE, 2).workload.hosts


@every_scene
def test_all_scenes_have_the_fleet_that_the_simulation_has(scene: Scene) -> None:
    drawn, simulated = scene.draw(SHAPE, 1), draw(SHAPE, 1)
    assert drawn.workload.hosts == simulated.hosts
    assert drawn.workload.models[:2] == simulated.models


@every_scene
def test_each_request_has_a_number_and_no_two_conversations_the_same(scene: Scene) -> None:
    drawn = scene.draw(SHAPE, 1)
    numbers = [number for chain in drawn.chains for number in chain.numbers]
    before = len(drawn.workload.requests) + len(drawn.embeddings)
    assert numbers == list(range(before, len(drawn.requests)))
    chats = {request.conversation for request in drawn.workload.requests}
    others = [request.conversation for request in drawn.embeddings]
    others += [chain.requests[0].conversation for chain in drawn.chains]
    assert len(set(others)) == len(others)
    assert not chats & set(others)


def test_the_host_that_dies_is_neither_a_strong_nor_a_weak_one() -> None:
    assert median_host([Spec(speed, 1.0, 1, 1) for speed in (8.0, 1.0, 3.0, 2.0)]) == 2
    assert median_host([Spec(2.0, 1.0, 1, 1), Spec(1.0, 1.0, 4, 1), Spec(3.0, 1.0, 1, 1)]) == 0
    assert killed_at(SCENES["killed"][0].draw(SHAPE, 1)) == 60.0


def test_a_burst_is_of_one_more_client_and_has_texts_of_the_size_that_it_says() -> None:
    drawn = Burst().draw(SHAPE, 1)
    assert len(drawn.embeddings) == 100
    assert {request.at for request in drawn.embeddings} == {60.0}
    assert not {request.client for request in drawn.embeddings} & {f"c{n}" for n in range(SHAPE.clients)}
    for message in texts(drawn.embeddings, 7):
        assert 100 <= message.request.prompt <= 500
        assert len(json.loads(message.body)["input"]) == 4 * message.request.prompt


@pytest.mark.parametrize("seed", range(5))
def test_a_job_grows_call_by_call(seed: int) -> None:
    drawn = Jobs().draw(SHAPE, seed)
    assert len(drawn.chains) == 12
    assert {chain.requests[0].model for chain in drawn.chains} == set(drawn.workload.models)
    for chain in drawn.chains:
        assert 15 <= len(chain.requests) <= 30
        assert len(chain.pauses) == len(chain.requests) - 1
        assert all(0 <= pause <= 3 for pause in chain.pauses)
        assert all(50 <= request.output <= 400 for request in chain.requests)
        assert 7_000 <= chain.requests[-1].prompt <= 31_000
        for before, after in pairwise(chain.requests):
            assert after.known == before.prompt + before.output
            assert 300 <= after.prompt - after.known <= 3_000


@pytest.mark.parametrize("document", [8_000, 32_000])
def test_a_conversation_begins_with_its_document(document: int) -> None:
    drawn = Prefixes(document, load=0.2).draw(SHAPE, 1)
    assert all(chain.requests[0].prompt > document for chain in drawn.chains)
    assert all(chain.requests[0].at >= SHAPE.warm_up for chain in drawn.chains)
    messages = [body["messages"] for body in made(Prefixes(document, load=0.2), drawn)]
    assert [message["role"] for message in messages[1]] == ["system", "user", "assistant", "user"]
    assert messages[1][:2] == messages[0]
    assert abs(len(json.dumps(messages[0][0])) - 4 * document) < 20


def made(scene: Prefixes, drawn: Drawn) -> list[dict[str, Any]]:
    """The bodies of the first conversation."""
    return [json.loads(body) for body in scene.bodies(drawn.chains[0].requests, drawn.chains[0].first)]
