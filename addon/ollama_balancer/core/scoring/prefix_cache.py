"""Which agent may have a prefix of a prompt in its KV cache, and what it costs to evict one. Keeps hashes, no text.

A host keeps the last prompts of each loaded model. A new prompt takes the place of the one whose beginning it has, else
of the least recently used one.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..agent import Agent
from ..agent_records import CachedPrompt, LoadedModel
from ..demand import Demand, Prefix
from .follow_ups import FollowUps

MAX_PREFIXES = 20_000
"""Prefixes that are tracked; the least recently used one makes room."""

MAX_PROMPTS = 64
"""Prompts of a loaded model that are tracked."""

MAX_MODELS = 1000
"""Models whose follow-ups are counted."""


def kept(agent: Agent, model: str) -> int:
    """How many prompts of the model the agent keeps cached."""
    return agent.kept_prompts.of(model, agent.slots_for(model))


class CachedPrefix(NamedTuple):
    """A prefix that an agent has read as part of a prompt."""

    agent: Agent
    loaded_model: LoadedModel
    prompt: CachedPrompt
    tokens: int

    def is_cached(self, model: str) -> bool:
        """Whether the agent should still have it."""
        depth = None if self.loaded_model.gone else self.loaded_model.depth(self.prompt)
        return depth is not None and depth < kept(self.agent, model)

    @property
    def gives_way(self) -> bool:
        """Whether a prompt that begins with it takes the place of the one that did so before.

        If it is but a small part of that one, such as a system prompt, both have a place.
        """
        return 2 * self.tokens >= self.prompt.tokens


class PrefixCache:
    """`changed` is told of models whose prompts are worth more, or less, than before."""

    def __init__(self, changed: Callable[[str], None], most: int = MAX_PREFIXES) -> None:
        self._changed = changed
        self._most = most
        self._known: OrderedDict[bytes, CachedPrefix] = OrderedDict()
        self._follow_ups: dict[str, FollowUps] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, demand: Demand) -> CachedPrefix | None:
        """The longest prefix of the prompt that an agent has cached."""
        for key, _ in reversed(demand.prefixes):
            found = self._known.get(key)
            if found is not None and found.is_cached(demand.model):
                self._known.move_to_end(key)
                # A prompt that is longer than its context has lost its beginning.
                return found if found.tokens <= demand.tokens else None
        return None

    def sent(self, demand: Demand, agent: Agent, loaded_model: LoadedModel, now: float) -> CachedPrompt:
        """The agent begins to read the prompt of a request, which takes the place of another one."""
        prompt = CachedPrompt(demand.tokens, now)
        known = self._known
        is_longest = True
        for key, _ in reversed(demand.prefixes):
            found = known.get(key)
            if found is None:
                continue
            is_here = found.loaded_model is loaded_model
            if is_longest:
                is_longest = False
                prompt.shared = is_here or found.tokens < found.prompt.tokens
                self._continue(demand.model, prompt, found, now)
            if is_here:
                depth = loaded_model.depth(found.prompt)
                if depth is not None and found.tokens <= demand.tokens:
                    if not prompt.common:
                        prompt.common, prompt.common_depth = found.tokens, depth
                    if found.gives_way:
                        loaded_model.prompts.remove(found.prompt)
                known[key] = found._replace(prompt=prompt)
        loaded_model.prompts.append(prompt)
        del loaded_model.prompts[:-MAX_PROMPTS]
        return prompt

    def _continue(self, model: str, prompt: CachedPrompt, found: CachedPrefix, now: float) -> None:
        """The prompt goes on with the conversation of the one that had the prefix before."""
        before = found.prompt
        if found.tokens != before.tokens:
            if found.gives_way:  # the same turn again, or with another question
                prompt.turns = before.turns
            return
        prompt.turns = before.turns + 1
        if before.awaited:
            before.awaited = False
            found.agent.epoch += 1  # to evict it costs nothing any more
            follow_ups = self._follow_ups.get(model)
            if follow_ups is not None and follow_ups.count_follow_up(before, now):
                self._changed(model)

    def not_read(self, loaded_model: LoadedModel, prompt: CachedPrompt) -> None:
        """The agent has not read the prompt that it was sent, and has evicted none for it."""
        if loaded_model.depth(prompt) is not None:
            loaded_model.prompts.remove(prompt)

    def read(
        self,
        model: str,
        prefixes: Sequence[Prefix],
        agent: Agent,
        loaded_model: LoadedModel,
        prompt: CachedPrompt,
    ) -> None:
        """The agent has read the prompt, which begins with these prefixes, the shortest first."""
        known = self._known
        for key, tokens in prefixes:
            known[key] = CachedPrefix(agent, loaded_model, prompt, tokens)
            known.move_to_end(key)
            prompt.tokens = tokens
        if prefixes and not prompt.awaited:
            prompt.awaited = True
            follow_ups = self._follow_ups.get(model)
            if follow_ups is None:
                if len(self._follow_ups) >= MAX_MODELS:
                    del self._follow_ups[next(iter(self._follow_ups))]
                follow_ups = self._follow_ups[model] = FollowUps()
            if follow_ups.count_prompt(prompt):
                self._changed(model)
        while len(known) > self._most:
            known.popitem(last=False)

    def displaced(self, agent: Agent, model: str, loaded_model: LoadedModel) -> CachedPrompt | None:
        """Whose place a prompt takes that is new to the agent; None: there is room."""
        prompts = loaded_model.prompts
        if not prompts:
            return None
        most = kept(agent, model)
        return prompts[-most] if most <= len(prompts) else None

    def expected(self, model: str, prompt: CachedPrompt, now: float) -> tuple[float, float]:
        """How many follow-ups of a prompt are expected, and until when that holds."""
        follow_ups = self._follow_ups.get(model)
        return follow_ups.expected(prompt, now) if follow_ups is not None else (0.0, math.inf)

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        for key in [key for key, known in self._known.items() if known.agent is agent]:
            del self._known[key]
