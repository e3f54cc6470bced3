"""The short form of the byte fuzz of a real mitmdump: the same cases each time."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.cases import SIDES, case, kept, shown
from tests.fuzz.proxy import run

CASES = 480


def test_a_real_mitmdump_outlives_whatever_clients_and_hosts_send(tmp_path: Path) -> None:
    print(run(tmp_path, seed=7, cases=CASES))


def test_a_case_is_made_from_its_seed_and_number_alone() -> None:
    made = [case(7, number) for number in range(CASES)]
    assert made == [case(7, number) for number in range(CASES)]
    assert made != [case(8, number) for number in range(CASES)]
    assert {each.side for each in made} == set(SIDES)
    assert len({each.data for each in made}) > CASES * 0.98


def test_what_has_failed_is_shown_so_that_it_can_be_kept() -> None:
    each = case(7, 0)
    name, _, data = shown(each).partition("\n")
    assert f"{each.side}-" in name
    assert data == repr(each.data)
    assert all(each.side in SIDES for each in kept())
