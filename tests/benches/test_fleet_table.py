"""The tables of `benches.fleet_http`."""

from benches.fleet_http.__main__ import choices, parser, table
from benches.fleet_http.load import Sent
from benches.fleet_http.runs import Case, Run
from benches.fleet_http.scenes.chats import ChatFigures, Chats
from benches.fleet_http.scenes.scene import Column, beside_oracle
from benches.fleet_http.sides import oracle
from benches.fleet_simulation.workload import Shape

COLUMNS = (Column("goodput, %", "goodput", 1), beside_oracle("goodput", "goodput", 2))


def run(goodput: float) -> Run:
    figures = ChatFigures(10, 0, 0.0, 0.0, goodput, 0.1, 0.2, 0.3)
    case = Case(oracle(), Shape(), 1, 1.0, Chats())
    return Run(case, figures, 0.25, 0.0, 0.0, Sent({}, 1.0, 0.0, 0.0, 0, 0.0, 0), [], [])


def rows(results: dict[str, list[Run]]) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table(results, COLUMNS).splitlines()]


def test_a_figure_is_compared_with_the_oracles_of_the_same_seed() -> None:
    results = {"ours": [run(50.0), run(80.0), run(30.0)], "oracle": [run(100.0), run(80.0), run(60.0)]}
    head, _, ours, best = rows(results)
    assert head == ["side", "goodput, %", "goodput / oracle's", "its CPU, % of a core"]
    assert ours == ["ours", "50.0 (30.0–80.0)", "0.50 (0.50–1.00)", "25 (25–25)"]
    assert best[2] == "1.00 (1.00–1.00)"


def test_without_the_oracle_there_is_no_such_column() -> None:
    head, _, ours = rows({"ours": [run(50.0)]})
    assert head == ["side", "goodput, %", "its CPU, % of a core"]
    assert len(ours) == 3


def test_each_scene_has_models_and_loads_of_its_own_unless_they_are_given() -> None:
    def chosen(*arguments: str) -> list[tuple[int, float]]:
        return [(models, load) for _, models, load in choices(parser().parse_args(arguments))]

    assert chosen() == [(1, 0.7), (6, 0.7)]
    assert chosen("--scene", "killed", "--loads", "0.5", "0.9") == [(6, 0.5), (6, 0.9)]
    assert chosen("--scene", "prefixes") == [(1, 0.2), (1, 0.4)]
    assert chosen("--scene", "prefixes", "--models", "2", "--loads", "0.3") == [(2, 0.3), (2, 0.3)]
