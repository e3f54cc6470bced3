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

MAX_MODELS = 1000
"""Models whose follow-ups are counted."""


class CachedPrefix(NamedTuple):
    """A prefix that an agent has read as part of a prompt."""

    agent: Agent
    loaded_model: LoadedModel
    prompt: CachedPrompt
    tokens: int

    def is_cached(self, model: str) -> bool:
        """Whether the agent should still have it."""
        depth = None if self.loaded_model.gone else self.loaded_model.depth(self.prompt)
        return depth is not None and depth < self.agent.prompts_kept(model)

    @property
    def is_continued(self) -> bool:
        """Whether a prompt that begins with it takes the place of the one that did so before, and of no other."""
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
        is_longest = True
        for key, _ in reversed(demand.prefixes):
            found = self._known.get(key)
            if found is None:
                continue
            before = found.prompt
            if is_longest and found.tokens == before.tokens:
                prompt.turns = before.turns + 1
                self._followed_up(demand.model, before, now)
            is_longest = False
            if found.loaded_model is loaded_model:
                depth = loaded_model.depth(before)
                if depth is not None:
                    prompt.common, prompt.depth = found.tokens, depth
                    if found.is_continued:
                        loaded_model.discard(before)
                break
        loaded_model.add(prompt)
        return prompt

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
            if follow_ups is None and len(self._follow_ups) < MAX_MODELS:
                follow_ups = self._follow_ups[model] = FollowUps()
            if follow_ups is not None and follow_ups.awaited(prompt):
                self._changed(model)
        while len(known) > self._most:
            known.popitem(last=False)

    def _followed_up(self, model: str, prompt: CachedPrompt, now: float) -> None:
        if prompt.awaited:
            prompt.awaited = False
            follow_ups = self._follow_ups.get(model)
            if follow_ups is not None and follow_ups.came(prompt, now):
                self._changed(model)

    def displaced(self, agent: Agent, model: str, loaded_model: LoadedModel) -> CachedPrompt | None:
        """Whose place a prompt takes that is new to the agent; None: there is room."""
        prompts = loaded_model.prompts
        if not prompts:
            return None
        kept = agent.prompts_kept(model)
        return prompts[-kept] if 0 < kept <= len(prompts) else None

    def expected(self, model: str, prompt: CachedPrompt, now: float) -> tuple[float, float]:
        """How many follow-ups of a prompt are expected, and until when that holds."""
        follow_ups = self._follow_ups.get(model)
        return follow_ups.expected(prompt, now) if follow_ups is not None else (0.0, math.inf)

    def forget(self, agent: Agent) -> None:
        """The agent has left."""
        for key in [key for key, known in self._known.items() if known.agent is agent]:
            del self._known[key]
