"""Translates between `ollama` and `core`: demands and observations."""

from ..core.demand import Demand
from ..core.observations import AnswerObservation
from ..ollama.answers import Answer
from ..ollama.prompts import PromptReading, context_prefix


def demand_of(model: str, route: str, prompt: PromptReading) -> Demand:
    """The demand of a request; `model` is a canonical name, `route` is `Route.path`."""
    runner, tokens, prefixes, new_prefixes, output_limit, tools = prompt
    return Demand(model, runner, tokens, prefixes, new_prefixes, output_limit, route, tools=tools)


def observation_of(answer: Answer, demand: Demand, *, streamed: bool) -> AnswerObservation:
    """The observation from a complete answer."""
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
        timings.cached_tokens,
        context,
    )
