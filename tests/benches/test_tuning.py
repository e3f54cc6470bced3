"""The table of constants that `benches.fleet_simulation --tune` can vary fits the code, and so do those who name it."""

from __future__ import annotations

import ast
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

import ollama_balancer
from benches.fleet_simulation import tuning
from benches.fleet_simulation.tuning import CONSTANTS, SCENES, Column, Outcome, Tuning, changed, verdict
from ollama_balancer.core.scoring import agent_estimate

PACKAGE = Path(ollama_balancer.__file__).parent


@pytest.mark.parametrize("name", CONSTANTS)
def test_each_constant_is_where_the_table_says_and_is_among_the_values_that_are_tried(name: str) -> None:
    constant = CONSTANTS[name]
    for place in constant.places:
        module, _, attribute = place.partition(":")
        assert getattr(import_module(f"ollama_balancer.{module}"), attribute) == constant.value
        assert attribute == name.partition("@")[0].partition(".")[2]
    assert any(math.isclose(value, constant.value) for value in constant.grid)
    assert len(constant.grid) > 1
    assert constant.scene in SCENES


def test_each_module_that_imports_a_constant_by_name_is_known() -> None:
    for file in (PACKAGE / "core").rglob("*.py"):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                source = (node.module or "").rpartition(".")[2]
                for alias in node.names:
                    found = CONSTANTS.get(f"{source}.{alias.name}")
                    assert found is None or f"{module}:{alias.name}" in found.places


def test_every_docstring_that_names_a_constant_of_the_table_names_one_that_is_there() -> None:
    named = {name for file in PACKAGE.rglob("*.py") for name in re.findall(r"--tune (\w+\.\w+)", file.read_text())}
    assert named <= CONSTANTS.keys()
    assert named


def test_a_constant_is_changed_for_one_run_only() -> None:
    before = agent_estimate.LEFT
    with changed((("core.scoring.agent_estimate:LEFT", 0.9),)):
        assert agent_estimate.LEFT == 0.9
    assert before == agent_estimate.LEFT


def test_a_table_has_a_row_for_each_value_and_compares_with_the_value_in_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = replace(SCENES["start"].shape, hosts=2, models=1, seconds=30.0)
    monkeypatch.setitem(SCENES, "start", replace(SCENES["start"], shape=small))
    constant = CONSTANTS["estimates.DECODE"]
    monkeypatch.setitem(tuning.CONSTANTS, "estimates.DECODE", replace(constant, grid=(1.0, constant.value)))
    with ThreadPoolExecutor(1) as pool:
        lines = Tuning(pool, 2).table("estimates.DECODE").splitlines()
    assert lines[0].startswith("estimates.DECODE = 20, scene `start`, 2 seeds")
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| value", "|---|---|---|---|---|", "| 1", "| 20"]
    assert " ± " in lines[4]
    assert " ± " not in lines[5]


def column(*values: float) -> Column:
    """Those, against nothing."""
    return Column(
        [Outcome(value, 0, 0, 0) for value in values], [Outcome(0, 0, 0, 0)] * len(values), lambda each: each.goodput
    )


@pytest.mark.parametrize(
    ("points", "seconds", "said"),
    [
        ((3.0, 3.1), (0.0, 0.0), "better"),
        ((-3.0, -3.1), (0.0, 0.0), "worse"),
        ((0.4, 0.4), (0.0, 0.0), "as good"),
        ((-9.0, 10.0), (0.0, 0.0), "as good"),
        ((0.0, 0.0), (2.0, 2.0), "worse"),
        ((3.0, 3.0), (2.0, 2.0), "better here, worse there"),
    ],
)
def test_what_is_said_of_a_value_rests_on_differences_beyond_noise(
    points: tuple[float, ...], seconds: tuple[float, ...], said: str
) -> None:
    assert verdict(column(*points), [column(*seconds)]) == said
