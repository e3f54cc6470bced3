from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_balancer.core.scoreboard import Scoreboard

MEMBERS = "abcdefgh"
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.sampled_from(MEMBERS), st.none() | st.integers(-3, 6)),
        st.tuples(st.just("remove"), st.sampled_from(MEMBERS), st.none()),
        st.tuples(st.just("lowest"), st.sets(st.sampled_from(MEMBERS), max_size=3), st.none()),
    ),
    max_size=80,
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(STEPS)
def test_lowest_is_a_naive_minimum_whose_ties_rotate(steps: list[tuple[str, str | set[str], int | None]]) -> None:
    ranks: dict[str, int | None] = {}
    board: Scoreboard[str] = Scoreboard(lambda member: ranks.get(member))
    turn: list[str] = []  # members on the board, the one whose turn among equals comes first in front
    for what, subject, rank in steps:
        if what == "lowest":
            assert isinstance(subject, set)
            expected = min(
                (member for member in turn if member not in subject), key=lambda m: ranks[m] or 0, default=None
            )
            assert board.lowest(subject) == expected
            if expected is not None:
                turn.remove(expected)
                turn.append(expected)
            continue
        assert isinstance(subject, str)
        if what == "update":
            moved = subject not in turn or ranks.get(subject) != rank
            ranks[subject] = rank
            board.update(subject)
        else:
            moved = True
            rank = None
            board.remove(subject)
        if moved and subject in turn:
            turn.remove(subject)
        if moved and rank is not None:
            turn.append(subject)
        assert len(board) == len(turn)
        assert [member for member in MEMBERS if member in board] == sorted(turn)


def test_an_empty_board_has_no_lowest() -> None:
    board: Scoreboard[str] = Scoreboard(lambda member: 0)
    assert board.lowest() is None
    board.update("a")
    assert board.lowest({"a"}) is None
    board.remove("a")
    assert board.lowest() is None


def test_removing_who_is_not_there_is_no_error() -> None:
    board: Scoreboard[str] = Scoreboard(lambda member: 0)
    board.remove("a")
    assert len(board) == 0


def test_equals_take_turns_in_the_order_of_their_arrival() -> None:
    board: Scoreboard[str] = Scoreboard(lambda member: 7)
    for member in "cab":
        board.update(member)
    assert [board.lowest() for _ in range(6)] == ["c", "a", "b", "c", "a", "b"]


def test_an_update_that_changes_nothing_keeps_the_turn() -> None:
    board: Scoreboard[str] = Scoreboard(lambda member: 7)
    for member in "abab":
        board.update(member)
    assert board.lowest() == "a"


def test_buckets_stay_bounded_by_the_members_under_many_ranks() -> None:
    ranks = dict.fromkeys("abc", 0)
    board: Scoreboard[str] = Scoreboard(lambda member: ranks[member])
    for rank in range(10_000, 0, -1):
        for member in ranks:
            ranks[member] = rank * 10 + ord(member)
            board.update(member)
        assert _buckets(board) <= 2 * len(ranks) + 65
    assert board.lowest() == "a"


def test_ranks_that_only_rise_leave_no_buckets_behind_when_asked_for_the_lowest() -> None:
    rank = 0
    board: Scoreboard[str] = Scoreboard(lambda member: rank)
    for rank in range(50):  # noqa: B007 (the board reads it)
        board.update("a")
    assert board.lowest() == "a"
    assert _buckets(board) == 1


def _buckets(board: Scoreboard[str]) -> int:
    shown = repr(board)  # "Scoreboard(3 members, 12 buckets)"
    return int(shown.split(", ")[1].split()[0])
