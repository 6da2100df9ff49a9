import io
import re
import xml.etree.ElementTree as ET

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.report import figures, page, panels, tables


def boxes_overlap(svg: str) -> bool:
    """Whether any two names in a scatter plot stand at the same place."""
    places = re.findall(r"translate\(([\d.]+) ([\d.]+)\)[^>]*>(?:w|f|l)", svg)
    return len(set(places)) != len(places)


def test_scatter_names_every_point_once():
    points = [figures.Point(f"w{i}", 15_000 + 100 * i, 80 + 0.2 * i, 0.3) for i in range(5)]
    svg = figures.accuracy_against_bytes([figures.Point("float", 90_000, 88.0, 0.2, True), *points])
    ET.fromstring(svg)
    assert all(len(re.findall(f">{name}<", svg)) == 1 for name in ["float", *(f"w{i}" for i in range(5))])
    assert not boxes_overlap(svg)
    assert "kB" in svg


@pytest.mark.parametrize("points", [[], [figures.Point("a", 0.0, 1.0)]])
def test_scatter_refuses(points):
    with pytest.raises(ValueError, match="positive sizes"):
        figures.accuracy_against_bytes(points)


def drawn(rules):
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.standard_t(4, (16, 24)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(24, 8)), jnp.float32),
    }

    def fn(p, x):
        return jnp.maximum(x @ p["a"], 0) @ p["b"]

    x = jnp.asarray(rng.normal(size=(32, 16)), jnp.float32)
    plan = lb.bind(fn, rules, params, x)
    return panels.panels(fn, plan, params, lb.init(fn, plan, params, x), [(x,)])


def test_panels_show_the_served_grid():
    weight, inputs, *rest = drawn({"**": "w4,a4"})
    assert (weight.title, inputs.title, len(rest)) == ("a: weight", "a: input", 2)
    np.testing.assert_array_equal(weight.levels, np.arange(-8, 8))
    assert np.abs(weight.values).max() <= 8
    assert len(inputs.levels) == 16
    half = (inputs.levels[1] - inputs.levels[0]) / 2  # the zero point is rounded, so the range may shift by this much
    assert inputs.levels[0] - half <= inputs.values.min() <= inputs.values.max() <= inputs.levels[-1] + half
    assert 0 < weight.noise < 0.1
    finer = drawn({"**": "w8,a8"})[0]
    assert finer.noise < weight.noise / 50


def test_panels_leave_out_what_is_float_or_dynamic():
    assert [p.title for p in drawn({"a": "w4", "b": "keep"})] == ["a: weight"]
    assert [p.title for p in drawn({"a": "w4/g4,a8/dynamic", "b": "keep"})] == ["a: weight"]


def test_grids_draw_every_panel():
    found = drawn({"**": "w4,a4"})
    svg = figures.grids(found)
    ET.fromstring(svg)
    assert all(panel.title in svg for panel in found)
    assert figures.grids(found) == svg
    with pytest.raises(ValueError, match="at least one"):
        figures.grids([])


def test_texts_of_a_drawing_keep_their_numbers():
    """Paths are written in tenths of a point; what stands at an axis is read."""
    svg = figures.learning_curves([figures.Curve("m", [0.9, 0.8], [0.251, 0.259])], "error")
    labels = [float(found) for found in re.findall(r">(0\.25\d)<", svg)]
    assert len(labels) >= 3
    steps = np.diff(sorted(set(labels)))
    np.testing.assert_allclose(steps, steps[0], atol=1e-9)


def test_page_escapes_and_stands_alone():
    table = tables.Table("t", ["a<b", "n"], [["<script>", "1"]])
    text = page.page(
        "x & y", "lead", [page.table(table, "a note"), page.figure("f", "<svg></svg>"), page.details("d", "<pre>")]
    )
    assert "<script" not in text
    assert "x &amp; y" in text
    assert not re.search(r'(src|href)="', text)


def test_a_page_has_contents_and_sorts():
    """As a browser without network shows it: links to its own parts, one script, rows in the order of the clicked column."""
    table = tables.Table("t", ["name", "n"], [["a", "9.5"], ["b", "1,000"], ["c", "-"]])
    sections = [
        page.section("x < y", page.table(table, is_sortable=True)),
        *(page.figure(f, "<svg></svg>") for f in "fg"),
    ]
    text = page.page("title", "lead", sections)
    assert re.findall(r'<a href="(.*?)">(.*?)</a>', text) == [
        ("#part-1", "x &lt; y"),
        ("#part-2", "f"),
        ("#part-3", "g"),
    ]
    assert all(f'<h2 id="part-{i}">' in text for i in (1, 2, 3))
    assert text.count("<script") == 1
    assert page.links([("a&b", "c/d")]) == '<p><a href="c/d">a&amp;b</a></p>'


def test_table_width_fits():
    from rich.console import Console

    table = tables.Table("t", ["method", "accuracy %"], [["a_long_method_name", "88.00 ± 1.00"]] * 2)
    console = Console(width=tables.width(table), record=True, file=io.StringIO())
    console.print(tables.rich_table(table))
    assert "…" not in console.export_text()
