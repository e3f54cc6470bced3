"""The readers that are tried, with what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import answers, bodies, heads, reports
from tests.fuzz.corpus import ANSWERS, BODIES, CUTS, REQUESTS, STREAMS, head_of, mutated
from tests.packing import ENCODINGS, packed

LIMITS = settings(
    database=None, deadline=None, print_blob=False, suppress_health_check=list(HealthCheck), derandomize=False
)


@dataclass(frozen=True)
class Target:
    check: Callable[..., None]
    inputs: tuple[st.SearchStrategy[Any], ...]
    examples: int = 150
    """In the short form."""

    def run(self, limits: settings, chance: int | None = None) -> None:
        """Try inputs; by that seed, or the same each time. What fails has the smallest input that does in its notes."""

        def checked(inputs: tuple[Any, ...]) -> None:
            try:
                self.check(*inputs)
            except Exception as e:
                e.add_note(f"input of {self.check.__name__}: {inputs!r}")
                raise

        test = limits(given(st.tuples(*self.inputs))(checked))
        (test if chance is None else seed(chance)(test))()


def _packed_corpus(encoding: str) -> st.SearchStrategy[bytes]:
    return mutated([packed(encoding, text) for text in (b"", b'{"a":1}' * 20, bytes(70_000), BODIES[0])])


TARGETS = {
    "request heads": Target(heads.request_heads, (mutated(map(head_of, REQUESTS)), CUTS), 400),
    "answer heads": Target(heads.answer_heads, (mutated(map(head_of, ANSWERS)), CUTS), 400),
    "relayed chunks": Target(
        bodies.relayed_chunks, (mutated(map(bodies.chunked_body, STREAMS), bodies.BODY_TOKENS), CUTS), 300
    ),
    "chunked bodies": Target(
        bodies.chunked_bodies, (mutated(map(bodies.chunked_body, STREAMS), bodies.BODY_TOKENS), CUTS), 300
    ),
    "scanned JSON": Target(bodies.scanned_json, (mutated(BODIES, bodies.JSON_TOKENS),), 300),
    "request bodies": Target(
        bodies.request_bodies,
        (
            mutated([*BODIES, bodies.FORM], bodies.JSON_TOKENS),
            bodies.CONTENT_TYPES,
            bodies.REQUEST_ENCODINGS,
            st.booleans(),
        ),
    ),
    "streams of events": Target(
        answers.streams_of_events, (mutated([text for _, text in answers.STREAMED], answers.STREAM_TOKENS), CUTS), 200
    ),
    "whole answers": Target(
        answers.whole_answers, (mutated([a.partition(b"\r\n\r\n")[2] for a in ANSWERS], bodies.JSON_TOKENS), CUTS)
    ),
    **{
        f"packed bodies, {encoding}": Target(answers.packed_bodies, (st.just(encoding), _packed_corpus(encoding), CUTS))
        for encoding in ENCODINGS
    },
    "reports": Target(reports.reports, (mutated(reports.REPORTS, bodies.JSON_TOKENS),), 60),
    "URLs": Target(
        reports.urls,
        (mutated(reports.ENTRIES, reports.ENTRY_TOKENS).map(lambda data: "http://" + data.decode("utf-8", "replace")),),
        300,
    ),
    "agent options": Target(
        reports.agent_options, (st.lists(mutated(reports.ENTRIES, reports.ENTRY_TOKENS), max_size=4),)
    ),
    "fleet files": Target(reports.fleet_files, (mutated(reports.FLEETS, reports.YAML_TOKENS),), 100),
}
