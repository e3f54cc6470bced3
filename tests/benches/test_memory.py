"""What the bench of memory makes of its readings."""

import resource

import pytest

from benches.memory import Figures, allow_descriptors, grown, report, table
from ollama_balancer.ollama.names import canonical_name


def test_each_one_more_takes_what_the_memory_has_grown_by_since_there_were_fewer() -> None:
    assert grown({0: 100_000, 500: 600_000, 1_000: 1_600_000}) == {500: 1_000.0, 1_000: 2_000.0}


def test_the_table_has_the_median_and_the_spread_over_the_rounds() -> None:
    figures = Figures(bytes_each=[41_000, 39_000, 42_000], rss=[150e6, 149e6, 151.5e6])
    assert table({"stream": {500: figures}, "all": {1: Figures(rss=[3e8])}}).splitlines()[2:] == [
        "| stream | 500 | 41.0 (39.0–42.0) | 150.0 (149.0–151.5) |",
        "| all | – | – | 300.0 (300.0–300.0) |",
    ]


def test_a_report_names_ten_models_once_each_of_which_two_are_in_memory() -> None:
    told = report(17)
    names = [canonical_name(model["name"]) for model in told["models"]]
    assert len(names) == len(set(names)) == 10
    assert [model["name"] for model in told["loaded_models"]] == [model["name"] for model in told["models"][:2]]


def test_a_limit_of_open_files_that_is_too_low_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: raised.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_024, 8_192))
    allow_descriptors(4_200)
    assert raised == [(4_200, 8_192)]
    with pytest.raises(SystemExit, match="8192 files here, and mitmdump needs 10000"):
        allow_descriptors(10_000)
