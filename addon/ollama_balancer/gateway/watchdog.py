"""Finds the agents that have fallen silent with requests of theirs, before an answer begins and in its middle.

Before the first byte of an answer nothing is heard of it: it may wait for its turn on the host, the model may be
loading, the prompt may be long. So silence alone says nothing. What does: the agent is offline; or it is online and
says that the model is in memory, and no request of its has got anywhere for longer than reading the prompt may take.
A request that has its agent load a model is left alone as long as the agent lives: to drop it would abort the load.

In the middle of an answer silence is normal for a while (a tool call or thinking that the host buffers), but not from
a host that is offline, nor for longer than `idle_seconds`: then the host, or the runner behind a healthy API, is stuck.
Requests for no model, such as a pull, may be silent for as long as for a first byte: a host that verifies a large
download says nothing meanwhile. While it is the client that does not take what came, the agent's silence means nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from ..core.agent import Agent
from .context import RequestContext
from .timeouts import OFFLINE_SILENCE

SILENCE = 30.0
"""Seconds without any progress after which an agent that has the model in memory is suspected."""

WORST_PREFILL = 40.0
"""Bytes of a prompt that the slowest of hosts read in a second: some ten tokens."""

UNSTREAMED_PATIENCE = 10.0
"""Times as long while a request is there whose answer comes in one piece: the agent may be busy with that."""

RECHECK_SECONDS = 5.0
"""Seconds until an agent is asked again about the same request."""


class Watchdog:
    """Looks at the requests that have no byte yet. Seconds are those of `clock`.

    `loaded` asks an agent for the canonical names of its models in memory, None if it does not answer; `give_up` ends
    an attempt, with the reason; `client_is_slow` tells whether the client has yet to take what has come for it.
    """

    idle_seconds = 120.0
    """How long an answer of a model that has begun may be silent (balancer_stream_idle_timeout)."""
    response_seconds = 600.0
    """How long a first byte may take (balancer_response_timeout)."""

    def __init__(
        self,
        clock: Callable[[], float],
        loaded: Callable[[Agent], Awaitable[set[str] | None]],
        give_up: Callable[[RequestContext, str], None],
        client_is_slow: Callable[[RequestContext], bool] = lambda context: False,
    ) -> None:
        self._clock = clock
        self._loaded = loaded
        self._give_up = give_up
        self._client_is_slow = client_is_slow

    def check(self, contexts: Iterable[RequestContext]) -> list[RequestContext]:
        """Give up what will not be answered, or not to its end; returns the suspicious requests, for `judge`."""
        now = self._clock()
        waiting = []
        for context in contexts:
            if context.outcome is not None:
                continue
            if context.fan_out is not None:
                context.fan_out.give_up_silent(now)
            elif context.lease is None or context.lease.released:
                continue
            elif context.first_byte is not None:
                self._check_answer(context, now)
            elif context.lease.model is not None:
                waiting.append(context)
            elif not context.lease.agent.online:
                self._give_up(context, f"it went offline: {context.lease.agent.offline_reason}")
        in_one_piece = {e.agent for e in waiting if not e.streams}
        suspicious = []
        for context in waiting:
            agent = context.agent
            assert agent is not None
            if not agent.online and not context.awaits_load:
                self._give_up(context, f"it went offline: {agent.offline_reason}")
                continue
            limit = SILENCE + context.body_bytes / WORST_PREFILL
            if agent in in_one_piece:
                limit *= UNSTREAMED_PATIENCE
            if now >= context.next_silence_check and now - max(context.grace_until, agent.heard_at) >= limit:
                suspicious.append(context)
        return suspicious

    def _check_answer(self, context: RequestContext, now: float) -> None:
        """Give up an answer that has begun, if no more is to be expected of it."""
        assert context.lease is not None
        agent, route = context.lease.agent, context.route
        silent = now - context.last_activity
        limit = self.idle_seconds
        if route is None or not route.runs:
            limit = max(limit, self.response_seconds)
        if silent < min(limit, OFFLINE_SILENCE):
            return
        if self._client_is_slow(context):
            context.last_activity = now
        elif not agent.online and silent >= OFFLINE_SILENCE:
            self._give_up(context, f"it went offline: {agent.offline_reason}")
        elif silent >= limit:
            self._give_up(context, f"no data for {silent:.0f} s")

    async def judge(self, context: RequestContext) -> None:
        """Ask the agent of a suspicious request whether it has the model in memory; if so, it is stuck."""
        agent, lease = context.agent, context.lease
        if agent is None or lease is None or lease.model is None:
            return
        silent = self._clock() - max(context.grace_until, agent.heard_at)
        context.next_silence_check = self._clock() + RECHECK_SECONDS
        names = await self._loaded(agent)
        if context.lease is not lease or not _unanswered(context):
            return
        if names is None:
            if context.awaits_load and agent.online:
                return  # a load may keep a host so busy that it answers late
            self._give_up(context, f"no data for {silent:.0f} s, and its list of loaded models cannot be read")
        elif lease.model not in names:
            # Loading, or waiting to: patience begins anew when it is seen in memory.
            context.awaits_load = True
        elif context.awaits_load:
            context.awaits_load = False
            context.grace_until = self._clock()
        else:
            self._give_up(context, f"no data for {silent:.0f} s although the model is loaded")


def _unanswered(context: RequestContext) -> bool:
    lease = context.lease
    return (
        lease is not None
        and not lease.released
        and lease.model is not None
        and context.first_byte is None
        and context.outcome is None
    )
