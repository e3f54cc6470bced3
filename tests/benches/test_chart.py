"""The picture of the simulation's goodput."""

from __future__ import annotations

from xml.etree import ElementTree

from benches.fleet_simulation.chart import HEIGHT, TOP, Point, svg

SVG = "{http://www.w3.org/2000/svg}"


def test_each_mode_has_a_line_with_a_point_for_each_load_in_each_panel() -> None:
    lines = {"a": [Point(90, 95, 100), Point(40, 50, 60)], "<b>": [Point(0, 0, 0), Point(100, 100, 100)]}
    picture = ElementTree.fromstring(svg({"1 model": lines, "6 models": lines}, [0.4, 0.9], "A & B"))
    drawn = [line.attrib["points"].split() for line in picture.iter(f"{SVG}polyline")]
    assert [len(points) for points in drawn] == [2, 2, 2, 2]
    heights = [[float(point.split(",")[1]) for point in points] for points in drawn]
    assert heights[1] == [TOP + HEIGHT, TOP], "nothing is at the bottom and everything at the top"
    assert heights[0][1] == TOP + HEIGHT / 2
    words = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"A & B", "1 model", "6 models", "40%", "90%", "a", "<b>", "0 %", "100 %"} <= set(words)
