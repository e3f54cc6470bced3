"""Turns a recording into a workload, and into a result to compare simulations with."""

from .rates import LearnedFleet
from .recording import Recorded, Recording
from .simulation import IN_TIME, Result
from .workload import Request, Workload

LONGEST_PAUSE = 600.0
"""Seconds: when nobody asked for longer than that, the simulation goes on with the next request after them."""


def workload(recording: Recording, fleet: LearnedFleet, load: float = 1.0) -> Workload:
    """The same requests, `load` times as many in the same time."""
    models = {model.name: model for model in fleet.models}
    requests: list[Request] = []
    at, before = 0.0, recording.requests[0].at
    for recorded in recording.requests:
        at += min(LONGEST_PAUSE, recorded.at - before) / load
        before = recorded.at
        model = models.get(recorded.model)
        if model is None:
            continue
        output = recorded.output
        requests.append(
            Request(
                at,
                recorded.client,
                model,
                recorded.conversation,
                recorded.prompt,
                # In the tokens of the prompt as they were counted.
                round(recorded.prompt * min(1.0, recorded.known / max(1, recorded.demand.tokens))),
                max(1, round(model.output)) if output is None else output,
                recorded.demand,
            )
        )
    return Workload(fleet.hosts, fleet.models, tuple(requests), seconds=at)


def as_recorded(recording: Recording, fleet: LearnedFleet) -> Result:
    """What became of the requests when they were recorded."""
    decode = {(host.name, name): rates.decode for host in fleet.hosts for name, rates in (host.rates or {}).items()}
    result = Result()
    loads: dict[tuple[str, str], float] = {}
    for recorded in recording.requests:
        if recorded.model in fleet.nowhere:
            continue
        pair = recorded.agent or "", recorded.model
        first = first_token(recorded, decode.get(pair))
        result.asked += 1
        result.outcomes["served" if recorded.served else "cancelled" if recorded.cancelled else "failed"] += 1
        result.clients[recorded.client] += 1
        result.first.append(first)
        if recorded.agent is not None:
            result.agents[recorded.agent] += 1
        if recorded.served:
            result.total.append(recorded.total)
            if first <= IN_TIME:
                result.good += 1
                result.good_of[recorded.client] += 1
        if recorded.loaded:
            # All that came while it was under way tell of the same load.
            began, ended = recorded.sent, recorded.sent + (recorded.timings.load_duration or 0.0)
            if began >= loads.get(pair, 0.0):
                result.loads += 1
            loads[pair] = max(ended, loads.get(pair, 0.0))
    return result


def first_token(recorded: Recorded, decode: float | None) -> float:
    """Seconds until the first token; of a request that had none, until its end.

    Of an answer that came as a whole, the end less the time that the answer took: as it says itself, else as long as
    that many tokens take at `decode` tokens per second.
    """
    if recorded.streamed or not recorded.served:
        return recorded.total if recorded.first is None else recorded.first
    answering = recorded.timings.eval_duration
    if answering is None:
        answering = (recorded.output or 0) / decode if decode else 0.0
    return max(recorded.waited, recorded.total - answering)
