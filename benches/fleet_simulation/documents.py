"""Conversations about long documents in simulated time: those of `--scene prefixes` of `benches.fleet_http`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benches.fleet_http.closed import Chain
from benches.fleet_http.scenes.prefixes import Prefixes
from ollama_balancer.lab.simulation import Call, Simulation
from ollama_balancer.lab.workload import Request

from .workload import Shape


class Documents(Simulation):
    """Who asks thinks between two turns, and asks no more once the time is over.

    `document` is its tokens. `prompts` are those of a model that each host keeps cached; 0: as many as it has slots.
    """

    def __init__(self, shape: Shape, document: int, prompts: int, seed: int) -> None:
        drawn = Prefixes(document, shape.load).draw(shape, seed)
        hosts = tuple(replace(host, prompts=prompts) for host in drawn.workload.hosts)
        super().__init__(replace(drawn.workload, hosts=hosts), "adaptive", seed)
        self._turns: dict[Request, tuple[Chain, int]] = {}
        """Those that run: their conversations, and the number of the turn."""
        for chain in drawn.chains:
            self.engine.after(chain.requests[0].at, partial(self._turn, chain, 0))

    def _turn(self, chain: Chain, number: int) -> None:
        now, workload = self.engine.now, self.workload
        if now < workload.warm_up + workload.seconds:
            # Conversations of the chats have small numbers.
            request = replace(chain.requests[number], at=now, conversation=1_000_000 + chain.first)
            self._turns[request] = chain, number
            self._ask(request)

    def _end(self, call: Call, outcome: str) -> None:
        super()._end(call, outcome)
        turn = self._turns.pop(call.request, None)
        if turn is not None:
            chain, number = turn
            if number + 1 < len(chain.requests):
                self.engine.after(chain.pauses[number], partial(self._turn, chain, number + 1))
