from __future__ import annotations

from itertools import pairwise

from benches.fast_paths import OPTIONS, STEPS, gains_table
from benches.proxy import Figures, Load


def test_what_a_fast_path_saves_is_the_difference_to_the_side_without_it_round_by_round() -> None:
    chunks: list[list[float | None]] = [[10.0, 11.0, None], [15.0, 18.0, 20.0], [60.0, 60.0, 60.0], [70.0, None, 70.0]]
    streams = {name: Figures(steady_us=values) for name, values in zip(OPTIONS, chunks, strict=True)}
    requests = {name: Figures(cpu_us=[cpu]) for name, cpu in zip(OPTIONS, (500.0, 500.0, 490.0, 1100.0), strict=True)}
    lines = gains_table({Load("streams", 50, 1): streams, Load("requests", 1, 1): requests}).splitlines()
    assert lines[2] == "| 50 streams | 6.0 (5.0–7.0) | 42.0 (40.0–45.0) | 10.0 (10.0–10.0) |"
    assert lines[3] == "| 1 connection | 0.0 (0.0–0.0) | -10.0 (-10.0–-10.0) | 610.0 (610.0–610.0) |"


def test_each_fast_path_is_what_two_sides_differ_in() -> None:
    sides = list(OPTIONS)
    assert [(fast, slow) for _, fast, slow in STEPS] == list(pairwise(sides))
