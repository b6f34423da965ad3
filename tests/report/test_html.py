"""The HTML report: well formed, complete in itself, readable."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from sparsekern.report.chart import Chart, Mark, Series, nice_ticks
from sparsekern.report.html import Page, render

CHART = Chart(
    series=[
        Series("16x1 <b>", [Mark(1.5, 0.66, "50%", "a & b"), Mark(3.2, 0.4, "10%", "c")], 0),
        Series("magnitude", [Mark(1.5, 0.3, "", "d")], 1, faint=True),
        *(Series(f"s{i}", [Mark(1.5 + 0.01 * i, 0.66, "50%", "e")], 2 + i) for i in range(2)),
    ],
    baseline=Mark(1.0, 0.656, "dense", "dense: 1.0x"),
    x_label="speed-up",
    y_label="Pearson",
    description="a chart",
)
PAGE = Page(
    title="Title & more",
    intro="<script>alert(1)</script>",
    chart=CHART,
    findings=["1.68x, Pearson 0.669"],
    columns=["granularity", "speed-up"],
    rows=[["16x1", "1.68x"], ["dense", "1.00x"]],
    notes=["medians of 30"],
    environment={"cpu": "A <CPU>"},
    records={"text": "</script><b>", "numbers": [1.5, None]},
)


class Balance(HTMLParser):
    """Every element is closed, in order."""

    VOID = ("meta", "br", "hr", "link", "img", "input")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text():
    return render(PAGE)


def test_well_formed(text):
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert not parser.open and text.startswith("<!doctype html>")
    tags = [tag for tag, _ in parser.seen]
    assert tags.count("svg") == 2 and tags.count("tr") == 3 and tags.count("h1") == 1


def test_refers_to_nothing_outside(text):
    for link in re.findall(r"https?://[^\s\"'<>]+", text):
        assert link == "http://www.w3.org/2000/svg", "a namespace, not an address"
    assert not re.search(r"\b(?:src|href)\s*=|@import|url\(", text)
    parser = Balance()
    parser.feed(text)
    assert all(attributes.get("type") == "application/json" for tag, attributes in parser.seen if tag == "script")


def test_text_is_escaped_and_numbers_are_there(text):
    assert "<script>alert" not in text and "A &lt;CPU&gt;" in text and "Title &amp; more" in text
    for expected in ("1.68x, Pearson 0.669", "<td>16x1</td>", "medians of 30"):
        assert expected in text
    records = text.split('id="records">')[1].split("</script>")[0]
    assert "<b>" not in records and "1.5" in records


def test_light_dark_and_phones(text):
    assert text.count("prefers-color-scheme: dark") >= 2
    assert 'name="viewport"' in text and "max-width: 560px" in text


@pytest.mark.parametrize("size", [(868, 480), (368, 460)])
def test_chart_is_xml_and_stays_inside_its_frame(size):
    root = ElementTree.fromstring(CHART.svg(*size))
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("viewBox") == f"0 0 {size[0]} {size[1]}"
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"50%", "10%", "dense", "16x1 <b>", "speed-up", "Pearson"} <= set(texts)
    for element in root.iter(f"{space}text"):
        assert 0 <= float(element.get("x")) <= size[0] and 0 <= float(element.get("y")) <= size[1]
    for element in root.iter(f"{space}circle"):
        assert 0 <= float(element.get("cx")) <= size[0] and 0 <= float(element.get("cy")) <= size[1]


def test_labels_do_not_cover_each_other():
    root = ElementTree.fromstring(CHART.svg(868, 480))
    places = [
        (float(e.get("x")), float(e.get("y")))
        for e in root.iter("{http://www.w3.org/2000/svg}text")
        if e.get("class") == "halo"
    ]
    assert len(places) == 4
    for i, (x, y) in enumerate(places):
        assert all(abs(x - a) > 20 or abs(y - b) > 11 for a, b in places[:i])


def test_many_granularities_stay_apart():
    many = [Series(f"s{i}", [Mark(1.0 + i, 0.5, "", "")], i) for i in range(9)]
    ElementTree.fromstring(Chart(many, Mark(1, 0.5, "dense", ""), "x", "y", "nine").svg(868, 480))
    assert len({(series.paint, series.marker) for series in many}) == 9


def test_chart_of_a_single_point():
    ElementTree.fromstring(Chart([], Mark(1, 0.5, "dense", ""), "x", "y", "one").svg(300, 200))


@pytest.mark.parametrize(
    ("low", "high", "wanted", "expected"),
    [(0.8, 3.5, 6, [1, 1.5, 2, 2.5, 3, 3.5]), (0.05, 0.7, 3, [0.2, 0.4, 0.6]), (-0.1, 0.1, 2, [-0.1, 0, 0.1])],
)
def test_ticks_are_round(low, high, wanted, expected):
    assert nice_ticks(low, high, wanted) == pytest.approx(expected)
