"""The short form of the byte fuzz of a real mitmdump: the same cases each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import cases
from tests.fuzz.cases import SIDES, case, kept, shown
from tests.fuzz.proxy import run

CASES = 320


def test_a_real_mitmdump_outlives_whatever_clients_and_hosts_send(tmp_path: Path) -> None:
    print(run(tmp_path, seed=7, cases=CASES))


PLANTED = """
class Planted:
    def requestheaders(self, flow):
        if flow.request.headers.get("x-planted") == "1":
            raise RuntimeError("planted")

addons = [Planted()]
"""


def test_an_input_that_breaks_something_is_found_and_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED)
    breaking = b"GET / HTTP/1.1\r\nHost: x\r\nX-Planted: 1\r\n\r\n"
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "http1-planted.bin").write_bytes(breaking)
    monkeypatch.setattr(cases, "KEPT", folder)
    with pytest.raises(AssertionError) as failed:
        run(tmp_path, "-s", str(planted), seed=7, cases=1)
    said = str(failed.value)
    assert "RuntimeError" in said
    assert repr(breaking) in said
    assert said.count("to be kept as") == 1, "of the two inputs, the one that breaks it"


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
