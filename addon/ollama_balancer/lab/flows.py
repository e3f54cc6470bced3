"""Reads flow files written with `-w`. Nothing in them is trusted."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitmproxy import http

from agent_reporter.limits import NAME_PATTERN

from ..core.agent_records import Outcome
from ..core.policies import POLICIES
from ..gateway.admission import MAX_MODEL_NAME
from ..gateway.translation import demand_of
from ..mitm.flows import path_of
from ..ollama.answer_watcher import AnswerWatcher
from ..ollama.names import canonical_name
from ..ollama.prompts import context_prefix, read_prompt
from ..ollama.requests import read_request
from ..ollama.routes import find_route
from ..saved_flows.reading import METADATA_KEY, read_flows
from .recording import Recorded, Recording

LONGEST = 7 * 86_400.0
"""Seconds that a request may have taken; a record that claims more is odd."""

MAX_SLOTS = 1_000
"""That a host may claim to have, or models in memory."""

_NAME = re.compile(NAME_PATTERN)


class MalformedRecordError(ValueError):
    """A record that the balancer cannot have written."""


def read(paths: Iterable[Path]) -> Recording:
    """Read the files as far as possible; errors are in `problems`."""
    recording = Recording()
    for path in paths:
        for flow in read_flows(path, recording.problems.append):
            recording.flows += 1
            try:
                _add_request(flow, recording)
            except Exception:  # mitmproxy takes whatever is in the file for a flow's parts
                recording.odd += 1
    recording.link_conversations()
    return recording


def _add_request(flow: http.HTTPFlow, recording: Recording) -> None:
    """Add the flow's request, if it ran a model. Raises OddRecordError, or anything where the flow itself is odd."""
    record = flow.metadata.get(METADATA_KEY)
    if record is None:
        return
    if not isinstance(record, dict):
        raise MalformedRecordError
    model, route = record.get("model"), find_route(path_of(flow))
    if model is None or route is None or not route.runs:
        return
    if not isinstance(model, str) or len(model) > MAX_MODEL_NAME:
        raise MalformedRecordError
    request, response = flow.request, flow.response
    body = request.raw_content or b""
    parsed = read_request(route, path_of(flow), body, request.headers.get("content-type", ""))
    if parsed.unloads:
        return
    status = response.status_code if response is not None else None
    if status is not None and (400 <= status < 500 or status == 501):
        recording.refused += 1
        return
    model = canonical_name(model)
    outcome, agent = record.get("outcome"), _name(record.get("agent"))
    at = request.timestamp_end or request.timestamp_start
    if not isinstance(at, float | int) or not 0 < at < 1e11:
        raise MalformedRecordError
    demand = demand_of(model, route.path, read_prompt(route, model, body, parsed.members))
    served = outcome == Outcome.SUCCEEDED and agent is not None and status is not None
    first = _seconds(record, "first_byte_ms")
    mode = record.get("mode")
    recorded = Recorded(
        at=at,
        client=_client(flow, record),
        demand=demand,
        mode=mode if isinstance(mode, str) and mode in POLICIES else "unknown mode",
        agent=agent,
        served=served,
        cancelled=outcome == Outcome.CANCELLED,
        streamed=False,
        attempts=_count(record.get("attempts")) or 0,
        waited=_seconds(record, "waited_ms") or 0.0,
        first=first,
        total=_seconds(record, "total_ms") or first or 0.0,
    )
    if response is not None and status == 200 and served:
        recorded = _with_answer(recorded, response)
    _record_agents(record, model, agent, recording)
    recording.pinned += record.get("pinned") is True
    recording.requests.append(recorded)


def _with_answer(recorded: Recorded, response: http.Response) -> Recorded:
    """What the answer itself tells; it may have been cut when it was kept."""
    kind = "" if "content-encoding" in response.headers else response.headers.get("content-type", "").lower()
    watcher = AnswerWatcher(kind)
    watcher.feed(response.raw_content or b"")
    whole = watcher.verdict().whole
    answer, demand = watcher.answer, recorded.demand
    recorded = replace(recorded, streamed=watcher.streamed)
    if not (whole and answer.terminal):
        return recorded
    if answer.context is not None:
        prefix = context_prefix(demand.model, demand.runner, answer.context)
        demand = demand._replace(new_prefixes=(*demand.new_prefixes, prefix))
    return replace(recorded, demand=demand, timings=answer.timings, pieces=answer.pieces if watcher.streamed else 0)


def _record_agents(record: Mapping[Any, Any], model: str, agent: str | None, recording: Recording) -> None:
    """Record what the decision says about the agents."""
    room = record.get("room")
    if agent is not None and isinstance(room, dict):
        for key, known in (("slots", recording.slots), ("fits", recording.fits), ("loaded", recording.loaded_together)):
            count = _count(room.get(key))
            if count is not None and 0 < count <= MAX_SLOTS:
                known[agent] = max(count, known.get(agent, 0))
    for option in _dicts(record.get("options")):
        if (name := _name(option.get("agent"))) is not None:
            recording.candidates.setdefault(model, set()).add(name)
    for failure in _dicts(record.get("failures")):
        if (name := _name(failure.get("agent"))) is not None:
            if failure.get("reason") == "does not have the model":
                recording.without_model.setdefault(model, set()).add(name)
            else:
                recording.failed_agents.add(name)


def _client(flow: http.HTTPFlow, record: Mapping[Any, Any]) -> str:
    """Who asks, as the balancer tells clients apart; it is not shown to anybody."""
    name = record.get("client")
    if isinstance(name, str):
        return name
    peer = flow.client_conn.peername
    return str(peer[0]) if peer else "unknown"


def _dicts(value: object) -> Iterator[dict[Any, Any]]:
    if isinstance(value, list):
        yield from (each for each in value if isinstance(each, dict))


def _name(value: object) -> str | None:
    """An agent's name; several with commas between them, or anything else, are none."""
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _seconds(record: Mapping[Any, Any], key: str) -> float | None:
    """A time that the record has in milliseconds."""
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise MalformedRecordError
    if not 0 <= value <= LONGEST * 1000:
        raise MalformedRecordError
    return value / 1000
