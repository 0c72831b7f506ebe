"""The page: whole, without scripts or links, and a browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edge_client.energy.recording import Recording
from edge_client.energy.source import About, Accuracy, Reading
from tests.tools.energy_report.runs import run
from tools.cli import main
from tools.energy_report.page import number

pytest.importorskip("matplotlib")
VOID = {"meta", "img"}
BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium")


class Page(HTMLParser):
    """Reads strictly: what is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run(folder / "dense", [[20.0, 40.0], [30.0, 40.0]], [0.5, 0.75])
    run(
        folder / "sparse",
        [[2.0, None], [3.0, 4.0]],
        [0.4, 0.7],
        source="model:cpu-time(rpi4b)",
        scope="model",
    )
    kept = Recording(
        folder / "s.csv.zst", About("ina3221:VDD_IN", "power", "module_input", "", "", Accuracy(0.0)), 10**6
    )
    for n in range(5000):
        kept.keep("train" if n % 1000 < 500 else "idle", n / 10, Reading(5.0 + n % 7))
    kept.close()
    out = folder / "report.html"
    arguments = [folder / "dense", folder / "sparse", "--samples", folder / "s.csv.zst", "--out", out]
    assert main(["energy", "report", *map(str, arguments)]) == 0
    return out


def test_the_page_is_whole_and_reaches_for_nothing(report):
    page = Page(report.read_text())
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert (attributes.get("src") or "data:").startswith("data:image/svg+xml;base64,") or tag != "img"
    assert "http" not in re.sub(r'src="[^"]*"', "", report.read_text()).replace("http-equiv", "")


def test_each_figure_is_an_image_with_words_and_a_table(report):
    page = Page(report.read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    titles = [str(attributes["alt"]) for attributes in images]
    assert titles[:4] == [
        "Accuracy against joules",
        "Accuracy against bytes",
        "Boards side by side",
        "Where the joules go",
    ]
    assert titles[4].startswith("Power over time")
    for attributes in images:
        root = ElementTree.fromstring(base64.b64decode(str(attributes["src"]).partition(",")[2]))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tags = [tag for tag, _ in page.tags]
    assert tags.count("figcaption") == tags.count("table") == len(images)


def test_tables_say_unknown_and_what_the_numbers_are(report):
    page = Page(report.read_text())
    assert all({len(row) for row in table} == {len(table[0])} for table in page.tables)
    boards = [row for row in page.tables[2] if row[:2] in (["orin", "sparse"], ["pi", "dense"])]
    measured = next(row for row in boards if row[1] == "dense")
    assert measured[:5] == ["pi", "dense", "<pi>", "measured", "2.5 ± 0.25"]  # And "<pi>" is text, not a tag.
    modelled = next(row for row in boards if row[1] == "sparse" and row[2] == "<orin>")
    assert modelled[3:5] == ["constant", "unknown"]
    assert any("do not compare" in text for text in page.text)


def test_the_numbers_lie_beside_the_page(report):
    found = json.loads(report.with_suffix(".json").read_text())
    assert found["schema"] == "sparsefleet-energy-report/1"
    tables = {path.stem.partition("-")[2] for path in report.parent.glob("report-*.csv")}
    assert tables == {"runs", "curve", "boards", "phases", "power"}


def test_the_same_numbers_give_the_same_page(report):
    first = report.read_bytes()
    arguments = [report.parent / "dense", report.parent / "sparse", "--samples", report.parent / "s.csv.zst"]
    assert main(["energy", "report", *map(str, arguments), "--out", str(report)]) == 0
    assert report.read_bytes() == first


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3, "3"),
        (12345.678, "12,350"),
        (0.0123456, "0.01235"),
        (1.5e-7, "1.5e-07"),
        (1_500_000, "1,500,000"),
    ],
)
def test_numbers_are_shown_with_four_digits(value, text):
    assert number(value) == text


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is None, reason="no chromium: tools/install-test-tools installs chromium-headless-shell"
)
def test_a_browser_shows_it_without_scripts(report, tmp_path):
    shot = tmp_path / "shot.png"
    options = [
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1200,4000",
    ]
    command = [str(BROWSER), *options, f"--screenshot={shot}", report.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib.image import imread

    image = imread(shot)
    assert image.shape[:2] == (4000, 1200)
    # Blue of Okabe and Ito stands in the figures only: the SVGs were drawn, not only the text.
    blue = (abs(image[..., :3] - [0.0, 0x72 / 255, 0xB2 / 255]) < 0.02).all(axis=-1)
    assert blue.sum() > 1000
    assert Path(shot).stat().st_size > 50_000
