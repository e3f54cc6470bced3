"""Translates what `ollama` reads of requests and answers into what `core` chooses by and learns from."""

from __future__ import annotations

from ..core.demand import Demand
from ..core.observations import AnswerObservation
from ..ollama.answers import Answer
from ..ollama.prompts import PromptReading, context_prefix


def demand_of(model: str, route: str, prompt: PromptReading) -> Demand:
    """What a request asks of an agent; `model` is a canonical name, `route` as `Route.path`."""
    runner, tokens, prefixes, new_prefixes, output_limit = prompt
    return Demand(model, runner, tokens, prefixes, new_prefixes, output_limit, route)


def observation_of(answer: Answer, demand: Demand, *, streamed: bool) -> AnswerObservation:
    """What an answer that is whole has shown of the agent that gave it."""
    timings = answer.timings
    context = None if answer.context is None else context_prefix(demand.model, demand.runner, answer.context)
    return AnswerObservation(
        timings.prompt_eval_count,
        timings.prompt_eval_duration,
        timings.eval_count,
        timings.eval_duration,
        timings.load_duration,
        streamed,
        answer.pieces,
        context,
    )
