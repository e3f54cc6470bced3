"""How often, and how soon, the prompts of a model are followed up."""

import math

from ..agent_records import CachedPrompt

PRIOR = 4.0
"""How many observations the first assumptions count as: every other prompt is followed up, after `PAUSE` seconds.

`--tune follow_ups.PRIOR`: flat from 1 to 16."""

PAUSE = 60.0
"""`--tune follow_ups.PAUSE`: flat from 15 to 240."""

MEMORY = 200.0
"""Prompts after which those before count half."""

LEAST, MOST = 0.05, 0.95
"""Bounds of the part of the prompts that is expected to be followed up."""

PATIENCE = 3
"""Usual pauses after which no follow-up is expected any more.

`--tune follow_ups.PATIENCE`: 9 is as good, 1 worse."""

NEWS = math.log(1.25)
"""The factor by which expectations have to change before they are told."""


class FollowUps:
    """What is expected changes in steps, when `count_prompt` or `count_follow_up` say so, and with time."""

    def __init__(self) -> None:
        self._awaited = [PRIOR, PRIOR]
        """Prompts that began a conversation, and those that went on with one."""
        self._came = [PRIOR / 2, PRIOR / 2]
        """How many of them were followed up."""
        self._pauses = PRIOR
        self._seconds = PRIOR * PAUSE
        self._told = self._now()

    def count_prompt(self, prompt: CachedPrompt) -> bool:
        """The prompt may be followed up. Whether expectations have changed."""
        later = prompt.turns > 0
        if self._awaited[later] >= MEMORY:
            self._awaited[later] /= 2
            self._came[later] /= 2
        self._awaited[later] += 1
        return self._tell()

    def count_follow_up(self, prompt: CachedPrompt, now: float) -> bool:
        """The prompt was followed up. Whether expectations have changed."""
        self._came[prompt.turns > 0] += 1
        if self._pauses >= MEMORY:
            self._pauses /= 2
            self._seconds /= 2
        self._pauses += 1
        self._seconds += now - prompt.used_at
        return self._tell()

    def expected(self, prompt: CachedPrompt, now: float) -> tuple[float, float]:
        """How many follow-ups are expected of a prompt that has waited until now, and until when that holds."""
        if not prompt.awaited:
            return 0.0, math.inf
        *odds, pause = self._told
        pauses = int((now - prompt.used_at) / pause)
        if pauses >= PATIENCE:
            return 0.0, math.inf
        return odds[prompt.turns > 0] * math.exp(-pauses), prompt.used_at + (pauses + 1) * pause

    def _now(self) -> tuple[float, float, float]:
        """The odds of a follow-up after a first prompt and after a later one, and the seconds until it comes."""
        first, later = (max(LEAST, min(MOST, came / of)) for came, of in zip(self._came, self._awaited, strict=True))
        return first / (1 - first), later / (1 - later), self._seconds / self._pauses

    def _tell(self) -> bool:
        now = self._now()
        news = any(abs(math.log(new / old)) > NEWS for new, old in zip(now, self._told, strict=True))
        if news:
            self._told = now
        return news
