"""Detects agents that have fallen silent, before the first byte of an answer and in its middle.

Before the first byte, silence alone is not a failure: the host may queue the request, load the model or read a long
prompt. An agent is suspected if it is offline, or if it has the model loaded and none of its requests has made progress
for longer than reading the prompt may take. A request that triggers a load is left alone while the agent lives, because
dropping it would abort the load.

In the middle of an answer silence is normal for a while (a host buffers tool calls and thinking), but not from an
offline host, nor for longer than `idle_seconds`. Requests without a model, such as a pull, may be silent as long as
before the first byte: verifying a large download takes long. While the client is not reading, silence of the agent
means nothing.
"""

from collections.abc import Awaitable, Callable, Iterable

from ..core.agent import Agent
from .context import RequestContext
from .timeouts import OFFLINE_SILENCE

SILENCE = 30.0
"""Seconds without progress after which an agent that has the model loaded is suspected."""

WORST_PREFILL = 40.0
"""Bytes of prompt per second that the slowest hosts read: some ten tokens."""

UNSTREAMED_PATIENCE = 10.0
"""Factor on that while the agent has a request that is not streamed, which may keep it busy."""

RECHECK_SECONDS = 5.0
"""Seconds between queries about the same request."""


class Watchdog:
    """Checks running requests.

    `loaded` returns the canonical names of the models that an agent has loaded, None if it does not answer; `give_up`
    aborts an attempt with a reason; `client_is_slow` returns whether the client has unsent data.
    """

    idle_seconds = 120.0
    """Seconds of silence allowed within an answer (balancer_stream_idle_timeout)."""
    response_seconds = 600.0
    """Seconds allowed to the first byte (balancer_response_timeout)."""

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
        """Abort attempts that will not be answered; returns suspicious requests for `judge`."""
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
        """Abort a begun answer if no more of it can be expected."""
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
        """Query the agent of a suspicious request; if it has the model loaded, it is stuck."""
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
