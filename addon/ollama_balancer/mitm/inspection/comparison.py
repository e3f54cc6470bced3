"""Answers of several agents to one prompt side by side: a table, and mitmproxy's content view `Comparison`."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from mitmproxy import flow, http
from mitmproxy.contentviews import Contentview, Metadata

from ...tables import Run, Table, comparison_table, in_columns
from .annotations import COMPARISON_KEY, METADATA_KEY

PRIORITY = 3.0
"""Above that of the view `Ollama`."""

MAX_ROWS = 20
"""Of the table in the view."""

MAX_COMPARED = 100_000
"""Characters of a text."""


@dataclass(frozen=True)
class Place:
    """Where a flow stands in the last comparison: the table of its group, and the flow that it is held against."""

    table: str
    reference: weakref.ref[http.HTTPFlow]


class ComparisonContentview(Contentview):
    """Shows the flows of the last comparison: each answer against the first one of its group."""

    name = "Comparison"

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def compare(self, flows: Sequence[flow.Flow]) -> Table:
        """The table of these flows' answers, empty if none went through the balancer. The view shows them now."""
        runs = [(each, run) for each in flows if isinstance(each, http.HTTPFlow) and (run := run_of(each)) is not None]
        groups: dict[str, list[tuple[http.HTTPFlow, Run]]] = {}
        for each, run in runs:
            groups.setdefault(run.group, []).append((each, run))
        self._places = {}
        for members in groups.values():
            whole = [each for each, run in members if run.problem is None]
            reference = weakref.ref((whole or [members[0][0]])[0])
            table = in_columns(comparison_table([run for _, run in members])[: MAX_ROWS + 1])
            self._places |= {each.id: Place(table, reference) for each, _ in members}
        return comparison_table([run for _, run in runs]) if runs else []

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        from .rendering import section, wrapped
        from .text_diff import LEGEND, diff_lines

        shown = metadata.flow
        place = self._places.get(shown.id) if shown is not None else None
        run = run_of(shown) if isinstance(shown, http.HTTPFlow) else None
        if place is None or run is None:
            return "This answer is not in the last comparison: select flows and run balancer.comparison."
        sections = [section(f"Comparison {run.group}".rstrip(), [place.table])]
        reference = place.reference()
        first = run_of(reference) if reference is not None else None
        text = run.text[:MAX_COMPARED]
        if run.problem is not None or first is None or reference is shown:
            note = [f"! {run.problem}"] if run.problem is not None else []
            sections.append(section(f"{run.agent}'s text", [wrapped(text), *note]))
        elif first.text == run.text:
            sections.append(section(f"{run.agent}'s text is the same as {first.agent}'s", [wrapped(text)]))
        else:
            title = f"{run.agent}'s text (here) against {first.agent}'s (there)"
            lines = diff_lines(first.text[:MAX_COMPARED], text)
            sections.append(section(title, [LEGEND, "", *(wrapped(line, hanging=True) for line in lines)]))
        return "\n\n".join(filter(None, sections))

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        is_compared = metadata.flow is not None and metadata.flow.id in self._places
        return PRIORITY if is_compared and isinstance(metadata.http_message, http.Response) else -1


def run_of(each: http.HTTPFlow) -> Run | None:
    """The flow as a run, if it is one. Its metadata may come from a file: anything may be in it."""
    record, group = each.metadata.get(METADATA_KEY), each.metadata.get(COMPARISON_KEY)
    if not isinstance(record, dict):
        return None
    response = each.response
    from ...ollama.answer_watcher import AnswerWatcher

    watcher = AnswerWatcher(response.headers.get("content-type", "").lower() if response is not None else "")
    watcher.feed((response.content if response is not None else None) or b"")
    verdict = watcher.verdict()
    problem = record.get("problem") or ("not finished yet" if record.get("outcome") is None else verdict.error)
    return Run(
        group=group if isinstance(group, str) else "",
        agent=str(record.get("agent")),
        model=str(record.get("model")),
        first_byte=_number(record.get("first_byte_ms")) if watcher.streamed else None,
        total=_number(record.get("total_ms")),
        tokens_per_second=_number(record.get("tokens_per_second")),
        tokens=verdict.output_tokens,
        text=watcher.answer.text or watcher.answer.thinking,
        problem=None if problem is None else str(problem),
    )


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
