"""The balancer's marks and a person's, told apart by mitmproxy's own commands and filters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mitmproxy import flow, flowfilter, http
from mitmproxy.addons import view
from mitmproxy.test import taddons, tflow

from ollama_balancer.mitm.inspection.marks import MARK_KEY, UserMarks, is_user_mark, set_mark

OWN = ":boom:"


def test_the_balancers_mark_follows_what_happens() -> None:
    each = tflow.tflow()
    set_mark(each, "")
    assert (each.marked, each.metadata) == ("", {})
    for mark in (OWN, ":x:", ""):
        set_mark(each, mark)
        assert each.marked == mark
        assert not is_user_mark(each)


def test_a_persons_mark_stays_also_where_it_is_one_that_the_balancer_uses() -> None:
    for mark in (":default:", OWN):
        each = tflow.tflow()
        each.marked = mark
        for own in (":x:", ""):
            set_mark(each, own)
            assert each.marked == mark
            assert is_user_mark(each)


def test_a_mark_that_a_person_took_away_comes_back_only_as_another() -> None:
    each = tflow.tflow()
    set_mark(each, OWN)
    each.marked = ""
    set_mark(each, OWN)
    assert each.marked == ""
    set_mark(each, ":x:")
    assert each.marked == ":x:"


class List:
    """mitmproxy's list of three flows: one that a person marked, one that the balancer marked, one without a mark."""

    def __init__(self, context: taddons.context) -> None:
        self.view = view.View()
        context.master.addons.add(self.view)  # the context has the commands about marks
        self.commands = context.master.commands
        self.persons, self.balancers, self.neither = tflow.tflow(), tflow.tflow(), tflow.tflow()
        self.persons.marked = ":default:"
        set_mark(self.balancers, OWN)
        self.view.add([self.persons, self.balancers, self.neither])

    def those(self, specification: str) -> list[flow.Flow]:
        return list(self.commands.call_strings("view.flows.resolve", [specification]))


@pytest.fixture
def flows() -> Iterator[List]:
    with taddons.context() as context:
        made, marks = List(context), UserMarks()
        marks.install()
        try:
            yield made
        finally:
            marks.remove()


def test_marked_means_what_the_person_marked(flows: List) -> None:
    assert flows.those("@marked") == flows.those("~marked") == [flows.persons]
    assert flows.those("@unmarked") == flows.those("!~marked") == [flows.balancers, flows.neither]
    assert flows.those("~marker .") == [flows.persons, flows.balancers]
    assert flows.those("~marker boom") == [flows.balancers]
    assert flows.those("@all") == [flows.persons, flows.balancers, flows.neither]


def test_a_toggle_puts_the_persons_mark_in_the_place_of_the_balancers_and_back(flows: List) -> None:
    for expected in (":default:", OWN, ":default:"):
        flows.commands.call_strings("flow.mark.toggle", ["@all"])
        assert flows.balancers.marked == expected
    assert (flows.persons.marked, flows.neither.marked) == ("", ":default:")


def test_what_the_person_has_not_marked_is_cleared(flows: List) -> None:
    flows.commands.call_strings("view.clear_unmarked", [])
    assert list(flows.view) == [flows.persons]


def test_all_is_as_mitmproxy_had_it_when_the_balancer_is_gone() -> None:
    with taddons.context() as context:
        made, marks = List(context), UserMarks()
        marks.install()
        marks.install()
        marks.remove()
        assert made.those("@marked") == made.those("~marked") == [made.persons, made.balancers]
        assert flowfilter.match("~marked", made.balancers)


def test_a_flow_that_was_saved_keeps_whose_mark_it_is() -> None:
    each = tflow.tflow()
    set_mark(each, OWN)
    again = http.HTTPFlow.from_state(each.get_state())
    assert again.metadata[MARK_KEY] == OWN
    assert not is_user_mark(again)
